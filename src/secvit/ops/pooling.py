"""Eqs. 5 and 6: L tokens become T, each the attention of a group's mean query over the group.

Groups are interleaved ranks (Eq. 5) or runs of ranks (supplement Table 3), after the descending
sort that Eq. 2 prints; the authors released no code for connectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secvit.ops.attention import check_qkv
from secvit.ops.order import Plan, check_mask, largest_size, order_by, scoring_dtype, sec_scores
from secvit.ops.slots import gather_slots

ARRANGEMENTS = ("interleaved", "sequential")


def pool_plan(k: Tensor, num_tokens: int, arrangement: str = "interleaved", mask: Tensor | None = None) -> Plan:
    """Eq. 5: T groups of ranks whose sizes differ by at most one.  k (B, L, C) or (B, h, L, D), mask (B, L).

    Interleaved: group n = ranks n, n+T, n+2T, ...; sequential: ranks floor(nL/T) to floor((n+1)L/T).
    """
    length = k.shape[-2]
    if not 1 <= num_tokens <= length:
        raise ValueError(f"{length} tokens cannot give {num_tokens}; choose 1 <= num_tokens <= {length}")
    if arrangement not in ARRANGEMENTS:
        raise ValueError(f"arrangement={arrangement!r}; choose 'interleaved' or 'sequential'")
    mask = check_mask(mask, k)
    k = scoring_dtype(k)
    if mask is not None:
        mask = mask.expand(k.shape[:-1])
        k = k.masked_fill(~mask.unsqueeze(-1), 0)
    order = order_by(sec_scores(k, mask), mask, descending=True)
    count = torch.full_like(order[..., :1], length) if mask is None else mask.sum(dim=-1, keepdim=True)
    group = torch.arange(num_tokens, device=k.device)
    if arrangement == "sequential":
        sizes = (group + 1) * count // num_tokens - group * count // num_tokens
    else:
        sizes = (count - group + num_tokens - 1).clamp_min(0) // num_tokens
        rank = torch.arange(length, device=k.device)
        key = torch.where(rank < count, rank % num_tokens * length + rank, length * length + rank)
        order = order.gather(-1, torch.sort(key, dim=-1).indices)
    return Plan(order, num_tokens, largest_size(length, num_tokens), sizes)


def sec_pool(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_tokens: int,
    *,
    arrangement: str = "interleaved",
    shared: bool = True,
    mask: Tensor | None = None,
    scale: float | None = None,
    plan: Plan | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Eqs. 1, 2, 5, 6, table 11: T output tokens.  q k v (B, h, L, D), mask (B, L) -> (B, h, T, D).

    arrangement: "interleaved" (Eq. 5) or "sequential" (supplement table 3).
    shared: one order for all heads, from the keys of all heads side by side.
    mask: True for real tokens; where a sample has fewer than T of them the last outputs are zero.
    plan: groups made elsewhere (`pool_plan`).
    return_weights: also give the softmax (B, h, T, N) over each group's slots (`Plan.slots`).
    """
    check_qkv(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if plan is None:
        plan = pool_plan(k.transpose(1, 2).flatten(2) if shared else k, num_tokens, arrangement, mask)
    elif plan.num_clusters != num_tokens:
        raise ValueError(f"a plan for {plan.num_clusters} tokens, num_tokens={num_tokens}; make both the same")
    key_mask = check_mask(mask, k)
    if key_mask is not None:
        q, k, v = (x.masked_fill(~key_mask.unsqueeze(-1), 0) for x in (q, k, v))
    plan = plan.per_head(k)
    tokens, filled = plan.slots
    mean_q = plan.merge(q).flatten(0, 1).unsqueeze(-2)
    grouped_k, grouped_v = (gather_slots(x, tokens) for x in (k, v))
    reachable = filled | (torch.arange(filled.shape[-1], device=filled.device) == 0)
    scores = (mean_q * scale) @ grouped_k.transpose(-2, -1)
    weights = torch.softmax(scores.masked_fill(~reachable.flatten(0, 1).unsqueeze(-2), float("-inf")), dim=-1)
    out, weights = ((x.squeeze(-2).unflatten(0, q.shape[:2])) for x in (weights @ grouped_v, weights))
    empty = (plan.sizes == 0).unsqueeze(-1)
    out = out.masked_fill(empty, 0)
    return (out, weights.masked_fill(empty, 0)) if return_weights else out
