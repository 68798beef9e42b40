"""Clusters of any sizes: tokens gathered into padded slots, one masked call, and back.

No branch depends on a size, so this is what exports, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops.backends import Options, softmax_attention
from secvit.ops.order import Plan


def slot_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options, key_mask: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Eqs. 3, 4 over padded slots.  q k v (B, h, P + L, D), plan of the L tokens -> (B, h, P + L, D).

    key_mask (B, h, P + L): the tokens that prefix tokens attend to.  Tokens in no cluster come out as zeros.
    """
    prefix = options.num_prefix_tokens
    if prefix == 0:
        return _cluster_attention(q, k, v, plan, options)
    real = None if key_mask is None else key_mask.unsqueeze(-2)
    first = softmax_attention(q[:, :, :prefix], k, v, options, real)
    return torch.cat([first, _cluster_attention(q[:, :, prefix:], k, v, plan, options)], dim=2)


def _cluster_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options) -> Tensor:
    """Of the tokens that the plan speaks of.  q (B, h, L, D), k v (B, h, P + L, D): the prefix is in every cluster."""
    tokens, filled = plan.slots
    grouped_q = gather_slots(q, tokens)
    # an empty cluster attends to its first slot: finite, and never read
    filled = filled | (torch.arange(filled.shape[-1], device=filled.device) == 0)
    if prefix := options.num_prefix_tokens:
        lead = torch.arange(prefix, device=q.device).expand(*tokens.shape[:3], -1)
        tokens = torch.cat([lead, prefix + tokens], dim=-1)
        filled = F.pad(filled, (prefix, 0), value=True)
    mask = filled.flatten(0, 1).unsqueeze(-2)
    out = softmax_attention(grouped_q, gather_slots(k, tokens), gather_slots(v, tokens), options, mask)
    out = out.flatten(1, 2).unflatten(0, q.shape[:2])
    index = plan.slot_of_token
    out = out.gather(2, index.unsqueeze(-1).expand(*index.shape, out.shape[-1]))
    if plan.unequal_sizes is None:
        return out
    return out.masked_fill((plan.labels < 0).unsqueeze(-1), 0)


def gather_slots(x: Tensor, tokens: Tensor) -> Tensor:
    """Tokens in their slots, sequences in one axis.  x (B, h, L, D), tokens (B, h, M, N) -> (B h, M, N, D)."""
    index = tokens.flatten(2).unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, index).unflatten(2, tokens.shape[2:]).flatten(0, 1)
