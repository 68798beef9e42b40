"""Connectors of vision-language models: tokens (B, L, C) of a vision tower -> T tokens for a language model."""

from __future__ import annotations

from typing import Any

from secvit.connectors.base import Connector
from secvit.connectors.c_abstractor import CAbstractorConnector
from secvit.connectors.divprune import DivPruneConnector
from secvit.connectors.evit import EViTConnector
from secvit.connectors.mlp import MLPConnector
from secvit.connectors.pixel_shuffle import PixelShuffleConnector
from secvit.connectors.pool import PoolConnector
from secvit.connectors.positions import Merged
from secvit.connectors.random_groups import RandomConnector
from secvit.connectors.resampler import ResamplerConnector
from secvit.connectors.sec import SECConnector
from secvit.connectors.tome import ToMeConnector
from secvit.connectors.tree import TreeConnector
from secvit.connectors.windows import WindowConnector
from secvit.registry import Registry

OURS: tuple[type[Connector], ...] = (
    SECConnector,
    MLPConnector,
    ResamplerConnector,
    PoolConnector,
    EViTConnector,
    CAbstractorConnector,
    PixelShuffleConnector,
    ToMeConnector,
    RandomConnector,
    WindowConnector,
    TreeConnector,
    DivPruneConnector,
)
CONNECTORS = Registry("connector", "secvit.connectors.register", {one.name: one for one in OURS})


def register(connector: type[Connector]) -> type[Connector]:
    """Let the `name` of a connector class of your own stand for it, in this process; returns the class.

    `reduce` is what a connector has to say: (B, L, C) -> (B, T, C), see docs/extending.md.  Raises ValueError for a
    name that another connector has.
    """
    if not (isinstance(connector, type) and issubclass(connector, Connector)):
        raise ValueError(f"secvit.connectors.register({connector!r}): give a class derived from Connector")
    return CONNECTORS.add(getattr(connector, "name", ""), connector)


def create(name: str, in_dim: int, out_dim: int, num_tokens: int | None = None, **options: Any) -> Connector:
    """A connector by name; `create(**connector.options)` makes one of the same shape.

    num_tokens: T; None for the connector's own default, 144 (576 for the MLP).
    """
    connector = CONNECTORS.named(name)
    if num_tokens is not None:
        options["num_tokens"] = num_tokens
    return connector(in_dim, out_dim, **options)


__all__ = [
    "CONNECTORS",
    "CAbstractorConnector",
    "Connector",
    "DivPruneConnector",
    "EViTConnector",
    "MLPConnector",
    "Merged",
    "PixelShuffleConnector",
    "PoolConnector",
    "RandomConnector",
    "ResamplerConnector",
    "SECConnector",
    "ToMeConnector",
    "TreeConnector",
    "WindowConnector",
    "create",
    "register",
]
