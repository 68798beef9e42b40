"""The paper's connector: L tokens become T by interleaved groups of the sorted tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secvit.connectors.attentive import GroupedConnector
from secvit.connectors.positions import Grid
from secvit.ops import Plan, pool_plan
from secvit.ops.pooling import ARRANGEMENTS

ORDERS = ("rank", "spatial")


class SECConnector(GroupedConnector):
    """Eqs. 1, 2, 5, 6; tables 7 to 9 and 11, supplement table 3: SEC and LLaVA's MLP, any T <= L.

    arrangement: "interleaved" (Eq. 5) spreads the least typical tokens over the groups, "sequential" gathers them.
    pooling: "attentive" (Eq. 6), or "mean", which has no parameters and needs no training.
    order: of the outputs: "rank" (n = 0 .. T - 1), or "spatial": by the place of each group's least typical token.
    per_head: an order for each head, as in the authors' backbones, instead of one for all.
    num_heads, init and what else `shared` holds: of `GroupedConnector`.
    """

    name = "sec"

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int = 144,
        *,
        arrangement: str = "interleaved",
        order: str = "rank",
        per_head: bool = False,
        **shared: Any,
    ):
        super().__init__(in_dim, out_dim, num_tokens, **shared)
        if arrangement not in ARRANGEMENTS:
            raise ValueError(f"arrangement={arrangement!r}; choose 'interleaved' or 'sequential'")
        if order not in ORDERS:
            raise ValueError(f"order={order!r}; choose 'rank' or 'spatial'")
        self.arrangement, self.per_head, self.spatial = arrangement, per_head, order == "spatial"
        self.options.update(arrangement=arrangement, order=order, per_head=per_head)

    def groups(self, k: Tensor, grid: Grid | None) -> Plan:
        """Eq. 5."""
        ranked = k if self.per_head else k.transpose(1, 2).flatten(2)
        return pool_plan(ranked, self.num_tokens, self.arrangement)
