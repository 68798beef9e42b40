"""Learned queries that look at all tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secvit.connectors.attentive import heads_of
from secvit.connectors.base import Connector
from secvit.connectors.parameters import InitialisedLinear, LearnedTokens
from secvit.connectors.positions import Grid, places


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and a feed-forward net: queries (B, T, C) look at tokens (B, L, C)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_q, self.norm_kv, self.norm_ffn = (nn.LayerNorm(dim) for _ in range(3))
        self.q, self.k, self.v, self.o = (InitialisedLinear(dim, dim) for _ in range(4))
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, queries: Tensor, tokens: Tensor, position: Tensor, weigh: bool) -> tuple[Tensor, Tensor | None]:
        tokens = self.norm_kv(tokens)
        q, k, v = self.q(self.norm_q(queries)), self.k(tokens + position), self.v(tokens)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(q.float() @ k.float().mT * q.shape[-1] ** -0.5, dim=-1).mean(dim=1) if weigh else None
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        queries = queries + self.o(out)
        return queries + self.ffn(self.norm_ffn(queries)), weights


class ResamplerConnector(Connector):
    """Table 7's Resampler: T learned queries, cross-attention to all tokens, the MLP.  Any T <= L.

    depth: cross-attention blocks.  num_heads: C / 64 where that is whole, else 1.  Keys carry sines of their places.
    `Merged.weights` are those of the last block, mean over heads.
    """

    name = "resampler"
    merges_on_grid = True

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int = 144,
        *,
        depth: int = 1,
        num_heads: int | None = None,
        **shared: Any,
    ):
        super().__init__(in_dim, out_dim, num_tokens, **shared)
        dim = self.pool_dim
        if dim % 4:
            raise ValueError(f"{dim} channels have no sines and cosines of x and y; choose a multiple of 4")
        if depth < 1:
            raise ValueError(f"depth={depth}; choose depth >= 1")
        heads = heads_of(dim, num_heads)
        self.pool["queries"] = LearnedTokens(num_tokens, dim)
        self.pool["blocks"] = nn.ModuleList(CrossBlock(dim, heads) for _ in range(depth))
        self.pool["norm"] = nn.LayerNorm(dim)
        self.options.update(depth=depth, num_heads=num_heads)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert grid is not None  # merges_on_grid
        learned: Any = self.pool["queries"]
        blocks: Any = self.pool["blocks"]
        queries: Tensor = learned.weight
        tokens = x.to(queries.dtype)
        position = sines(grid, x.shape[-1], x.device).to(queries.dtype)
        queries, weights = queries.expand(len(x), -1, -1), None
        for block in blocks:
            queries, weights = block(queries, tokens, position, weigh)
        return self.pool["norm"](queries).to(x.dtype), weights


def sines(grid: Grid, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of x and of y, a quarter of the channels each.  -> (L, C)"""
    steps = torch.arange(dim // 4, device=device) / max(dim // 4 - 1, 1)
    frequency = math.pi * max(grid) ** steps  # from half a turn across the image to one a token, and a half
    angle = places(grid, device).unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)
