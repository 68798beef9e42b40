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
from secvit.ops.order import (
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

BACKENDS = ("auto", "sdpa", "math", "reference", "triton")
# tokens a cluster up to which "auto" takes the fused kernel: none until a GPU has passed `make bench-gpu`, with 256
TRITON_SIZE = 0


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
    backend: "sdpa", "math" (softmax of a product), "triton" (fused kernels on a GPU, for float32, bfloat16 and
        float16 up to D = 128; no prefix, cross-attention, dropout or second derivatives), "reference" (loops),
        or "auto": as the device likes it; triton where clusters hold at most `TRITON_SIZE` tokens, none as yet.
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
    return _attend_plan(q, k, v, num_clusters, mask, scale, backend, plan, shared, cross, prefix, dropout_p)


def _attend_plan(
    q: Tensor, k: Tensor, v: Tensor, num_clusters: int | None, mask: Tensor | None, scale: float, backend: str,
    plan: Plan | None, shared: bool, cross: bool, prefix: int, dropout_p: float,
) -> Tensor:  # fmt: skip
    key_mask = check_mask(mask, k)
    patches = k[:, :, prefix:]
    given = plan is not None
    sizes = _sizes(patches.shape[2], num_clusters or 1) if plan is None else (plan.num_clusters, plan.max_size)
    fused = _takes_triton(backend, q, k, v, sizes, prefix, cross, dropout_p)
    if plan is not None:
        plan = _per_head(plan, patches)
    elif fused and mask is None and not shared:
        plan = Plan.equal(torch.ops.secvit.order_tokens(k.detach()), sizes[0])
    else:
        ranked = patches.transpose(1, 2).flatten(2) if shared else patches
        plan = _per_head(cluster(ranked, num_clusters, mask=None if mask is None else mask[:, prefix:]), patches)
    if fused:
        return _attend_triton(q, k, v, plan, scale)
    if given:
        key_mask = None if plan.unequal_sizes is None else F.pad(plan.labels >= 0, (prefix, 0), value=True)
    if key_mask is not None:  # padded rows may hold anything, NaN included
        k, v = (x.masked_fill(~key_mask.unsqueeze(-1), 0) for x in (k, v))
        q = q if cross else q.masked_fill(~key_mask.unsqueeze(-1), 0)
    if cross:
        centre = mean_key(_scoring_dtype(k), key_mask)
        q_order = order_by(_cross_scores(q, centre, shared))
        return _attend_slots(q, k, v, Plan.equal(q_order, plan.num_clusters), plan, scale, backend, 0, dropout_p)
    if plan.unequal_sizes is None and not _exporting():
        return _attend_rows(q, k, v, plan, scale, backend, prefix, dropout_p)
    return _attend_padded(q, k, v, plan, scale, backend, prefix, dropout_p, key_mask)


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
    if _exporting():
        order = torch.arange(q.shape[2] - prefix, device=q.device).expand(*q.shape[:2], -1)
        return _attend_padded(q, k, v, Plan.equal(order, num_clusters), scale, "auto", prefix, dropout_p, None)
    keys, values = (_grouped(x.flatten(0, 1), num_clusters, prefix) for x in (k, v))
    out = _attend_groups(q.flatten(0, 1), keys, values, num_clusters, scale, "auto", prefix, dropout_p)
    return out.unflatten(0, q.shape[:2])


def sec_attention_packed(qkv: Tensor, num_clusters: int, scale: float, backend: str = "auto") -> Tensor:
    """Eqs. 1 to 4, one gather for q, k and v together.  qkv (B, L, h, 3, D) -> (B, L, h, D).

    The same function as `sec_attention` without masks; the caller sees to 1 <= num_clusters <= L.
    """
    return attend_packed(qkv, num_clusters, scale, backend)[0]


def attend_packed(qkv: Tensor, num_clusters: int, scale: float, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """`sec_attention_packed`, and v as it came, for LePE: gradients of both meet in one tensor.  -> 2 x (B, L, h, D)"""
    batch, length, heads, _, dim = qkv.shape
    if num_clusters == 1 and backend != "triton":
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        return _attend(q, k, v, scale, backend).transpose(1, 2), v.transpose(1, 2)
    if not torch.jit.is_scripting():
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        if _takes_triton(backend, q, k, v, _sizes(length, num_clusters)):
            order = torch.ops.secvit.order_tokens(k.detach())
            packed = qkv.to(_autocast_dtype(qkv))
            return torch.ops.secvit.attend_clusters_packed(packed, order, num_clusters, scale)[0], v.transpose(1, 2)
        if _exporting():
            plan = Plan.equal(token_order(qkv), num_clusters)
            return _attend_slots(q, k, v, plan, plan, scale, backend).transpose(1, 2), v.transpose(1, 2)
    order = token_order(qkv)
    head = torch.arange(heads, device=qkv.device).view(heads, 1)
    image = torch.arange(batch, device=qkv.device).view(batch, 1, 1)
    # row (b, l, head) of qkv goes to row (b, head, rank) of the sorted copy, and comes back the same way
    to_sorted = ((image * length + order) * heads + head).flatten()
    from_sorted = ((image * heads + head) * length + inverse_order(order)).transpose(1, 2).flatten()
    rows, values = sort_rows(qkv, to_sorted, from_sorted)
    q, k, v = rows.view(batch * heads, length, 3, dim).unbind(2)
    out = _attend_groups(q, _grouped(k, num_clusters), _grouped(v, num_clusters), num_clusters, scale, backend)
    return permute_rows(out.reshape(-1, dim), from_sorted, to_sorted).view(batch, length, heads, dim), values


def _sizes(num_tokens: int, num_clusters: int) -> tuple[int, int]:
    """M, and the most tokens that one of M equal clusters holds."""
    return num_clusters, (num_tokens + num_clusters - 1) // num_clusters


def _takes_triton(
    backend: str, q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, int],
    prefix: int = 0, cross: bool = False, dropout_p: float = 0.0,
) -> bool:  # fmt: skip
    """Whether the fused kernel is what `backend` asks for; ValueError where it is asked for and cannot.  sizes: M, N"""
    if backend == "auto":
        few = sizes[0] > 1 and sizes[1] <= TRITON_SIZE
        if q.device.type != "cuda" or not few or _exporting():
            return False
    elif backend != "triton":
        return False
    dtypes = {_autocast_dtype(x) for x in (q, k, v)}
    problem = None
    if prefix or cross or dropout_p:
        problem = "takes no prefix tokens, cross-attention or dropout"
    elif q.shape[-1] > 128 or v.shape[-1] != q.shape[-1]:
        problem = f"needs q, k and v of one width up to 128, not {q.shape[-1]} and {v.shape[-1]}"
    elif len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        problem = f"needs q, k and v all in float32, bfloat16 or float16, not {q.dtype}, {k.dtype} and {v.dtype}"
    elif _exporting():
        problem = "cannot be exported"
    else:
        problem = _triton_problem(q.device)
    if problem is not None and backend == "triton":
        raise ValueError(f'backend="triton" {problem}; use backend="auto"')
    return problem is None


@torch.compiler.assume_constant_result
def _triton_problem(device: torch.device) -> str | None:
    """Why triton cannot run on a device, or None; imports the kernels, which registers their operators."""
    try:
        from secvit.ops import triton
    except ImportError as error:
        return f"needs triton, which cannot be imported ({error}): pip install triton"
    if triton.INTERPRETED:
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"needs an NVIDIA GPU, or TRITON_INTERPRET=1 set before python starts, for tensors on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    return None


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """What torch's own attention would cast x to."""
    kind = x.device.type
    casts = x.dtype != torch.float64 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if casts else x.dtype


def _attend_triton(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
    """Clusters of any sizes in one kernel; tokens in no cluster are neither read nor written."""
    q, k, v = (x.to(_autocast_dtype(x)) for x in (q, k, v))
    sizes = plan.unequal_sizes
    bounds = None if sizes is None else F.pad(sizes.cumsum(dim=-1), (1, 0))
    out, _ = torch.ops.secvit.attend_clusters(q, k, v, plan.order, bounds, plan.num_clusters, plan.max_size, scale)
    return out.transpose(1, 2)


def token_order(qkv: Tensor) -> Tensor:
    """Eqs. 1, 2 on packed rows: token indices by rising similarity to the mean key.  (B, L, h, 3, D) -> (B, h, L)."""
    k = qkv[:, :, :, 1].transpose(1, 2)
    k = _scoring_dtype(k)
    return order_by(similarity(k, mean_key(k)))


class _PermuteRows(torch.autograd.Function):
    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        return rows.index_select(0, index)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

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


class _SortRows(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(qkv: Tensor, index: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        return qkv.flatten(3).flatten(0, 2).index_select(0, index), qkv[:, :, :, 2].contiguous()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        qkv, index, inverse = inputs
        ctx.save_for_backward(index, inverse)
        ctx.shape = qkv.shape

    @staticmethod
    def backward(ctx, rows: Tensor, values: Tensor):
        index, inverse = ctx.saved_tensors
        grad = _PermuteRows.apply(rows, inverse, index).view(ctx.shape)
        grad[:, :, :, 2] += values
        return grad, None, None


def sort_rows(qkv: Tensor, index: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Packed rows[index] (B L h, 3 D), and v as it was (B, L, h, D).  qkv (B, L, h, 3, D), index inverse (B L h)"""
    if torch.jit.is_scripting():
        return qkv.flatten(3).flatten(0, 2).index_select(0, index), qkv[:, :, :, 2]
    else:
        return _SortRows.apply(qkv, index, inverse)


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, backend: str, prefix: int, dropout_p: float
) -> Tensor:
    """Equal clusters: sort rows, attend in slices, sort back.  (B, h, P + L, D), plan of the L tokens"""
    batch, heads, length, _ = q.shape
    order, inverse = plan.order, plan.inverse
    if prefix:
        stay = torch.arange(prefix, device=q.device).expand(batch, heads, prefix)
        order, inverse = (torch.cat([stay, prefix + index], dim=-1) for index in (order, inverse))
    sequence = torch.arange(batch * heads, device=q.device).view(batch, heads, 1) * length
    to_sorted, from_sorted = ((sequence + index).flatten() for index in (order, inverse))

    def ranked(x: Tensor) -> Tensor:
        return permute_rows(x.reshape(-1, x.shape[-1]), to_sorted, from_sorted).view(-1, length, x.shape[-1])

    keys, values = (_grouped(ranked(x), plan.num_clusters, prefix) for x in (k, v))
    out = _attend_groups(ranked(q), keys, values, plan.num_clusters, scale, backend, prefix, dropout_p)
    del keys, values  # before rows move back: this is where memory peaks
    return permute_rows(out.reshape(-1, out.shape[-1]), from_sorted, to_sorted).view(batch, heads, length, v.shape[-1])


def _grouped(x: Tensor, num_clusters: int, prefix: int = 0) -> list[Tensor]:
    """Eq. 3: sorted tokens, cluster by cluster, and the prefix in each.  (S, P + L, D) -> one or two (S, m, P + N, D).

    Two where M does not divide L: the first clusters hold one token more.
    """
    length = x.shape[1] - prefix
    size, remainder = length // num_clusters, length % num_clusters
    cut = prefix + remainder * (size + 1)
    # clusters take the place of heads: 4-D, because a 5-D call falls back to the slow math kernel
    groups = [x[:, cut:].unflatten(1, (num_clusters - remainder, size))]
    if remainder > 0:
        groups.insert(0, x[:, prefix:cut].unflatten(1, (remainder, size + 1)))
    if prefix == 0:
        return groups
    lead = x[:, :prefix].unsqueeze(1)
    return [torch.cat([lead.expand(-1, group.shape[1], -1, -1), group], dim=2) for group in groups]


def _attend_groups(
    q: Tensor, keys: list[Tensor], values: list[Tensor], num_clusters: int, scale: float, backend: str,
    prefix: int = 0, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Eq. 4 on sorted tokens, plain attention per cluster.  q (S, P + L, D), keys values `_grouped` -> as q."""
    groups = _grouped(q[:, prefix:], num_clusters)
    outs: list[Tensor] = []
    if prefix > 0:
        outs.append(_attend_all(q[:, :prefix], keys, values, scale, dropout_p))
    for i in range(len(groups)):
        outs.append(_attend(groups[i], keys[i], values[i], scale, backend, None, dropout_p).flatten(1, 2))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def _attend_all(q: Tensor, keys: list[Tensor], values: list[Tensor], scale: float, dropout_p: float) -> Tensor:
    """Attention of prefix tokens to all tokens, over keys that are grouped already: no second copy of them is kept.

    q (S, P, D), keys values (S, m, P + N, D) -> (S, P, D).  Of the prefix's copies, one a cluster, the first counts.
    """
    prefix = q.shape[1]
    pieces: list[Tensor] = []
    for i in range(len(keys)):
        score = (q * scale).unsqueeze(1) @ keys[i].transpose(-2, -1)
        copies = torch.arange(score.shape[-1], device=q.device) < prefix
        later = torch.arange(score.shape[1], device=q.device) + i > 0
        again = copies & later.view(-1, 1, 1)
        pieces.append(score.masked_fill(again, float("-inf")).transpose(1, 2).flatten(2))
    weights = torch.softmax(torch.cat(pieces, dim=2), dim=-1)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    parts: list[Tensor] = []
    start = 0
    for value in values:
        clusters, size = value.shape[1], value.shape[2]
        weight = weights[:, :, start : start + clusters * size].unflatten(2, (clusters, size)).transpose(1, 2)
        parts.append((weight @ value).sum(dim=1))
        start += clusters * size
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _attend_padded(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, backend: str, prefix: int, dropout_p: float,
    key_mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """`_attend_slots` with prefix tokens, whose queries attend to all tokens that key_mask (B, h, P + L) has."""
    if prefix == 0:
        return _attend_slots(q, k, v, plan, plan, scale, backend, 0, dropout_p)
    across = None if key_mask is None else key_mask.unsqueeze(-2)
    first = _attend(q[:, :, :prefix], k, v, scale, backend, across, dropout_p)
    rest = _attend_slots(q[:, :, prefix:], k, v, plan, plan, scale, backend, prefix, dropout_p)
    return torch.cat([first, rest], dim=2)


def _attend_slots(
    q: Tensor, k: Tensor, v: Tensor, q_plan: Plan, k_plan: Plan, scale: float, backend: str,
    prefix: int = 0, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Clusters of any sizes, as one masked call over padded slots.  Has no branch on a size, so it exports.

    The first `prefix` keys and values are in every cluster; plans speak of the others.
    """
    k_tokens, filled = k_plan.slots
    q_tokens = q_plan.slots[0]
    # an empty cluster attends to its first slot: finite, and never read
    filled = filled | (torch.arange(filled.shape[-1], device=filled.device) == 0)
    batch, heads = q.shape[:2]
    if prefix:
        lead = torch.arange(prefix, device=q.device).expand(*k_tokens.shape[:3], -1)
        k_tokens = torch.cat([lead, prefix + k_tokens], dim=-1)
        filled = F.pad(filled, (prefix, 0), value=True)
    grouped_q = _gather_slots(q, q_tokens).flatten(0, 1)
    grouped_k = _gather_slots(k, k_tokens).flatten(0, 1)
    grouped_v = _gather_slots(v, k_tokens).flatten(0, 1)
    out = _attend(grouped_q, grouped_k, grouped_v, scale, backend, filled.flatten(0, 1).unsqueeze(-2), dropout_p)
    out = out.flatten(1, 2).unflatten(0, (batch, heads))
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
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)
        if not torch.jit.is_scripting():
            if _exporting():  # ExecuTorch lowers to a kernel whose output has other strides, on which views fail
                out = out.clone(memory_format=torch.contiguous_format)
        return out
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
