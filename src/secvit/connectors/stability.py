"""How far a connector's outputs move when its inputs do: a sort is a jump."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from secvit.connectors.base import Connector


class Stability(NamedTuple):
    """What a disturbance of the tokens does.

    inputs, outputs: relative change |x' - x| / |x| of the tokens, and of what the connector makes of them.
    together: share of the pairs of tokens in one output that are in one output afterwards as well; 1 where none were.
    """

    inputs: float
    outputs: float
    together: float


@torch.no_grad()
def stability(connector: Connector, tokens: Tensor, disturbed: Tensor, **inputs: Any) -> Stability:
    """Compare what becomes of tokens (B, L, C) and of the same tokens disturbed: by another dtype, by noise.

    inputs: what else `Connector.forward` needs, the same for both.  One that draws at random belongs in eval mode.
    """
    (out, before), (moved, after) = (connector(x, **inputs, return_merged=True) for x in (tokens, disturbed))
    pairs, kept = (_pairs(merged.weights) for merged in (before, after))
    count = int(pairs.sum())
    return Stability(
        _change(tokens, disturbed), _change(out, moved), int((pairs & kept).sum()) / count if count else 1.0
    )


def _change(x: Tensor, y: Tensor) -> float:
    return float((y.float() - x.float()).norm() / x.float().norm())


def _pairs(weights: Tensor) -> Tensor:
    """Tokens that share an output, (B, T, L) -> (B, L, L) above the diagonal."""
    held = (weights > 0).float()
    return (held.mT @ held > 0).triu(1)
