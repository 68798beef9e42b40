"""Eq. 6 with its projections: each group of tokens becomes one, by the attention of its mean query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secvit.connectors.base import Connector
from secvit.connectors.parameters import InitialisedLinear
from secvit.connectors.positions import Grid
from secvit.connectors.precision import no_autocast
from secvit.ops import Plan, sec_pool

HEAD_DIM = 64


class AttentivePool(nn.Module):
    """Eq. 6: attentive pooling of groups of tokens, (B, L, C) -> (B, T, C).

    num_heads: C / 64 where that is whole, else 1.
    pooling: "attentive", or "mean": no parameters, the mean of each group.
    init: "identity" (no queries; keys, values and output as they are) starts as "mean", bit for bit, so that weights
        trained on mean tokens stay valid; "random" is for training from scratch.

    K has no bias: softmax gives it no gradient, while the order would move with it.  Q and K learn through the softmax
    alone, never through the order: with as many groups as tokens (groups of one) their gradients are exactly zero.
    Under identity those of K are zero at the first step only.
    """

    def __init__(self, dim: int, num_heads: int | None = None, pooling: str = "attentive", init: str = "identity"):
        super().__init__()
        if pooling not in ("attentive", "mean"):
            raise ValueError(f"pooling={pooling!r}; choose 'attentive' or 'mean'")
        if init not in ("identity", "random"):
            raise ValueError(f"init={init!r}; choose 'identity' or 'random'")
        self.num_heads, self.pooling = heads_of(dim, num_heads), pooling
        if pooling == "attentive":
            self.q = InitialisedLinear(dim, dim, start="zero" if init == "identity" else "random")
            self.k, self.v, self.o = (InitialisedLinear(dim, dim, start=init) for _ in range(3))

    def forward(
        self, tokens: Tensor, groups: Callable[[Tensor], Plan], spatial: bool = False, weigh: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """groups: makes a plan of T groups, shared (B, L) or per head (B, h, L), from keys (B, h, L, D).

        spatial: order the outputs by the place of each group's last member instead of by group.
        weigh: return the weights (B, T, L), mean over heads, as well.
        """
        if self.pooling == "mean":  # zero queries: the very sums of the attentive form under identity
            q, k, v = torch.zeros_like(tokens), tokens, tokens
        else:
            x = tokens.to(self.v.weight.dtype)
            q, k, v = self.q(x), self.keys(tokens), self.v(x)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        plan = groups(k)
        k = k.to(v.dtype)
        out, weights = sec_pool(q, k, v, plan.num_clusters, plan=plan, return_weights=True)
        weights = _per_token(weights, plan, tokens.shape[1]) if weigh else None
        if spatial:
            out = _rows(out, _by_place(plan))
            weights = None if weights is None else _rows(weights, _by_place(plan))
        out = out.transpose(1, 2).flatten(2)
        if self.pooling == "attentive":
            out = self.o(out)
        return out.to(tokens.dtype), None if weights is None else weights.mean(dim=1)

    def keys(self, tokens: Tensor) -> Tensor:
        """K in float32 or better whatever autocast and the weights are in, because the order hangs on it."""
        with no_autocast(tokens.device):
            if type(self.k) is not InitialisedLinear:  # wrapped, by LoRA say
                return self.k(tokens.to(self.k.weight.dtype))
            dtype = torch.promote_types(tokens.dtype, torch.float32)
            return F.linear(tokens.to(dtype), self.k.weight.to(dtype))


class GroupedConnector(Connector):
    """Eq. 6 over groups of tokens; which tokens make a group is `groups`.

    pooling, num_heads, init: of `AttentivePool`.  `shared`: arguments of `Connector`.
    """

    spatial: bool = False  # outputs in the order of places, not of groups

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int = 144,
        *,
        pooling: str = "attentive",
        num_heads: int | None = None,
        init: str = "identity",
        **shared: Any,
    ):
        super().__init__(in_dim, out_dim, num_tokens, **shared)
        self.pool["attend"] = AttentivePool(self.pool_dim, num_heads, pooling, init)
        self.options.update(pooling=pooling, num_heads=num_heads, init=init)

    def groups(self, k: Tensor, grid: Grid | None) -> Plan:
        """T groups of the tokens with keys k (B, h, L, D), shared (B, L) or per head (B, h, L)."""
        raise NotImplementedError

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self.pool["attend"](x, lambda k: self.groups(k, grid), self.spatial, weigh)


def heads_of(dim: int, num_heads: int | None) -> int:
    """Number of heads for `dim` channels: as told, else 64 channels each where that is whole, else one head."""
    if num_heads is None:
        return dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{dim} channels do not split into num_heads={num_heads}; choose a divisor of {dim}")
    return num_heads


def _per_token(weights: Tensor, plan: Plan, length: int) -> Tensor:
    """(B, h, T, N) over the slots of a plan -> (B, h, T, L) over the tokens."""
    slots = plan.slots[0]
    slots = slots if slots.dim() == weights.dim() else slots.unsqueeze(1).expand_as(weights)
    # slots to spare repeat a member, with weight zero
    return weights.new_zeros(*weights.shape[:3], length).scatter_add(-1, slots, weights)


def _by_place(plan: Plan) -> Tensor:
    """Groups by the place of their last member: in groups of ranks, the least typical.  -> (B, T) or (B, h, T)"""
    last = plan.order.gather(-1, plan.sizes.cumsum(dim=-1) - 1)
    return last.argsort(dim=-1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, h, T, D), index (B, T) or (B, h, T)"""
    index = index if index.dim() == 3 else index.unsqueeze(1)
    return x.gather(2, index.unsqueeze(-1).expand_as(x))
