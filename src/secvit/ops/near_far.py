"""Clusters that see each other: each attends to its r nearest clusters exactly, and to one summary of every other.

The two halves of a cluster see the same near clusters, and each half has summaries of its own.  The summary of a
cluster for a half is taken at the half's mean query: keys and values of the cluster, weighted by the softmax of that
query within it, and a bias that gives the summary the weight of the whole cluster.  It is exact for the mean query
and a first-order expansion around it for the others (`reference_near_far` has one function a step).

Nothing here is new but equal clusters, with one order for queries, keys and values.  Summaries at a mean query are
MuSe's (arXiv:2509.10406), which clusters queries and keys apart; Multipole Attention (arXiv:2506.13059) has plain
means, for decoding; Vyas et al. (arXiv:2007.04825) attend from clustered queries to their top keys; SVG2
(arXiv:2505.18875) attends to near blocks of k-means clusters, and to no far ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops.backends import Options, softmax_attention, triton_near_far
from secvit.ops.order import Plan, full_precision
from secvit.ops.rows import permute_rows

# floats of temporary storage, to which images, heads and query clusters are chunked: it bounds memory, and a CPU
# gets back what it has in its cache
CHUNK = 1 << 21
CHUNK_ON_GPU = 1 << 28  # a GPU wants much work at once
EMPTY = -1e30  # logit of a slot without a token: finite, so that a cluster of none makes no NaN


def near_far_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options, mask: Tensor | None = None, fused: bool = False
) -> Tensor:
    """Attention to near clusters and summaries of far ones.  q k v (B, h, P + L, D), plan of (B, h, L) -> as q.

    options.near: r, the clusters that are attended to exactly, a cluster's own among them; the others are those of
        most weight for the mean queries of its halves.
    options.far: attend to a summary of each other cluster, too.
    mask (B, 1 | h, P + L): tokens that are no padding; q, k and v are zero elsewhere, and so is the output.
    fused: near clusters are read in place by a kernel on a GPU (`secvit.ops.triton.near_far`).
    The first P tokens are keys of every cluster, and their own queries attend to all tokens.  Summaries and the
    choice of near clusters are computed in float32 (float64 for float64).  A gradient flows through summaries, none
    through order and choice.
    """
    plan = replace(plan, num_clusters=int(plan.num_clusters))  # for a program of any length, too
    if mask is not None:
        mask = mask.expand(q.shape[:3])
    images, heads = _piece(q, plan.num_clusters)
    attention = _fused_attention if fused else _piece_attention
    rows = []
    for row in _split([q, k, v, plan.order, plan.unequal_sizes, mask], images, 0):
        outs = []
        for queries, keys, values, order, sizes, real in _split(row, heads, 1):
            piece = Plan(order, plan.num_clusters, plan.max_size, sizes)
            outs.append(attention(queries, keys, values, piece, options, real))
        rows.append(_joined(outs, 2))
    return _joined(rows, 0).transpose(1, 2)


def _piece_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options, mask: Tensor | None) -> Tensor:
    """`near_far_attention` of some images and heads.  -> (B, P + L, h, Dv), which is how torch's own output lies"""
    prefix = options.num_prefix_tokens
    laid = _laid_out(q, k, v, plan, options)
    queries, keys = laid.queries, laid.keys
    step = _clusters_at_a_time(queries, keys, options)
    outs = []
    for start in range(0, queries.shape[1], step):
        chunk = slice(start, start + step)
        own = torch.arange(plan.num_clusters, device=q.device)[chunk]
        held = None if laid.held is None else laid.held[:, chunk]
        outs.append(_cluster_attention(queries[:, chunk], held, own, keys, laid.filled, laid.lead, options))
    out = laid.query_slots.put_back(_joined(outs, 1).flatten(1, 2))
    if prefix:
        out[:, :prefix] = _prefix_attention(q, k, v, options, mask)
    return out


