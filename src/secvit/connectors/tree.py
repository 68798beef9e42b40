"""Groups of similar tokens: the leaves of a balanced tree, in the order of their places in the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secvit.connectors.attentive import GroupedConnector
from secvit.connectors.positions import Grid
from secvit.ops import Plan
from secvit.ops.order import inverse_order, order_by
from secvit.ops.tree import tree_plan


class TreeConnector(GroupedConnector):
    """Ours: T groups of similar tokens of equal size, each as its mean, any T <= L.

    SEC's one sort by similarity to the mean token, done again in each half by the half's own first principal axis
    (`secvit.ops.tree`): sizes differ by at most one token.  Outputs go row by row (`in_rows`).

    pooling: "mean", which has no parameters, or "attentive" (Eq. 6); the tree is then that of the keys.
    num_heads, init and what else `shared` holds: of `GroupedConnector`.
    """

    name = "tree"
    merges_on_grid = True

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int = 144, *, pooling: str = "mean", **shared: Any):
        super().__init__(in_dim, out_dim, num_tokens, pooling=pooling, **shared)

    def groups(self, k: Tensor, grid: Grid | None) -> Plan:
        assert grid is not None  # merges_on_grid
        return in_rows(tree_plan([k.transpose(1, 2).flatten(2)], self.num_tokens), grid)


def in_rows(plan: Plan, grid: Grid) -> Plan:
    """The same clusters in raster order of their mean places.  plan of (B, L) -> plan of (B, L)

    Clusters are sorted by mean row and cut into as many rows as make their places a grid of the image's shape; each
    row is sorted by mean column.  A plain sort by mean row would leave columns without a say: means hardly tie.
    """
    height, width = grid
    count = plan.num_clusters
    tokens, filled = plan.slots
    row, column = ((place * filled).sum(dim=-1) / plan.sizes for place in (tokens // width, tokens % width))
    rows = min(max(int((count * height / width) ** 0.5 + 0.5), 1), count)
    index = order_by(row)
    row_of_rank = torch.arange(count, device=row.device) * rows // count
    ranks = order_by(column.gather(-1, index))
    ranks = ranks.gather(-1, order_by(row_of_rank[ranks].float()))  # stable: columns stay sorted
    index = index.gather(-1, ranks)
    label = inverse_order(index).gather(-1, plan.labels)
    return Plan(order_by(label.float()), count, plan.max_size, plan.sizes.gather(-1, index))
