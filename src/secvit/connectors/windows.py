"""Groups of neighbours with SEC's pooling: what place alone can do."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secvit.connectors.attentive import AttentivePool
from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid
from secvit.ops import cluster


class WindowConnector(Connector):
    """Ours: windows of the grid with the attentive pooling of Eq. 6, any T <= L.

    Exact windows where the grid divides into T, else of equal size with ragged edges.  Outputs go row by row.
    pooling, num_heads, init: of `AttentivePool`.  `shared`: arguments of `Connector`.
    """

    name = "window"
    merges_on_grid = True

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

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        plan = cluster(x, self.num_tokens, partition="window", grid=grid)
        return self.pool["attend"](x, lambda k: plan, weigh=weigh)
