"""Connectors of vision-language models: tokens (B, L, C) of a vision tower -> T tokens for a language model."""

from __future__ import annotations

from typing import Any

from secvit.connectors.base import Connector
from secvit.connectors.c_abstractor import CAbstractorConnector
from secvit.connectors.evit import EViTConnector
from secvit.connectors.mlp import MLPConnector
from secvit.connectors.pixel_shuffle import PixelShuffleConnector
from secvit.connectors.pool import PoolConnector
from secvit.connectors.positions import Merged
from secvit.connectors.random_groups import RandomConnector
from secvit.connectors.resampler import ResamplerConnector
from secvit.connectors.sec import SECConnector
from secvit.connectors.tome import ToMeConnector
from secvit.connectors.windows import WindowConnector

CONNECTORS: dict[str, type[Connector]] = {
    connector.name: connector
    for connector in (
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
    )
}
NAMES = tuple(CONNECTORS)


def create(name: str, in_dim: int, out_dim: int, num_tokens: int | None = None, **options: Any) -> Connector:
    """A connector by name; `create(**connector.options)` makes one of the same shape.

    num_tokens: T; None for the connector's own default, 144 (576 for the MLP).
    """
    if name not in CONNECTORS:
        raise ValueError(f"no connector {name!r}; choose one of {', '.join(NAMES)}")
    if num_tokens is not None:
        options["num_tokens"] = num_tokens
    return CONNECTORS[name](in_dim, out_dim, **options)


__all__ = [
    "NAMES",
    "CAbstractorConnector",
    "Connector",
    "EViTConnector",
    "MLPConnector",
    "Merged",
    "PixelShuffleConnector",
    "PoolConnector",
    "RandomConnector",
    "ResamplerConnector",
    "SECConnector",
    "ToMeConnector",
    "WindowConnector",
    "create",
]
