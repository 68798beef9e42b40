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
    num_prefix_tokens: int = 0,
    dropout_p: float = 0.0,
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
    num_prefix_tokens: the first P tokens ([cls], registers) are outside the partition: keys and
        values in every cluster, and their own queries attend to all tokens.  Counts, sizes and plans
        speak of the other L - P tokens; a mask (B, L) covers all and is True for the prefix.
    dropout_p: dropout of the attention weights.
    No gradient flows through scores or order.  Causal attention is refused: the centre and every
    rank depend on later tokens.
    """
    _check(q, k, v, backend, is_causal)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    cross = cross or q.shape[-2] != k.shape[-2]
    prefix = num_prefix_tokens
    if prefix and (cross or not 0 < prefix < k.shape[-2]):
        raise ValueError(
            f"num_prefix_tokens={prefix} for {q.shape[-2]} queries and {k.shape[-2]} keys; "
            "give fewer prefix tokens than tokens, and none in cross-attention"
        )
    if plan is None:
        num_clusters = resolve_num_clusters(k.shape[-2] - prefix, num_clusters, cluster_size)
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
        if dropout_p:
            raise ValueError('backend="reference" drops no weights; drop dropout_p=')
        assert num_clusters is not None
        if cross:
            if mask is not None:
                raise ValueError('backend="reference" takes no mask in cross-attention')
            return reference.sec_cross_attention(q, k, v, num_clusters, scale)
        return reference.sec_attention(q, k, v, num_clusters, check_mask_2d(mask, k), scale, prefix)
    if prefix:
        return _attend_with_prefix(q, k, v, num_clusters, mask, scale, backend, plan, shared, prefix, dropout_p)
    return _attend_plan(q, k, v, num_clusters, mask, scale, backend, plan, shared, cross, dropout_p)


def _attend_with_prefix(
    q: Tensor, k: Tensor, v: Tensor, num_clusters: int | None, mask: Tensor | None, scale: float, backend: str,
    plan: Plan | None, shared: bool, prefix: int, dropout_p: float,
) -> Tensor:  # fmt: skip
    lead = (k[:, :, :prefix], v[:, :, :prefix])
    key_mask = check_mask(mask, k)
    if key_mask is not None:  # what is padded may be NaN, which a weight of zero does not stop
        v = v.masked_fill(~key_mask.unsqueeze(-1), 0)
    elif plan is not None and plan.unequal_sizes is not None:
        real = _per_head(plan, k[:, :, prefix:]).labels >= 0
        key_mask = torch.cat([real.new_ones(*real.shape[:-1], prefix), real], dim=-1)
    across = None if key_mask is None else key_mask.unsqueeze(-2)
    first = _attend(q[:, :, :prefix], k, v, scale, backend, across, dropout_p)
    q, k, v = (x[:, :, prefix:] for x in (q, k, v))
    mask = None if mask is None else mask[:, prefix:]
    rest = _attend_plan(q, k, v, num_clusters, mask, scale, backend, plan, shared, False, dropout_p, lead)
    return torch.cat([first, rest], dim=2)


def _attend_plan(
    q: Tensor, k: Tensor, v: Tensor, num_clusters: int | None, mask: Tensor | None, scale: float, backend: str,
    plan: Plan | None, shared: bool, cross: bool, dropout_p: float, lead: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Attention within clusters.  lead: keys and values (B, h, P, D) that are in every cluster."""
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
        return _attend_slots(q, k, v, Plan.equal(q_order, plan.num_clusters), plan, scale, backend, None, dropout_p)
    if plan.unequal_sizes is not None or _exporting():
        return _attend_slots(q, k, v, plan, plan, scale, backend, lead, dropout_p)
    return _attend_rows(q, k, v, plan, scale, backend, lead, dropout_p)


