"""The control that every comparison needs: groups that know nothing of the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secvit.connectors.attentive import AttentivePool
from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid
from secvit.ops import Plan


class RandomConnector(Connector):
    """Ours: random groups with the attentive pooling of Eq. 6, any T <= L.

    What SEC's order adds is what SEC beats these by.

    seed: of the one draw, the same for all images: output n always comes from the same places.
    redraw: groups anew for every image while training, so that no output has places of its own; else by `seed`.
    pooling, num_heads, init: of `AttentivePool`.  `shared`: arguments of `Connector`.
    """

    name = "random"

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int = 144,
        *,
        pooling: str = "attentive",
        num_heads: int | None = None,
        init: str = "identity",
        seed: int = 0,
        redraw: bool = False,
        **shared: Any,
    ):
        super().__init__(in_dim, out_dim, num_tokens, **shared)
        self.seed, self.redraw = seed, redraw
        self.pool["attend"] = AttentivePool(self.pool_dim, num_heads, pooling, init)
        self.options.update(pooling=pooling, num_heads=num_heads, init=init, seed=seed, redraw=redraw)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self.pool["attend"](x, self.groups, weigh=weigh)

    def groups(self, k: Tensor) -> Plan:
        """Groups of keys (B, h, L, D), whatever the keys."""
        batch, _, length, _ = k.shape
        if self.redraw and self.training:
            order = torch.rand(batch, length, device=k.device).argsort(dim=-1)
        else:
            drawn = torch.randperm(length, generator=torch.Generator().manual_seed(self.seed))
            order = drawn.to(k.device).expand(batch, -1)
        return Plan.equal(order, self.num_tokens)
