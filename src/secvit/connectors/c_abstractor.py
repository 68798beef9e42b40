"""Convolutions, average pooling, convolutions."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from secvit.connectors.base import Connector
from secvit.connectors.parameters import LearnedTokens
from secvit.connectors.pixel_shuffle import CLIP_PATCHES
from secvit.connectors.positions import Grid, pool_to_square, pooling_weights, square_side


class RegBlock(nn.Module):
    """RegNet's bottleneck of ratio 1 (B, H, W, C): 1x1, depthwise 3x3, squeeze-excitation, 1x1; layer norms, SiLU."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Linear(dim, dim, bias=False)
        self.norm1 = nn.LayerNorm(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.squeeze = nn.Linear(dim, round(dim / 4))
        self.excite = nn.Linear(round(dim / 4), dim)
        self.conv3 = nn.Linear(dim, dim, bias=False)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.norm1(self.conv1(x)))
        out = self.conv2(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out = F.silu(self.norm2(out))
        gate = self.excite(F.silu(self.squeeze(out.mean(dim=(1, 2), keepdim=True)))).sigmoid()
        return F.silu(x + self.norm3(self.conv3(out * gate)))


class CAbstractorConnector(Connector):
    """Table 7's C-Abstractor (Honeybee, CVPR 2024): RegNet blocks, average pooling, RegNet blocks, the MLP.

    T is a square.  depth: blocks on either side of the pooling.  act: SiLU, Honeybee's, unless told otherwise.
    num_patches: L of the learned positions, 576 if None; other grids interpolate them.
    `Merged.weights` are those of the pooling alone; the convolutions see further.
    """

    name = "c_abstractor"
    merges_on_grid = True

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int = 144,
        *,
        depth: int = 3,
        act: str = "silu",
        num_patches: int | None = None,
        **shared: Any,
    ):
        super().__init__(in_dim, out_dim, num_tokens, act=act, num_patches=num_patches, **shared)
        self.side = square_side(num_tokens, self.name)
        dim = self.pool_dim
        side = round(math.sqrt(num_patches or CLIP_PATCHES))
        self.learned_grid = (side, side)
        self.pool["places"] = LearnedTokens(side * side, dim)
        self.pool["fine"] = nn.Sequential(*(RegBlock(dim) for _ in range(depth)))
        self.pool["coarse"] = nn.Sequential(*(RegBlock(dim) for _ in range(depth)))
        self.options.update(depth=depth)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert grid is not None  # merges_on_grid
        places: Any = self.pool["places"]
        place = places.weight.unflatten(0, self.learned_grid)
        if grid != self.learned_grid:
            wide = place.permute(2, 0, 1).unsqueeze(0).float()
            wide = F.interpolate(wide, size=grid, mode="bicubic", antialias=True, align_corners=False)
            place = wide[0].permute(1, 2, 0).to(place.dtype)
        out = self.pool["fine"](x.to(place.dtype).unflatten(1, grid) + place)
        out = pool_to_square(out.permute(0, 3, 1, 2), self.side, grid)
        out = self.pool["coarse"](out.permute(0, 2, 3, 1))
        weights = pooling_weights(self.side, grid, len(x), x.device) if weigh else None
        return out.flatten(1, 2).to(x.dtype), weights
