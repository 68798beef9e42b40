"""Where in the image an output token comes from: the attention-weighted place of what it merged."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secvit.connectors.parameters import InitialisedLinear

Grid = tuple[int, int]
FREQUENCIES = 4  # periods of 2, 1, 1/2 and 1/4 image sides: 1/24 of a side turns the last by 60 degrees


class Merged(NamedTuple):
    """What each of the T output tokens was made of; the extra token is not among them.

    weights (B, T, L): how much of each input token is in it; rows sum to 1.
    coordinates (B, T, 2): the weighted mean place (x, y), 0..1 from the left and from the top.
    spread (B, T, 2): the weighted standard deviation of x and of y, in image sides.
    """

    weights: Tensor
    coordinates: Tensor
    spread: Tensor


def grid_of(length: int, grid: Grid | None) -> Grid:
    """(H, W) of L tokens, a square unless it is given; ValueError where they do not fit."""
    if grid is None:
        side = int(length**0.5 + 0.5)  # math.isqrt breaks the graph of torch.compile where lengths change
        if side * side != length:
            raise ValueError(f"{length} tokens are no square grid; give grid=(H, W) of the tokens")
        return side, side
    height, width = grid
    if height * width != length:
        raise ValueError(
            f"{length} tokens are no {height} x {width} grid; give grid=(H, W) of the tokens, without [cls]"
        )
    return height, width


def square_side(num_tokens: int, name: str) -> int:
    """Side of a square of T tokens; ValueError with the nearest ones where T is none."""
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ValueError(
            f"{name} cannot give {num_tokens} tokens, which are no square; "
            f"choose num_tokens={side**2} ({side} x {side}) or {(side + 1) ** 2} ({side + 1} x {side + 1})"
        )
    return side


def pool_to_square(x: Tensor, side: int, grid: Grid) -> Tensor:
    """Mean over windows of the grid, uneven ones where the side does not divide it.  x (B, C, H, W)"""
    if side > min(grid):
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} cannot give {side} x {side}; choose fewer tokens")
    return F.adaptive_avg_pool2d(x, side)


def pooling_weights(side: int, grid: Grid, batch: int, device: torch.device) -> Tensor:
    """What `pool_to_square` does to each token.  -> (B, T, L)"""
    length = grid[0] * grid[1]
    unit = torch.eye(length, device=device).view(length, 1, *grid)
    return pool_to_square(unit, side, grid).view(length, side * side).T.expand(batch, -1, -1)


def places(grid: Grid, device: torch.device) -> Tensor:
    """Centre (x, y) of each token, 0..1.  -> (L, 2)"""
    height, width = grid
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def locate(weights: Tensor, grid: Grid) -> Merged:
    """Mean place and spread of each output.  weights (B, T, L), rows sum to 1."""
    weights = weights.float()
    weights = weights / weights.sum(dim=-1, keepdim=True)  # rows of bfloat16 sum to 1 only nearly
    place = places(grid, weights.device)
    # products and sums, no matmul: autocast leaves those in float32
    mean = (weights.unsqueeze(-1) * place).sum(dim=-2)
    offset = place - mean.unsqueeze(-2)
    variance = (weights.unsqueeze(-1) * offset * offset).sum(dim=-2)
    single = variance < 1e-12  # one token has no spread, and a root at zero no gradient
    spread = torch.where(single, 0, torch.where(single, 1, variance).sqrt())
    return Merged(weights, mean, spread)


class Position(nn.Module):
    """A learned embedding of place and spread: linear in x, y, their waves and the spread; starts at zero."""

    def __init__(self, dim: int):
        super().__init__()
        self.embed = InitialisedLinear(4 + 4 * FREQUENCIES, dim, start="zero")

    def forward(self, merged: Merged) -> Tensor:
        centred = 2 * merged.coordinates - 1
        turns = torch.cat([centred * (math.pi / 2 * 2**i) for i in range(FREQUENCIES)], dim=-1)
        features = torch.cat([centred, merged.spread, turns.sin(), turns.cos()], dim=-1)
        return self.embed(features.to(self.embed.weight.dtype))
