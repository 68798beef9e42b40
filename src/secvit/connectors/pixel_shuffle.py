"""Neighbours side by side: fewer tokens with more channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from secvit.connectors.base import Connector, Mlp
from secvit.connectors.positions import Grid

CLIP_PATCHES = 576  # CLIP ViT-L/14 at 336 px


class PixelShuffleConnector(Connector):
    """Today's most common: r x r neighbours become one token of r^2 in_dim channels, as in InternVL; T = L / r^2.

    `linear_1` is r^2 times as wide as LLaVA's; `take_mlp` widens LLaVA's so that it starts as average pooling.
    num_patches: L, which fixes r; 576 if None.
    """

    name = "pixel_shuffle"
    merges_on_grid = True

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int = 144,
        *,
        where: str | None = "before",
        num_patches: int | None = None,
        **shared: Any,
    ):
        if where != "before":
            raise ValueError(
                f'where={where!r}; pixel_shuffle widens tokens for the MLP behind it to narrow: choose "before", or '
                "another connector where there is none"
            )
        length = num_patches or CLIP_PATCHES
        self.factor = math.isqrt(length // num_tokens) if num_tokens > 0 else 0
        if num_tokens * self.factor**2 != length:
            possible = [length // r**2 for r in range(1, math.isqrt(length) + 1) if length % r**2 == 0]
            raise ValueError(
                f"pixel_shuffle cannot give {num_tokens} of {length} tokens; choose {', '.join(map(str, possible))}"
                + ("" if num_patches else ", or say num_patches if the tower gives another number")
            )
        super().__init__(
            in_dim, out_dim, num_tokens, num_patches=num_patches, pooled_dim=in_dim * self.factor**2, **shared
        )

    def check_length(self, length: int) -> None:
        if length != self.num_tokens * self.factor**2:
            raise ValueError(
                f"{length} tokens cannot give {self.num_tokens} with r={self.factor}; choose num_patches={length}"
            )

    def take_mlp(self, projector: Mlp) -> None:
        linear = projector.linear_1
        if linear.in_features == self.in_dim and self.factor > 1:
            if not linear.weight.is_floating_point():
                raise ValueError(
                    "pixel_shuffle needs a wider linear_1, which quantised weights cannot become; "
                    "load the model unquantised or choose another connector"
                )
            copies = self.factor**2
            wide = nn.Linear(linear.in_features * copies, linear.out_features, bias=linear.bias is not None)
            wide = wide.to(linear.weight.device, linear.weight.dtype)
            with torch.no_grad():
                wide.weight.copy_(linear.weight.repeat(1, copies) / copies)
                if linear.bias is not None:
                    wide.bias.copy_(linear.bias)
            self.linear_1, self.act, self.linear_2 = wide, projector.act, projector.linear_2
        else:
            super().take_mlp(projector)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        out = self._side_by_side(x, grid)
        if not weigh:
            return out, None
        unit = torch.eye(x.shape[1], device=x.device).unsqueeze(0)
        weights = self._side_by_side(unit, grid).unflatten(-1, (self.factor**2, -1)).mean(dim=2)
        return out, weights.expand(len(x), -1, -1)

    def _side_by_side(self, x: Tensor, grid: Grid | None) -> Tensor:
        assert grid is not None  # merges_on_grid
        height, width = grid
        r = self.factor
        if height % r or width % r:
            raise ValueError(f"a grid of {height} x {width} does not divide into {r} x {r}; choose another num_tokens")
        x = x.unflatten(1, (height // r, r, width // r, r)).transpose(2, 3)
        return x.flatten(3).flatten(1, 2)
