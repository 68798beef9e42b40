"""Eq. 4: softmax attention inside each cluster, on plain batched attention.

Equal clusters fold into the batch, so no mask is needed; a remainder costs a second call.  Gathers
cost more than the sort, so rows are gathered once, by flat indices, and the gradient of a
permutation is a gather by its inverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops import reference
from secvit.ops.cluster import (
    Plan,
    _scoring_dtype,
    check_mask,
    inverse_order,
    mean_key,
    order_by,
    resolve_num_clusters,
    similarity,
)
from secvit.ops.partitions import cluster

BACKENDS = ("auto", "sdpa", "math", "reference")


def sec_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    *,
    plan: Plan | None = None,
    shared: bool = False,
    cross: bool = False,
    is_causal: bool = False,
) -> Tensor:
    """Eqs. 1 to 4: attention of each token within its cluster.  q (B, h, Lq, D), k v (B, h, L, D) -> (B, h, Lq, D).

    num_clusters | cluster_size: M clusters, or as many as keep each at `cluster_size` tokens or fewer.
    mask (B, L): True for real tokens (of the keys, in cross-attention).  Padded tokens enter no
        centre and no cluster, are attended to by none, and come out as zeros.
    scale: default D ** -0.5.
    backend: "sdpa", "math" (softmax of a product), "reference" (loops), or "auto".
    plan: a partition made elsewhere (`secvit.cluster`, any rival), instead of a count or size.
    shared: one order for all heads, from the keys of all heads side by side.
    cross: queries are other tokens than the keys.  Both are ranked by the mean key, and queries of
        rank group m attend to keys of rank group m.  Implied where Lq differs from L.
    No gradient flows through scores or order.  Causal attention is refused: the centre and every
    rank depend on later tokens.
    """
    _check(q, k, v, backend, is_causal)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    cross = cross or q.shape[-2] != k.shape[-2]
    if plan is None:
        num_clusters = resolve_num_clusters(k.shape[-2], num_clusters, cluster_size)
        if cross:
            resolve_num_clusters(q.shape[-2], num_clusters, None)
    elif num_clusters is not None or cluster_size is not None:
        raise ValueError("give a plan, or num_clusters, or cluster_size; not two of them")
    elif mask is not None:
        raise ValueError("a plan knows its padding; give mask= to secvit.cluster, or no plan")
    elif cross:
        raise ValueError("cross-attention makes a plan of its own for queries; give num_clusters or cluster_size")
    if backend == "reference":
        if plan is not None or shared:
            raise ValueError('backend="reference" is the paper\'s partition per head; drop plan= and shared=')
        assert num_clusters is not None
        if cross:
            if mask is not None:
                raise ValueError('backend="reference" takes no mask in cross-attention')
            return reference.sec_cross_attention(q, k, v, num_clusters, scale)
        return reference.sec_attention(q, k, v, num_clusters, check_mask_2d(mask, k), scale)

    key_mask = check_mask(mask, k)
    if plan is None:
        ranked = k.transpose(1, 2).flatten(2) if shared else k
        plan = _per_head(cluster(ranked, num_clusters, mask=mask), k)
    else:
        plan = _per_head(plan, k)
        key_mask = None if plan.unequal_sizes is None else plan.labels >= 0
    if key_mask is not None:  # padded rows may hold anything, NaN included
        k, v = (x.masked_fill(~key_mask.unsqueeze(-1), 0) for x in (k, v))
        q = q if cross else q.masked_fill(~key_mask.unsqueeze(-1), 0)
    if cross:
        centre = mean_key(_scoring_dtype(k), key_mask)
        q_order = order_by(_cross_scores(q, centre, shared))
        return _attend_slots(q, k, v, Plan.equal(q_order, plan.num_clusters), plan, scale, backend)
    if plan.unequal_sizes is not None or _exporting():
        return _attend_slots(q, k, v, plan, plan, scale, backend)
    return _attend_rows(q, k, v, plan, scale, backend)


def sec_attention_packed(qkv: Tensor, num_clusters: int, scale: float, backend: str = "auto") -> Tensor:
    """Eqs. 1 to 4 for the backbones: one gather for q, k and v together.  qkv (B, L, h, 3, D) -> (B, L, h, D).

    The same function as `sec_attention` without masks; the caller sees to 1 <= num_clusters <= L.
    """
    batch, length, heads, _, dim = qkv.shape
    if num_clusters == 1:
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        return _attend(q, k, v, scale, backend).transpose(1, 2)
    order = token_order(qkv)
    if not torch.jit.is_scripting():
        if _exporting():
            q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
            plan = Plan.equal(order, num_clusters)
            return _attend_slots(q, k, v, plan, plan, scale, backend).transpose(1, 2)
    head = torch.arange(heads, device=qkv.device).view(heads, 1)
    image = torch.arange(batch, device=qkv.device).view(batch, 1, 1)
    # row (b, l, head) of qkv goes to row (b, head, rank) of the sorted copy, and comes back the same way
    to_sorted = ((image * length + order) * heads + head).flatten()
    from_sorted = ((image * heads + head) * length + inverse_order(order)).transpose(1, 2).flatten()
    rows = permute_rows(qkv.reshape(-1, 3 * dim), to_sorted, from_sorted)
    q, k, v = rows.view(batch * heads, length, 3, dim).unbind(2)
    out = _attend_equal(q, k, v, num_clusters, scale, backend)
    return permute_rows(out.reshape(-1, dim), from_sorted, to_sorted).view(batch, length, heads, dim)


def token_order(qkv: Tensor) -> Tensor:
    """Eqs. 1, 2 on packed rows: token indices by rising similarity to the mean key.  (B, L, h, 3, D) -> (B, h, L)."""
    k = qkv[:, :, :, 1].transpose(1, 2)
    k = _scoring_dtype(k)
    return order_by(similarity(k, mean_key(k)))


class _PermuteRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        index, inverse = ctx.saved_tensors
        return _PermuteRows.apply(grad, inverse, index), None, None


def permute_rows(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """rows[index]; `inverse` undoes it and is what the gradient is gathered by.  rows (R, D), index inverse (R)."""
    if torch.jit.is_scripting():
        return rows.index_select(0, index)
    else:
        return _PermuteRows.apply(rows, index, inverse)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, backend: str) -> Tensor:
    """Equal clusters: sort rows, attend in slices, sort back."""
    batch, heads, length, _ = q.shape
    sequence = torch.arange(batch * heads, device=q.device).view(batch, heads, 1) * length
    to_sorted, from_sorted = ((sequence + index).flatten() for index in (plan.order, plan.inverse))
    q, k, v = (
        permute_rows(x.reshape(-1, x.shape[-1]), to_sorted, from_sorted).view(batch * heads, length, x.shape[-1])
        for x in (q, k, v)
    )
    out = _attend_equal(q, k, v, plan.num_clusters, scale, backend)
    return permute_rows(out.reshape(-1, out.shape[-1]), from_sorted, to_sorted).view(batch, heads, length, v.shape[-1])


def _attend_equal(q: Tensor, k: Tensor, v: Tensor, num_clusters: int, scale: float, backend: str) -> Tensor:
    """Eqs. 3, 4 on sorted tokens: plain attention per slice, two calls where M does not divide L.  (S, L, D)"""
    length = q.shape[1]
    size, remainder = length // num_clusters, length % num_clusters
    if remainder == 0:
        return _attend_slices(q, k, v, num_clusters, size, scale, backend)
    cut = remainder * (size + 1)
    larger = _attend_slices(q[:, :cut], k[:, :cut], v[:, :cut], remainder, size + 1, scale, backend)
    rest = num_clusters - remainder
    return torch.cat([larger, _attend_slices(q[:, cut:], k[:, cut:], v[:, cut:], rest, size, scale, backend)], dim=1)


def _attend_slices(q: Tensor, k: Tensor, v: Tensor, num_clusters: int, size: int, scale: float, backend: str) -> Tensor:
    # clusters take the place of heads: 4-D, because a 5-D call falls back to the slow math kernel
    q = q.unflatten(1, (num_clusters, size))
    k = k.unflatten(1, (num_clusters, size))
    v = v.unflatten(1, (num_clusters, size))
    return _attend(q, k, v, scale, backend).flatten(1, 2)


def _attend_slots(q: Tensor, k: Tensor, v: Tensor, q_plan: Plan, k_plan: Plan, scale: float, backend: str) -> Tensor:
    """Clusters of any sizes, as one masked call over padded slots.  Has no branch on a size, so it exports."""
    k_tokens, filled = k_plan.slots
    q_tokens = q_plan.slots[0]
    # an empty cluster attends to its first slot: finite, and never read
    filled = filled | (torch.arange(filled.shape[-1], device=filled.device) == 0)
    batch, heads = q.shape[:2]
    grouped_q = _gather_slots(q, q_tokens).flatten(0, 1)
    grouped_k = _gather_slots(k, k_tokens).flatten(0, 1)
    grouped_v = _gather_slots(v, k_tokens).flatten(0, 1)
    out = _attend(grouped_q, grouped_k, grouped_v, scale, backend, filled.flatten(0, 1).unsqueeze(-2))
    out = out.reshape(batch, heads, -1, v.shape[-1])
    index = q_plan.slot_of_token
    out = out.gather(2, index.unsqueeze(-1).expand(*index.shape, out.shape[-1]))
    if q_plan.unequal_sizes is None:
        return out
    return out.masked_fill((q_plan.labels < 0).unsqueeze(-1), 0)


def _gather_slots(x: Tensor, tokens: Tensor) -> Tensor:
    """x (B, h, L, D), tokens (B, h, M, N) -> (B, h, M, N, D)"""
    index = tokens.flatten(2).unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, index).unflatten(2, tokens.shape[2:])


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T scale) v on 4-D tensors (S, M, N, D)."""
    if backend == "auto":
        # on a CPU the fused kernel loses to plain products for short clusters in half precision
        short = k.shape[-2] <= 256 and q.device.type == "cpu"
        backend = "math" if short and q.dtype in (torch.bfloat16, torch.float16) else "sdpa"
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def _cross_scores(q: Tensor, centre: Tensor, shared: bool) -> Tensor:
    q = _scoring_dtype(q)
    if not shared:
        return similarity(q, centre)
    score = similarity(q.transpose(1, 2).flatten(2), centre.flatten(1))
    return score.unsqueeze(1).expand(-1, q.shape[1], -1)