def _prefix_attention(q: Tensor, k: Tensor, v: Tensor, options: Options, mask: Tensor | None) -> Tensor:
    """Attention of the prefix's queries to all tokens.  -> (B, P, h, Dv)"""
    first = q[:, :, : options.num_prefix_tokens]
    return softmax_attention(first, k, v, options, None if mask is None else mask.unsqueeze(-2)).transpose(1, 2)


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options, mask: Tensor | None
) -> Tensor:  # fmt: skip
    """`_piece_attention` by a kernel that reads the clusters that are seen in place."""
    prefix, clusters = options.num_prefix_tokens, plan.num_clusters
    parts = _parts(options, clusters)
    own = torch.arange(clusters, device=q.device)
    seen, far = own.view(1, -1, 1).expand(q.shape[0] * q.shape[1], -1, -1), None
    if not options.inside:
        laid = _laid_out(q, k, v, plan, options)
        seen, summaries, bias = _sight(laid.queries, laid.held, own, laid.keys, laid.filled, options)
        if summaries is not None and bias is not None:
            unseen = bias.scatter(-1, seen.unsqueeze(2).expand(-1, -1, parts, -1), EMPTY)
            far = (*summaries.split([q.shape[-1], v.shape[-1]], dim=-1), unseen.float())
    out = triton_near_far(q, k, v, plan, seen, far, parts, prefix, options.scale)
    if not prefix:
        return out
    first = _prefix_attention(q, k, v, replace(options, backend="auto"), mask)
    return torch.cat([first.to(out.dtype), out[:, prefix:]], dim=1)


class _Laid(NamedTuple):
    """A piece, cluster by cluster; names and shapes as in `_cluster_attention`, for all M clusters."""

    queries: Tensor
    held: Tensor | None
    keys: Tensor
    filled: Tensor | None
    lead: Tensor
    query_slots: _Slots


def _laid_out(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options) -> _Laid:
    prefix, parts = options.num_prefix_tokens, _parts(options, plan.num_clusters)
    slots = _Slots(plan, prefix)
    query_slots = _Slots(halves(plan), prefix) if parts == 2 else slots
    queries = query_slots.take(q[:, :, prefix:]).unflatten(1, (-1, parts))
    held = None if query_slots.filled is None else query_slots.filled.unflatten(1, (-1, parts))
    both = torch.cat([k, v], dim=-1)
    lead = both[:, :, :prefix].flatten(0, 1).unsqueeze(1)
    return _Laid(queries, held, slots.take(both[:, :, prefix:]), slots.filled, lead, query_slots)


def _parts(options: Options, num_clusters: int) -> int:
    """Parts of a cluster that have summaries, and a say in what is near, of their own."""
    return 2 if options.near < num_clusters and (options.near > 1 or options.far) else 1


