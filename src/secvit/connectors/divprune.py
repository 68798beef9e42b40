"""The tokens that differ most from each other, and none of the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid
from secvit.connectors.precision import no_autocast


class DivPruneConnector(Connector):
    """Ours to compare with: DivPrune's selection (Alvar et al., CVPR 2025), any T <= L; nothing is merged.

    The first token is the one whose nearest other is farthest, by cosine; each next one is the farthest from its
    nearest among those chosen.  Outputs stay in the order of the image.  No parameters of its own.
    """

    name = "divprune"

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int = 144, **shared: Any):
        super().__init__(in_dim, out_dim, num_tokens, **shared)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        kept = diverse(x, self.num_tokens)
        out = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return out, F.one_hot(kept, x.shape[1]).float() if weigh else None


@torch.no_grad()
def diverse(tokens: Tensor, num_tokens: int) -> Tensor:
    """Which T tokens are chosen, in rising order.  tokens (B, L, C) -> (B, T), compared in float32"""
    unit = F.normalize(tokens.float(), dim=-1)
    kept: list[Tensor] = []
    with no_autocast(unit.device):
        itself = torch.eye(unit.shape[1], dtype=torch.bool, device=unit.device)
        nearest = (unit @ unit.mT).masked_fill(itself, -2).amax(dim=-1)
        while len(kept) < num_tokens:
            new = nearest.argmin(dim=-1, keepdim=True)
            likeness = (unit * unit.gather(1, new.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))).sum(dim=-1)
            nearest = torch.maximum(nearest, likeness) if kept else likeness
            kept.append(new)
            nearest = nearest.scatter(1, torch.cat(kept, dim=1), 2.0)  # more than any cosine: none is chosen twice
    return torch.cat(kept, dim=1).sort(dim=-1).values
