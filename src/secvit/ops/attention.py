"""Eqs. 1 to 4: attention of each token within its cluster, on plain batched attention.

This file is the call: what is asked for, whether it can be, and which way it goes.  Equal clusters go by
`rows`, others by `slots`; what computes the softmax is in `backends`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops import reference, reference_near_far
from secvit.ops.backends import (
    BACKENDS,
    Options,
    check_near,
    softmax_attention,
    takes_triton,
    triton_attention,
    triton_packed_attention,
)
from secvit.ops.clustering import Clustering, Keys
from secvit.ops.near_far import near_far_attention
from secvit.ops.order import Plan, check_mask, largest_size, order_by, resolve_num_clusters, sec_scores
from secvit.ops.partitions import Grid, Partition, shown_name
from secvit.ops.rows import packed_row_attention, row_attention, slice_attention, slice_clusters
from secvit.ops.slots import slot_attention


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
    is_causal: bool = False,
    num_prefix_tokens: int = 0,
    dropout_p: float = 0.0,
    partition: Partition = "sec",
    grid: Grid | None = None,
    near: int = 1,
    far: bool = False,
) -> Tensor:
    """Eqs. 1 to 4: attention of each token within its cluster.  q k v (B, h, L, D) -> (B, h, L, D).

    num_clusters | cluster_size: M clusters, or as many as keep each at `cluster_size` tokens or fewer.
    mask (B, L): True for real tokens.  Padded tokens enter no centre and no cluster, are attended to by
        none, and come out as zeros.
    scale: default D ** -0.5.  dropout_p: dropout of the attention weights.
    backend: "sdpa", "math" (softmax of a product), "triton" (fused kernels on a GPU, for float32, bfloat16 and
        float16 up to D = 128; no dropout or second derivatives), "reference" (loops),
        or "auto": as the device likes it; triton where clusters hold at most `TRITON_SIZE` tokens, none as yet.
    plan: a partition made elsewhere (`secvit.cluster`, any rival), instead of a count or size.
    shared: one order for all heads, from the keys of all heads side by side.
    num_prefix_tokens: the first P tokens ([cls], registers) are outside the partition: keys and
        values in every cluster, and their own queries attend to all tokens.  Counts, sizes and plans
        speak of the other L - P tokens; a mask (B, L) covers all and is True for the prefix.
    partition, grid: as in `secvit.cluster`, made from the keys; "tree" from queries and keys.
    near, far: beside the paper.  Each cluster attends to the `near` clusters that weigh most for its mean query,
        itself among them, and with far=True to one summary of every other cluster (`secvit.ops.near_far`).
        near=1 and far=False is the paper; near=M is full attention.
    No gradient flows through scores or order.  Causal attention is refused: every rank depends on later tokens.
    """
    check_qkv(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = Options(scale, backend, num_prefix_tokens, dropout_p, near, far)
    _check(q, options, is_causal)
    if plan is not None:
        _check_plan(num_clusters, cluster_size, mask, shared, backend, partition)
        _check_near(near, plan.num_clusters)
        return _planned(q, k, v, plan.per_head(k[:, :, num_prefix_tokens:]), options)
    num_clusters = resolve_num_clusters(k.shape[-2] - num_prefix_tokens, num_clusters, cluster_size)
    _check_near(near, num_clusters)
    mask = check_mask(mask, k)
    if backend == "reference":
        return _by_loops(q, k, v, num_clusters, mask, shared, partition, options)
    if partition == "sec" and mask is None and not shared and options.inside and not num_prefix_tokens:
        if takes_triton(options, q, k, v, num_clusters, largest_size(k.shape[2], num_clusters)):
            order = torch.ops.secvit.order_tokens(k.detach())
            return triton_attention(q, k, v, Plan.equal(order, num_clusters), options.scale)
    clustering = Clustering(num_clusters, num_prefix_tokens=num_prefix_tokens, partition=partition, shared=shared)
    return _planned(q, k, v, _plan(q, k, clustering, grid, mask), options, mask)


def _plan(q: Tensor, k: Tensor, clustering: Clustering, grid: Grid | None, mask: Tensor | None) -> Plan:
    """Eqs. 1 to 3, per head; where all heads share one, by those of all side by side.  mask (B, 1, P + L)"""
    prefix = clustering.num_prefix_tokens
    queries, keys = (x[:, :, prefix:] for x in (q, k))
    real = None if mask is None else mask[:, 0, prefix:]
    scored = [x.transpose(1, 2).flatten(2) for x in (queries, keys)] if clustering.shared else [queries, keys]
    return clustering.plan(Keys(scored[1], grid, queries=scored[0]), real).per_head(keys)


def _planned(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: Options, mask: Tensor | None = None) -> Tensor:
    """Eq. 4 by a plan per head.  mask (B, 1, P + L): True for real tokens; what the plan says if None."""
    fused = takes_triton(options, q, k, v, plan.num_clusters, plan.max_size)
    if fused and options.inside and not options.num_prefix_tokens:
        return triton_attention(q, k, v, plan, options.scale)
    if mask is None and plan.unequal_sizes is not None:
        mask = F.pad(plan.labels >= 0, (options.num_prefix_tokens, 0), value=True)
    if mask is not None:  # padded rows may hold anything, NaN included
        q, k, v = (x.masked_fill(~mask.unsqueeze(-1), 0) for x in (q, k, v))
    if fused or not options.inside:
        return near_far_attention(q, k, v, plan, options, mask, fused)
    if plan.unequal_sizes is None and not torch.compiler.is_exporting():
        return row_attention(q, k, v, plan, options)
    return slot_attention(q, k, v, plan, options, mask)


def _by_loops(
    q: Tensor, k: Tensor, v: Tensor, num_clusters: int, mask: Tensor | None, shared: bool, partition: Partition,
    options: Options,
) -> Tensor:  # fmt: skip
    if shared:
        raise ValueError('backend="reference" is the paper\'s partition per head; drop shared=')
    if options.dropout_p:
        raise ValueError('backend="reference" drops no weights; drop dropout_p=')
    if partition not in ("sec", "tree"):
        name = shown_name(partition)
        raise ValueError(f'backend="reference" knows "sec" and "tree", not partition={name!r}; use backend="auto"')
    mask = None if mask is None else mask[:, 0]
    if partition == "sec" and options.inside:
        return reference.sec_attention(q, k, v, num_clusters, mask, options.scale, options.num_prefix_tokens)
    return reference_near_far.sec_attention(
        q, k, v, num_clusters, partition == "tree", options.near, options.far, mask, options.scale,
        options.num_prefix_tokens,
    )  # fmt: skip


def attend_sorted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_clusters: int,
    scale: float | None = None,
    num_prefix_tokens: int = 0,
    dropout_p: float = 0.0,
    near: int = 1,
    far: bool = False,
) -> Tensor:
    """Eqs. 3, 4 on tokens that are in cluster order already.  q k v (B, h, P + L, D) -> (B, h, P + L, D).

    For layers that go by another layer's order: `Plan.take` once, any number of these, `Plan.put_back`.
    """
    prefix = num_prefix_tokens
    options = Options(q.shape[-1] ** -0.5 if scale is None else scale, "auto", prefix, dropout_p, near, far)
    if torch.compiler.is_exporting() or not options.inside:
        order = torch.arange(q.shape[2] - prefix, device=q.device).expand(*q.shape[:2], -1)
        return _planned(q, k, v, Plan.equal(order, num_clusters), options)
    keys, values = (slice_clusters(x.flatten(0, 1), num_clusters, prefix) for x in (k, v))
    return slice_attention(q.flatten(0, 1), keys, values, num_clusters, options).unflatten(0, q.shape[:2])


# -- packed rows -----------------------------------------------------------------------------------


def sec_attention_packed(qkv: Tensor, num_clusters: int, scale: float, backend: str = "auto") -> Tensor:
    """Eqs. 1 to 4, one gather for q, k and v together.  qkv (B, L, h, 3, D) -> (B, L, h, D).

    The same function as `sec_attention` without masks; the caller sees to 1 <= num_clusters <= L.
    """
    return packed_attention_and_values(qkv, num_clusters, scale, backend)[0]


def packed_attention_and_values(
    qkv: Tensor, num_clusters: int, scale: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`sec_attention_packed`, and v as it came, for LePE: gradients of both meet in one tensor.  -> 2 x (B, L, h, D)"""
    options = Options(scale, backend)
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    if num_clusters == 1 and backend != "triton":
        return softmax_attention(q, k, v, options).transpose(1, 2), v.transpose(1, 2)
    if takes_triton(options, q, k, v, num_clusters, largest_size(qkv.shape[1], num_clusters)):
        return triton_packed_attention(qkv, num_clusters, scale), v.transpose(1, 2)
    order = packed_order(qkv)
    if torch.compiler.is_exporting():
        return slot_attention(q, k, v, Plan.equal(order, num_clusters), options).transpose(1, 2), v.transpose(1, 2)
    return packed_row_attention(qkv, order, num_clusters, options)