def attend_sorted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_clusters: int,
    scale: float | None = None,
    num_prefix_tokens: int = 0,
    dropout_p: float = 0.0,
) -> Tensor:
    """Eqs. 3, 4 on tokens that are in cluster order already.  q k v (B, h, P + L, D) -> (B, h, P + L, D).

    For layers that go by another layer's order: `Plan.take` once, any number of these, `Plan.put_back`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    prefix = num_prefix_tokens
    first, lead = None, None
    if prefix:
        first = _attend(q[:, :, :prefix], k, v, scale, "auto", None, dropout_p)
        lead = (k[:, :, :prefix], v[:, :, :prefix])
    q, k, v = (x[:, :, prefix:] for x in (q, k, v))
    if _exporting():
        order = torch.arange(q.shape[2], device=q.device).expand(q.shape[:3])
        plan = Plan.equal(order, num_clusters)
        out = _attend_slots(q, k, v, plan, plan, scale, "auto", lead, dropout_p)
    else:
        flat = None if lead is None else (lead[0].flatten(0, 1), lead[1].flatten(0, 1))
        out = _attend_equal(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), num_clusters, scale, "auto", flat, dropout_p
        ).unflatten(0, q.shape[:2])
    return out if first is None else torch.cat([first, out], dim=2)


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


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, backend: str,
    lead: tuple[Tensor, Tensor] | None, dropout_p: float,
) -> Tensor:  # fmt: skip
    """Equal clusters: sort rows, attend in slices, sort back."""
    batch, heads, length, _ = q.shape
    sequence = torch.arange(batch * heads, device=q.device).view(batch, heads, 1) * length
    to_sorted, from_sorted = ((sequence + index).flatten() for index in (plan.order, plan.inverse))
    q, k, v = (
        permute_rows(x.reshape(-1, x.shape[-1]), to_sorted, from_sorted).view(batch * heads, length, x.shape[-1])
        for x in (q, k, v)
    )
    if lead is not None:
        lead = (lead[0].flatten(0, 1), lead[1].flatten(0, 1))
    out = _attend_equal(q, k, v, plan.num_clusters, scale, backend, lead, dropout_p)
    return permute_rows(out.reshape(-1, out.shape[-1]), from_sorted, to_sorted).view(batch, heads, length, v.shape[-1])


def _attend_equal(
    q: Tensor, k: Tensor, v: Tensor, num_clusters: int, scale: float, backend: str,
    lead: tuple[Tensor, Tensor] | None = None, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Eqs. 3, 4 on sorted tokens: plain attention per slice, two calls where M does not divide L.  (S, L, D)

    lead: keys and values (S, P, D) that are in every cluster.
    """
    length = q.shape[1]
    size, remainder = length // num_clusters, length % num_clusters
    if remainder == 0:
        return _attend_slices(q, k, v, num_clusters, size, scale, backend, lead, dropout_p)
    cut, rest = remainder * (size + 1), num_clusters - remainder
    larger = _attend_slices(q[:, :cut], k[:, :cut], v[:, :cut], remainder, size + 1, scale, backend, lead, dropout_p)
    smaller = _attend_slices(q[:, cut:], k[:, cut:], v[:, cut:], rest, size, scale, backend, lead, dropout_p)
    return torch.cat([larger, smaller], dim=1)


def _attend_slices(
    q: Tensor, k: Tensor, v: Tensor, num_clusters: int, size: int, scale: float, backend: str,
    lead: tuple[Tensor, Tensor] | None, dropout_p: float,
) -> Tensor:  # fmt: skip
    # clusters take the place of heads: 4-D, because a 5-D call falls back to the slow math kernel
    q = q.unflatten(1, (num_clusters, size))
    k = k.unflatten(1, (num_clusters, size))
    v = v.unflatten(1, (num_clusters, size))
    if lead is not None:
        k = torch.cat([lead[0].unsqueeze(1).expand(-1, num_clusters, -1, -1), k], dim=2)
        v = torch.cat([lead[1].unsqueeze(1).expand(-1, num_clusters, -1, -1), v], dim=2)
    return _attend(q, k, v, scale, backend, None, dropout_p).flatten(1, 2)


def _attend_slots(
    q: Tensor, k: Tensor, v: Tensor, q_plan: Plan, k_plan: Plan, scale: float, backend: str,
    lead: tuple[Tensor, Tensor] | None = None, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Clusters of any sizes, as one masked call over padded slots.  Has no branch on a size, so it exports."""
    k_tokens, filled = k_plan.slots
    q_tokens = q_plan.slots[0]
    # an empty cluster attends to its first slot: finite, and never read
    filled = filled | (torch.arange(filled.shape[-1], device=filled.device) == 0)
    batch, heads = q.shape[:2]
    grouped_q = _gather_slots(q, q_tokens)
    grouped_k = _gather_slots(k, k_tokens)
    grouped_v = _gather_slots(v, k_tokens)
    if lead is not None:
        clusters = (-1, -1, k_tokens.shape[2], -1, -1)
        grouped_k = torch.cat([lead[0].unsqueeze(2).expand(clusters), grouped_k], dim=3)
        grouped_v = torch.cat([lead[1].unsqueeze(2).expand(clusters), grouped_v], dim=3)
        filled = torch.cat([filled.new_ones(*filled.shape[:-1], lead[0].shape[2]), filled], dim=-1)
    q, k, v = (x.flatten(0, 1) for x in (grouped_q, grouped_k, grouped_v))
    out = _attend(q, k, v, scale, backend, filled.flatten(0, 1).unsqueeze(-2), dropout_p)
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


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str, mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """softmax(q k^T scale) v on 4-D tensors (S, M, N, D)."""
    if backend == "auto":
        # on a CPU the fused kernel loses to plain products for short clusters in half precision
        short = k.shape[-2] <= 256 and q.device.type == "cpu"
        backend = "math" if short and q.dtype in (torch.bfloat16, torch.float16) else "sdpa"
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    return (F.dropout(weights, dropout_p) if dropout_p > 0 else weights) @ v


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
