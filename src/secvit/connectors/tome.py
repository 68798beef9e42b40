"""Token merging: the most similar pairs, again and again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.connectors.base import Connector
from secvit.connectors.positions import Grid
from secvit.connectors.precision import no_autocast


class ToMeConnector(Connector):
    """Ours to compare with: ToMe's bipartite merging (Bolya et al., ICLR 2023) of the tower's output, any T <= L.

    Each round takes every second token, finds the most similar one among the others, and merges the best of these
    pairs, half of all tokens at most, until T are left.  Outputs are means of all they stand for, in the order of the
    image.  No parameters of its own.
    """

    name = "tome"

    def __init__(self, in_dim: int, out_dim: int, num_tokens: int = 144, **shared: Any):
        super().__init__(in_dim, out_dim, num_tokens, **shared)

    def reduce(
        self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool
    ) -> tuple[Tensor, Tensor | None]:
        group = merge_groups(x, self.num_tokens)
        member = F.one_hot(group, self.num_tokens)
        size = member.sum(dim=1).unsqueeze(-1)
        wide = x if x.dtype == torch.float64 else x.float()  # sums of up to L tokens
        total = wide.new_zeros(len(x), self.num_tokens, x.shape[-1]).scatter_add(1, _wide(group, x), wide)
        return (total / size).to(x.dtype), member.mT / size if weigh else None


@torch.no_grad()
def merge_groups(tokens: Tensor, num_tokens: int) -> Tensor:
    """Which of T groups each token ends in.  tokens (B, L, C) -> (B, L), in float32"""
    batch, length, _ = tokens.shape
    mean = tokens.float()
    size = torch.ones(batch, length, 1, device=tokens.device)
    group = torch.arange(length, device=tokens.device).expand(batch, -1)
    while length > num_tokens:
        unit = F.normalize(mean, dim=-1)
        with no_autocast(tokens.device):
            score, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(dim=-1)
        ranked = score.sort(dim=-1, descending=True, stable=True).indices
        gone = 2 * ranked[:, : min(length - num_tokens, length // 2)]
        index = torch.arange(length, device=tokens.device).expand(batch, -1)
        target = index.scatter(1, gone, 2 * partner.gather(1, gone // 2) + 1)
        stays = torch.ones_like(index).scatter(1, gone, 0)
        new = (stays.cumsum(dim=-1) - 1).gather(1, target)
        length -= gone.shape[1]
        total = mean.new_zeros(batch, length, mean.shape[-1]).scatter_add(1, _wide(new, mean), mean * size)
        size = mean.new_zeros(batch, length, 1).scatter_add(1, new.unsqueeze(-1), size)
        mean, group = total / size, new.gather(1, group)
    return group


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
