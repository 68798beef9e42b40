"""Equal clusters: rows are sorted once, attention runs on slices of them, and the result is sorted back.

Equal clusters fold into the batch, so no mask is needed; a remainder costs a second call.  Gathers cost
more than the sort, so rows are gathered once, by flat indices, and the gradient of a permutation is a
gather by its inverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops.backends import Options, softmax_attention
from secvit.ops.order import Plan, inverse_order


def row_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options) -> Tensor:
    """Eqs. 3, 4: sort rows, attend in slices, sort back.  q k v (B, h, P + L, D), plan of the L tokens."""
    batch, heads, length, _ = q.shape
    prefix = options.num_prefix_tokens
    order, inverse = plan.order, plan.inverse
    if prefix:
        stay = torch.arange(prefix, device=q.device).expand(batch, heads, prefix)
        order, inverse = (torch.cat([stay, prefix + index], dim=-1) for index in (order, inverse))
    sequence = torch.arange(batch * heads, device=q.device).view(batch, heads, 1) * length
    to_sorted, from_sorted = ((sequence + index).flatten() for index in (order, inverse))

    def ranked(x: Tensor) -> Tensor:
        return permute_rows(x.reshape(-1, x.shape[-1]), to_sorted, from_sorted).view(-1, length, x.shape[-1])

    keys, values = (slice_clusters(ranked(x), plan.num_clusters, prefix) for x in (k, v))
    out = slice_attention(ranked(q), keys, values, plan.num_clusters, options)
    del keys, values  # before rows move back: this is where memory peaks
    return permute_rows(out.reshape(-1, out.shape[-1]), from_sorted, to_sorted).view(batch, heads, length, v.shape[-1])


def packed_row_attention(qkv: Tensor, order: Tensor, num_clusters: int, options: Options) -> tuple[Tensor, Tensor]:
    """The same with one gather for q, k and v.  qkv (B, L, h, 3, D), order (B, h, L) -> out, v, both (B, L, h, D)."""
    batch, length, heads, _, dim = qkv.shape
    head = torch.arange(heads, device=qkv.device).view(heads, 1)
    image = torch.arange(batch, device=qkv.device).view(batch, 1, 1)
    # row (b, l, head) of qkv goes to row (b, head, rank) of the sorted copy, and comes back the same way
    to_sorted = ((image * length + order) * heads + head).flatten()
    from_sorted = ((image * heads + head) * length + inverse_order(order)).transpose(1, 2).flatten()
    rows, values = sort_packed_rows(qkv, to_sorted, from_sorted)
    q, k, v = rows.view(batch * heads, length, 3, dim).unbind(2)
    keys, sorted_values = slice_clusters(k, num_clusters), slice_clusters(v, num_clusters)
    out = slice_attention(q, keys, sorted_values, num_clusters, options)
    return permute_rows(out.reshape(-1, dim), from_sorted, to_sorted).view(batch, length, heads, dim), values


# -- attention on sorted tokens ----------------------------------------------------------------------


def slice_clusters(x: Tensor, num_clusters: int, prefix: int = 0) -> list[Tensor]:
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


def slice_attention(
    q: Tensor, keys: list[Tensor], values: list[Tensor], num_clusters: int, options: Options
) -> Tensor:  # fmt: skip
    """Eq. 4 on sorted tokens.  q (S, P + L, D), keys and values from `slice_clusters` -> (S, P + L, D)."""
    prefix = options.num_prefix_tokens
    groups = slice_clusters(q[:, prefix:], num_clusters)
    outs = [prefix_attention(q[:, :prefix], keys, values, options)] if prefix else []
    for group, key, value in zip(groups, keys, values):
        outs.append(softmax_attention(group, key, value, options).flatten(1, 2))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def prefix_attention(q: Tensor, keys: list[Tensor], values: list[Tensor], options: Options) -> Tensor:
    """Attention of prefix tokens to all tokens, over keys that are grouped already: no second copy of them is kept.

    q (S, P, D), keys values (S, m, P + N, D) -> (S, P, D).  Of the prefix's copies, one a cluster, the first counts.
    """
    prefix = q.shape[1]
    pieces = []
    for i, key in enumerate(keys):
        score = (q * options.scale).unsqueeze(1) @ key.transpose(-2, -1)
        copies = torch.arange(score.shape[-1], device=q.device) < prefix
        later = torch.arange(score.shape[1], device=q.device) + i > 0
        again = copies & later.view(-1, 1, 1)
        pieces.append(score.masked_fill(again, float("-inf")).transpose(1, 2).flatten(2))
    weights = torch.softmax(torch.cat(pieces, dim=2), dim=-1)
    if options.dropout_p > 0:
        weights = F.dropout(weights, options.dropout_p)
    parts = []
    start = 0
    for value in values:
        clusters, size = value.shape[1], value.shape[2]
        weight = weights[:, :, start : start + clusters * size].unflatten(2, (clusters, size)).transpose(1, 2)
        parts.append((weight @ value).sum(dim=1))
        start += clusters * size
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


# -- rows that move ------------------------------------------------------------------------------------


def permute_rows(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """rows[index]; `inverse` undoes it and is what the gradient is gathered by.  rows (R, D), index inverse (R)."""
    return _PermuteRows.apply(rows, index, inverse)


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


def sort_packed_rows(qkv: Tensor, index: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Packed rows[index] (B L h, 3 D), and v as it was (B, L, h, D): gradients of both meet in one tensor.

    qkv (B, L, h, 3, D), index inverse (B L h)
    """
    return _SortPackedRows.apply(qkv, index, inverse)


class _SortPackedRows(torch.autograd.Function):
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