def _per_head(plan: Plan, k: Tensor) -> Plan:
    """A plan with an order for each head, from one that may be shared (B, L)."""
    if plan.order.shape == k.shape[:3]:
        return plan
    if plan.order.shape != (k.shape[0], k.shape[2]):
        raise ValueError(f"a plan for tokens {tuple(plan.order.shape)} does not fit keys of shape {tuple(k.shape)}")

    def widen(x: Tensor) -> Tensor:
        return x.unsqueeze(1).expand(-1, k.shape[1], -1)

    sizes = plan.unequal_sizes
    return Plan(widen(plan.order), plan.num_clusters, plan.max_size, None if sizes is None else widen(sizes))


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _check(q: Tensor, k: Tensor, v: Tensor, backend: str, is_causal: bool) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k, v of shapes {shapes}; give (B, h, L, D)")
    if k.shape[:3] != v.shape[:3] or q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k, v of shapes {shapes} do not belong together; k and v share L, all share B, h")
    if is_causal:
        raise ValueError(
            "SEC cannot be causal: the centre and every token's rank depend on later tokens; "
            "use it for images, encoders or bidirectional prefixes"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; choose one of {', '.join(BACKENDS)}")


def check_mask_2d(mask: Tensor | None, k: Tensor) -> Tensor | None:
    mask = check_mask(mask, k)
    return None if mask is None else mask[:, 0]