def packed_order(qkv: Tensor) -> Tensor:
    """Eqs. 1, 2 on packed rows: token indices by rising similarity to the mean key.  (B, L, h, 3, D) -> (B, h, L)."""
    return order_by(sec_scores(qkv[:, :, :, 1].transpose(1, 2)))


# -- arguments -------------------------------------------------------------------------------------


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """A ValueError unless q, k and v are (B, h, L, D) of the same tokens; v may be of another width."""
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"q, k, v of shapes {_shapes(q, k, v)}; give (B, h, L, D)")
    if q.shape != k.shape or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"q, k, v of shapes {_shapes(q, k, v)} do not belong together; give queries, keys and values of the "
            "same tokens: all share B, h and L, q and k share D"
        )


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors)


def _check(q: Tensor, options: Options, is_causal: bool) -> None:
    backend, num_prefix_tokens = options.backend, options.num_prefix_tokens
    check_near(options.near, options.far)
    if is_causal:
        raise ValueError(
            "SEC cannot be causal: the centre and every token's rank depend on later tokens; "
            "use it for images, encoders or bidirectional prefixes"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; choose one of {', '.join(BACKENDS)}")
    if num_prefix_tokens and not 0 < num_prefix_tokens < q.shape[-2]:
        raise ValueError(
            f"num_prefix_tokens={num_prefix_tokens} for {q.shape[-2]} tokens; give fewer prefix tokens than tokens"
        )


def _check_near(near: int, num_clusters: int) -> None:
    if near > num_clusters:
        raise ValueError(f"near={near} of {num_clusters} clusters; choose near from 1 to {num_clusters}")


def _check_plan(
    num_clusters: int | None, cluster_size: int | None, mask: Tensor | None, shared: bool, backend: str,
    partition: Partition,
) -> None:  # fmt: skip
    """What may come beside a plan."""
    if num_clusters is not None or cluster_size is not None:
        raise ValueError("give a plan, or num_clusters, or cluster_size; not two of them")
    if mask is not None:
        raise ValueError("a plan knows its padding; give mask= to secvit.cluster, or no plan")
    if backend == "reference":
        raise ValueError('backend="reference" is the paper\'s partition per head; drop plan=')
    if shared:
        raise ValueError("a plan says itself whether heads share an order; drop shared=")
    if partition != "sec":
        raise ValueError("a plan is a partition; drop partition=")
