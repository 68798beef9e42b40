"""Keep the tokens that [cls] attends to, and fuse the rest into one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid
from secvit.ops.order import order_by


class EViTConnector(Connector):
    """Table 7's EViT (Liang et al., ICLR 2022): the T - 1 tokens that [cls] attends to most, and the rest as one.

    Tokens that are kept stay in the order of the image; the fused one, a mean weighted by that attention, comes last.
    """

    name = "evit"
    needs_cls_attention = True

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int = 144, **shared: Any):
        super().__init__(in_dim, out_dim, num_tokens, **shared)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert cls_attention is not None  # needs_cls_attention
        attention = cls_attention.float()
        order = order_by(attention, descending=True)
        kept = order[:, : self.num_tokens - 1].sort(dim=-1).values
        rest = order[:, self.num_tokens - 1 :]
        share = attention.gather(-1, rest).clamp_min(1e-12)  # all of them zero: a plain mean
        share = share / share.sum(dim=-1, keepdim=True)
        fused = (share.unsqueeze(-1).to(x.dtype) * _take(x, rest)).sum(dim=1, keepdim=True)
        out = torch.cat([_take(x, kept), fused], dim=1)
        if not weigh:
            return out, None
        weights = attention.new_zeros(*out.shape[:2], x.shape[1])
        weights[:, :-1].scatter_(-1, kept.unsqueeze(-1), 1)
        weights[:, -1].scatter_(-1, rest, share)
        return out, weights


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x (B, L, C), index (B, n) -> (B, n, C)"""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
