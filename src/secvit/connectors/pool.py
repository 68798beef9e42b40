"""Average pooling over the grid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid, pool_to_square, pooling_weights, square_side


class PoolConnector(Connector):
    """Table 7's Pool: adaptive average pooling to sqrt(T) x sqrt(T), then the MLP.  T is a square."""

    name = "pool"
    merges_on_grid = True

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int = 144, **shared: Any):
        super().__init__(in_dim, out_dim, num_tokens, **shared)
        self.side = square_side(num_tokens, self.name)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert grid is not None  # merges_on_grid
        out = pool_to_square(x.transpose(1, 2).unflatten(2, grid), self.side, grid)
        weights = pooling_weights(self.side, grid, len(x), x.device) if weigh else None
        return out.flatten(2).transpose(1, 2), weights
