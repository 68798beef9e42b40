"""Groups of neighbours with SEC's pooling: what place alone can do."""

from __future__ import annotations

from torch import Tensor

from secvit.connectors.attentive import GroupedConnector
from secvit.connectors.positions import Grid
from secvit.ops import Plan, cluster


class WindowConnector(GroupedConnector):
    """Ours: windows of the grid with the attentive pooling of Eq. 6, any T <= L.

    Exact windows where the grid divides into T, else of equal size with ragged edges.  Outputs go row by row.
    Arguments: of `GroupedConnector`.
    """

    name = "window"
    merges_on_grid = True

    def groups(self, k: Tensor, grid: Grid | None) -> Plan:
        return cluster(k[:, 0], self.num_tokens, partition="window", grid=grid)
