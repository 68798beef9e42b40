"""The control that every comparison needs: groups that know nothing of the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secvit.connectors.attentive import GroupedConnector
from secvit.connectors.positions import Grid
from secvit.ops import Plan


class RandomConnector(GroupedConnector):
    """Ours: random groups with the attentive pooling of Eq. 6, any T <= L.

    What SEC's order adds is what SEC beats these by.

    seed: of the one draw, the same for all images: output n always comes from the same places.
    redraw: groups anew for every image while training, so that no output has places of its own; else by `seed`.
    pooling, num_heads, init and what else `shared` holds: of `GroupedConnector`.
    """

    name = "random"

    def __init__(
        self, in_dim: int, out_dim: int, num_tokens: int = 144, *, seed: int = 0, redraw: bool = False, **shared: Any
    ):
        super().__init__(in_dim, out_dim, num_tokens, **shared)
        self.seed, self.redraw = seed, redraw
        self.options.update(seed=seed, redraw=redraw)

    def groups(self, k: Tensor, grid: Grid | None) -> Plan:
        batch, _, length, _ = k.shape
        if self.redraw and self.training:
            order = torch.rand(batch, length, device=k.device).argsort(dim=-1)
        else:
            drawn = torch.randperm(length, generator=torch.Generator().manual_seed(self.seed))
            order = drawn.to(k.device).expand(batch, -1)
        return Plan.equal(order, self.num_tokens)
