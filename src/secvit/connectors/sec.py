"""The paper's connector: L tokens become T by interleaved groups of the sorted tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secvit.connectors.attentive import AttentivePool
from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid
from secvit.ops import Plan, pool_plan
from secvit.ops.pooling import ARRANGEMENTS

ORDERS = ("rank", "spatial")


class SECConnector(Connector):
    """Eqs. 1, 2, 5, 6; tables 7 to 9 and 11, supplement table 3: SEC and LLaVA's MLP, any T <= L.

    arrangement: "interleaved" (Eq. 5) spreads the least typical tokens over the groups, "sequential" gathers them.
    pooling: "attentive" (Eq. 6), or "mean", which has no parameters and needs no training.
    order: of the outputs: "rank" (n = 0 .. T - 1), or "spatial": by the place of each group's least typical token.
    per_head: an order for each head, as in the authors' backbones, instead of one for all.
    num_heads, init: of `AttentivePool`.  `shared`: arguments of `Connector`.
    """

    name = "sec"

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int = 144,
        *,
        arrangement: str = "interleaved",
        pooling: str = "attentive",
        order: str = "rank",
        per_head: bool = False,
        num_heads: int | None = None,
        init: str = "identity",
        **shared: Any,
    ):
        super().__init__(in_dim, out_dim, num_tokens, **shared)
        if arrangement not in ARRANGEMENTS:
            raise ValueError(f"arrangement={arrangement!r}; choose 'interleaved' or 'sequential'")
        if order not in ORDERS:
            raise ValueError(f"order={order!r}; choose 'rank' or 'spatial'")
        self.arrangement, self.order, self.per_head = arrangement, order, per_head
        self.pool["attend"] = AttentivePool(self.pool_dim, num_heads, pooling, init)
        self.options.update(
            arrangement=arrangement, pooling=pooling, order=order, per_head=per_head, num_heads=num_heads, init=init
        )

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        return self.pool["attend"](x, self.groups, spatial=self.order == "spatial", weigh=weigh)

    def groups(self, k: Tensor) -> Plan:
        """Eq. 5 from keys (B, h, L, D)."""
        ranked = k if self.per_head else k.transpose(1, 2).flatten(2)
        return pool_plan(ranked, self.num_tokens, self.arrangement)
