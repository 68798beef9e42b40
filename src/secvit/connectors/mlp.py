"""LLaVA-1.5's own connector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid


class MLPConnector(Connector):
    """Table 7: LLaVA-1.5's two-layer MLP, which merges nothing: T = L."""

    name = "mlp"

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int = 576, **shared: Any):
        super().__init__(in_dim, out_dim, num_tokens, **shared)

    def check_length(self, length: int) -> None:
        if length != self.num_tokens:
            raise ValueError(
                f"mlp merges nothing: {length} tokens cannot give {self.num_tokens}; choose num_tokens={length}"
            )

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        return x, torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1) if weigh else None