def halves(plan: Plan) -> Plan:
    """The same order with every cluster cut in two, the first part of one token more where the number is odd."""
    size = (plan.max_size + 1) // 2
    if _is_even(plan) and plan.max_size % 2 == 0:
        return Plan(plan.order, 2 * plan.num_clusters, size)
    sizes = torch.stack([(plan.sizes + 1) // 2, plan.sizes // 2], dim=-1).flatten(-2)
    return Plan(plan.order, 2 * plan.num_clusters, size, sizes)


def _is_even(plan: Plan) -> bool:
    """Whether all clusters are known to hold the same number of tokens; a program for any length knows nothing."""
    if plan.unequal_sizes is not None or torch.compiler.is_exporting():
        return False
    return plan.order.shape[-1] % plan.num_clusters == 0


def _cluster_attention(
    q: Tensor, held: Tensor | None, own: Tensor, keys: Tensor, filled: Tensor | None, lead: Tensor, options: Options
) -> Tensor:
    """Clusters of queries, whose H parts share their near keys.  q (S, m, H, n, D) -> (S, m, H, n, Dv).

    held (S, m, H, n): slots with a query.  own (m): number of each cluster.  keys (S, M, N, D + Dv), filled (S, M, N),
    lead (S, 1, P, D + Dv).
    """
    sequences, _, parts, _, dim = q.shape
    seen, summaries, far_bias = _sight(q, held, own, keys, filled, options)
    columns = [lead.expand(-1, len(own), -1, -1), _blocks(keys, seen)]
    if summaries is not None:
        columns.append(summaries.flatten(2, 3))
    gathered = torch.cat(columns, dim=2)
    dtype = torch.promote_types(q.dtype, torch.float32)
    bias = _bias(seen, filled, far_bias, lead.shape[2], keys.shape[2], dtype)
    # parts stand where torch has heads, and read the same keys
    k, v = (x.flatten(0, 1).unsqueeze(1).expand(-1, parts, -1, -1) for x in (gathered[..., :dim], gathered[..., dim:]))
    out = softmax_attention(q.flatten(0, 1), k, v, options, None if bias is None else bias.flatten(0, 1))
    return out.unflatten(0, (sequences, len(own)))


def _sight(
    q: Tensor, held: Tensor | None, own: Tensor, keys: Tensor, filled: Tensor | None, options: Options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What clusters of queries see, arguments as in `_cluster_attention`.

    -> near clusters (S, m, r), a cluster itself first; summaries (S, m, H, M, D + Dv) and their bias (S, m, H, M), if
    there is any far.
    """
    sequences, clusters, parts = q.shape[:3]
    near, far = options.near, options.far and options.near < keys.shape[1]
    seen = own.view(1, -1, 1).expand(sequences, -1, -1)
    if near == 1 and not far:
        return seen, None, None
    mean = _mean_query(q.flatten(1, 2), None if held is None else held.flatten(1, 2)) * options.scale
    weights, mass = _weights_within(mean, keys, filled)
    if near > 1:
        seen = _nearest(mass.unflatten(1, (clusters, parts)), held, seen, near)
    if not far:
        return seen, None, None
    summaries, bias = (x.unflatten(1, (clusters, parts)) for x in _summaries(mean, weights, mass, keys))
    return seen, summaries, bias


def _mean_query(q: Tensor, filled: Tensor | None) -> Tensor:
    """q (S, m, N, D), zero in slots that are not filled -> (S, m, D)."""
    q = _scoring(q)
    return q.mean(dim=2) if filled is None else q.sum(dim=2) / filled.sum(dim=2, keepdim=True).clamp_min(1)


def _weights_within(mean: Tensor, keys: Tensor, filled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax of mean queries within every key cluster, and the log of its sum.  mean (S, m, D), keys (S, M, N, ..)
    -> weights (S, M, m, N), mass (S, m, M)"""
    clusters = keys.shape[1]
    k = _scoring(keys[..., : mean.shape[-1]])
    with full_precision(k.device):
        logits = mean.unsqueeze(1).expand(-1, clusters, -1, -1) @ k.mT
    if filled is not None:
        logits = logits.masked_fill(~filled.unsqueeze(2), EMPTY)
    log_weights = logits.log_softmax(dim=-1)
    mass = (logits[..., 0] - log_weights[..., 0]).mT  # a second pass for a log-sum-exp would cost as much as this
    return log_weights.exp(), mass


def _summaries(mean: Tensor, weights: Tensor, mass: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value of each cluster for each mean query (S, m, M, D + Dv), and their bias (S, m, M)."""
    with full_precision(keys.device):
        summaries = (weights @ _scoring(keys)).transpose(1, 2)
    bias = mass - (summaries[..., : mean.shape[-1]] * mean.unsqueeze(2)).sum(dim=-1)
    return summaries.to(keys.dtype), bias


def _nearest(mass: Tensor, held: Tensor | None, own: Tensor, near: int) -> Tensor:
    """The r clusters of most weight for the parts of a cluster, the cluster itself first.

    mass (S, m, H, M), held (S, m, H, n), own (S, m, 1) -> (S, m, r)
    """
    share = mass.detach().softmax(dim=-1)
    if held is not None:  # a part without a query has no say
        share = share * held.any(dim=-1, keepdim=True)
    return share.sum(dim=2).scatter(-1, own, float("inf")).topk(near, dim=-1).indices


def _blocks(keys: Tensor, clusters: Tensor) -> Tensor:
    """Tokens of chosen clusters, side by side.  keys (S, M, N, C), clusters (S, m, r) -> (S, m, r N, C)."""
    sequence = torch.arange(keys.shape[0], device=keys.device).view(-1, 1, 1) * keys.shape[1]
    rows = keys.flatten(2).flatten(0, 1).index_select(0, (sequence + clusters).flatten())
    return rows.view(*clusters.shape[:2], clusters.shape[2] * keys.shape[2], keys.shape[3])


def _bias(
    seen: Tensor, filled: Tensor | None, far: Tensor | None, prefix: int, size: int, dtype: torch.dtype
) -> Tensor | None:
    """What is added to logits, the same for all queries of a part.  -> (S, m, H | 1, 1, P + r N [+ H M])

    seen (S, m, r): near clusters.  filled (S, M, N).  far (S, m, H, M): the bias of summaries; those of the other
    parts, and of clusters that are near, are not seen.
    """
    if filled is None and far is None:
        return None
    sequences, clusters, near = seen.shape
    bias = torch.zeros(sequences, clusters, 1, prefix + near * size, dtype=dtype, device=seen.device)
    if filled is not None:
        bias[..., 0, prefix:] = _blocks(~filled.unsqueeze(-1), seen).squeeze(-1) * EMPTY
    if far is not None:
        parts = far.shape[2]
        far = far.scatter(-1, seen.unsqueeze(2).expand(-1, -1, parts, -1), EMPTY).to(dtype)
        own = torch.eye(parts, dtype=torch.bool, device=far.device).unsqueeze(-1)
        others = torch.where(own, far.unsqueeze(3), EMPTY).flatten(3)
        bias = torch.cat([bias.expand(-1, -1, parts, -1), others], dim=-1)
    return bias.unsqueeze(3)


def _scoring(x: Tensor) -> Tensor:
    """In the type that scores are computed in, with its gradient."""
    return x if x.dtype == torch.float64 else x.float()


class _Slots:
    """Tokens of a plan (B, h, L) in slots (B h, M, N) of its clusters, behind a prefix of P tokens.

    filled (B h, M, N): slots that hold a token; None where all do.  What moves is a permutation, up to slots and
    tokens that are masked, so its gradient is a gather, too.
    """

    def __init__(self, plan: Plan, prefix: int) -> None:
        batch, heads, length = plan.order.shape
        shape = (batch * heads, plan.num_clusters, plan.max_size)
        self.filled, self.real = None, None
        if _is_even(plan):
            tokens, slot_of_token = plan.order.reshape(shape), plan.inverse
        else:
            tokens, filled = (x.reshape(shape) for x in plan.slots)
            slot_of_token, self.filled = plan.slot_of_token, filled
            self.real = None if plan.unequal_sizes is None else plan.labels >= 0
        sequence = torch.arange(batch * heads, device=tokens.device).view(-1, 1, 1)
        self.token_rows = (tokens + sequence * length).flatten()  # of (B, h, L)
        self.slot_rows = (slot_of_token + sequence.view(batch, heads, 1) * (shape[1] * shape[2])).flatten()
        # of the output (B, P + L, h), whose prefix reads any row, and is written afterwards
        image, head = sequence // heads, sequence % heads
        self.out_rows = (((image * (prefix + length) + prefix + tokens) * heads) + head).flatten()
        self.out_slots = F.pad(self.slot_rows.view(batch, heads, length), (prefix, 0)).transpose(1, 2)
        self.shape = shape

    def take(self, x: Tensor) -> Tensor:
        """Zeros where no token is.  x (B, h, L, C) -> (B h, M, N, C)"""
        rows = permute_rows(x.reshape(-1, x.shape[-1]), self.token_rows, self.slot_rows)
        rows = rows.view(*self.shape, x.shape[-1])
        return rows if self.filled is None else rows.masked_fill(~self.filled.unsqueeze(-1), 0)

    def put_back(self, x: Tensor) -> Tensor:
        """Zeros for tokens in no cluster.  What the first P rows hold has no meaning.

        x (B h, M, N, C) -> (B, P + L, h, C)
        """
        if self.filled is not None:  # two slots may hold one token, and its gradient is for one of them
            x = x.masked_fill(~self.filled.unsqueeze(-1), 0)
        rows = permute_rows(x.reshape(-1, x.shape[-1]), self.out_slots.flatten(), self.out_rows)
        out = rows.view(*self.out_slots.shape, x.shape[-1])
        if self.real is None:
            return out
        prefix = out.shape[1] - self.real.shape[2]
        return out.masked_fill(F.pad(~self.real, (prefix, 0)).transpose(1, 2).unsqueeze(-1), 0)


# -- pieces that fit ---------------------------------------------------------------------------------


def _piece(q: Tensor, num_clusters: int) -> tuple[int, int]:
    """Images and heads to compute at a time; all at once in a compiled graph, which knows no sizes."""
    batch, heads, length, dim = q.shape
    if torch.compiler.is_compiling():
        return batch, heads
    chunk = CHUNK if q.device.type == "cpu" else CHUNK_ON_GPU
    floats = length * (2 * num_clusters + 12 * dim) + 8 * num_clusters**2 * dim
    if heads * floats <= chunk:
        return max(1, chunk // (max(1, heads) * floats)), max(1, heads)
    return 1, max(1, chunk // floats)


def _clusters_at_a_time(q: Tensor, keys: Tensor, options: Options) -> int:
    """Clusters of queries to compute at a time.  q (S, M, H, n, D), keys (S, M, N, C)"""
    sequences, clusters, size, width = keys.shape
    if torch.compiler.is_compiling():
        return clusters
    parts = q.shape[2]
    floats = sequences * (parts * clusters * (size + 3 * width) + 2 * options.near * size * width)
    chunk = CHUNK if q.device.type == "cpu" else CHUNK_ON_GPU
    return min(clusters, max(1, 8 * chunk // max(1, floats)))  # no floats of no images


def _split(tensors: Sequence[Tensor | None], size: int, dim: int) -> Iterable[Sequence[Any]]:
    """Pieces of tensors that belong together, along one axis; a None stays None."""
    if torch.compiler.is_compiling():
        return [tensors]
    count = len(tensors[0].split(size, dim))  # type: ignore[union-attr]
    return zip(*([None] * count if x is None else x.split(size, dim) for x in tensors))


def _joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=dim)
