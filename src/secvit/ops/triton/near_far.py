"""Near and far in one kernel: attention to the clusters that are seen, prefix tokens, and summaries of the others.

A program takes one tile of queries of one part of a cluster (a half; the whole where there are no summaries), and runs
with one online softmax over the tiles of the clusters that it sees, read by index and never copied, then over the
summaries that were made for its part.  The backward goes by lists of the clusters that see a cluster, so every row has
one writer, as in `attention`.  What is near, and the summaries, are batched products made before
(`secvit.ops.near_far`).
"""

# without `from __future__ import annotations`: torch.library reads the types of the operators' arguments
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from secvit.ops.triton.attention import INTERPRETED, options
from secvit.ops.triton.near_far_kernels import backward_keys, backward_queries, backward_summaries, forward
from secvit.ops.triton.rows import LOG2_E, aligned, by_channel


def _settings(bounds: Tensor | None, max_size: int, parts: int, dim: int, dtype: torch.dtype, backward: bool) -> Any:
    """Constants of a kernel: a tile is at most a part of a cluster."""
    chosen = options(triton.cdiv(max_size, parts), dim, dtype, backward)
    chosen.pop("SINGLE")
    exact = torch.get_float32_matmul_precision() == "highest"
    return {**chosen, "EQUAL": bounds is None, "PRECISION": "tf32x3" if exact else "tf32", "INTERPRETED": INTERPRETED}


def _attend_near_far(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, bounds: Tensor | None, seen: Tensor, far_key: Tensor | None,
    far_value: Tensor | None, far_bias: Tensor | None, num_clusters: int, max_size: int, parts: int, prefix: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of all tokens in clusters to what they see.  q k v (B, h, P + L, D) -> out (B, P + L, h, D), lse.

    order (B, h, L), bounds (B, h, M + 1) or None: as in `attend_clusters`.  seen (B h, M, r): clusters, a cluster's
    own first; prefix tokens are seen by all.  far_key far_value (B h, M, H, M, D), far_bias (B h, M, H, M) float32:
    a summary of each cluster for each of the H parts of each cluster, with a bias of next to minus infinity for
    those that are seen; or None.  Zeros for the prefix's own queries, and for tokens in no cluster.
    """
    q, k, v, order = (by_channel(x) for x in (q, k, v, order))
    batch, heads, length, dim = (*order.shape, q.shape[-1])
    everywhere = bounds is None and not prefix
    out = (torch.empty if everywhere else torch.zeros)(
        batch, prefix + length, heads, dim, device=q.device, dtype=q.dtype
    )
    lse = torch.zeros(batch, heads, length, device=q.device, dtype=torch.float32)
    if not out.numel():
        return out, lse
    settings = _settings(bounds, max_size, parts, dim, q.dtype, False)
    tiles = triton.cdiv(triton.cdiv(max_size, parts), settings["TILE"])
    strides, unit = aligned([q, k, v, out.transpose(1, 2)])
    watched = _with_prefix(seen, num_clusters, prefix)
    with torch.cuda.device_of(order):
        forward[(batch * heads * num_clusters * parts * tiles,)](
            q, k, v, order, bounds, watched, *_dense(far_key, far_value, far_bias), out, lse, *order.stride()[:2],
            *strides, heads, length, num_clusters, prefix, watched.shape[2], tiles, scale * LOG2_E,
            PARTS=parts, FAR=far_key is not None, UNIT=unit, **settings,
        )  # fmt: skip
    return out, lse


def _attend_near_far_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, order: Tensor, bounds: Tensor | None,
    seen: Tensor, far_key: Tensor | None, far_value: Tensor | None, far_bias: Tensor | None, num_clusters: int,
    max_size: int, parts: int, prefix: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `_attend_near_far` -> dqkv (B, P + L, h, 3, D), and of the summaries' keys, values and bias."""
    grad, q, k, v, order = (by_channel(x) for x in (grad, q, k, v, order))
    batch, heads, length, dim = (*order.shape, q.shape[-1])
    dqkv = torch.zeros(batch, prefix + length, heads, 3, dim, device=q.device, dtype=q.dtype)
    dq, dk, dv = dqkv.permute(3, 0, 2, 1, 4).unbind(0)
    shape = (batch * heads, num_clusters, parts, num_clusters) if far_key is not None else (0, 0, 0, 0)
    dkey = torch.zeros(*shape, dim, device=q.device, dtype=q.dtype)
    dvalue = torch.zeros_like(dkey)
    dbias = torch.zeros(shape, device=q.device, dtype=torch.float32)
    if not dqkv.numel():
        return dqkv, dkey, dvalue, dbias
    settings = _settings(bounds, max_size, parts, dim, q.dtype, True)
    rows = {"q": q, "k": k, "v": v, "out": out.transpose(1, 2), "grad": grad.transpose(1, 2), "d": dq}
    watched, far = _with_prefix(seen, num_clusters, prefix), _dense(far_key, far_value, far_bias)
    scales = (scale * LOG2_E, scale)
    tiles = triton.cdiv(triton.cdiv(max_size, parts), settings["TILE"])
    with torch.cuda.device_of(order):
        strides, unit = aligned(list(rows.values()))
        backward_queries[(batch * heads * num_clusters * parts * tiles,)](
            q, k, v, order, bounds, watched, *far, out, lse, grad, dq, *order.stride()[:2], *strides,
            heads, length, num_clusters, prefix, watched.shape[2], tiles, *scales,
            PARTS=parts, FAR=far_key is not None, UNIT=unit, **settings,
        )  # fmt: skip
        askers, borders = seen_by(watched, num_clusters)
        tiles = triton.cdiv(max(max_size, prefix), settings["TILE"])
        backward_keys[(batch * heads * (num_clusters + 1) * tiles,)](
            q, k, v, order, bounds, askers, borders, out, lse, grad, dk, dv, *order.stride()[:2], *strides,
            heads, length, num_clusters, prefix, askers.shape[1], tiles, *scales, UNIT=unit, **settings,
        )  # fmt: skip
        if far_key is not None:
            strides, unit = aligned([rows[name] for name in ("q", "out", "grad")])
            tiles = triton.cdiv(num_clusters, settings["TILE"])
            backward_summaries[(batch * heads * num_clusters * parts * tiles,)](
                q, order, bounds, *far, out, lse, grad, dkey, dvalue, dbias, *order.stride()[:2], *strides,
                heads, length, num_clusters, prefix, tiles, *scales, PARTS=parts, UNIT=unit, **settings,
            )  # fmt: skip
    return dqkv, dkey, dvalue, dbias


def _dense(far_key: Tensor | None, far_value: Tensor | None, far_bias: Tensor | None) -> list[Tensor | None]:
    """Summaries as the kernels read them."""
    if far_key is None or far_value is None or far_bias is None:
        return [None, None, None]
    return [far_key.contiguous(), far_value.contiguous(), far_bias.contiguous() * LOG2_E]


def _with_prefix(seen: Tensor, num_clusters: int, prefix: int) -> Tensor:
    """Clusters that are seen, and the prefix behind them if there is one.  (S, M, r) -> the same, or (S, M, r + 1)"""
    return (F.pad(seen, (0, 1), value=num_clusters) if prefix else seen).to(torch.int32).contiguous()


def seen_by(seen: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """The clusters that see each one, those of cluster 0 first, the prefix's last.  seen (S, M, r), int32

    -> askers (S, M r), and borders (S, M + 2): where those of each begin, and their end.
    """
    order = seen.flatten(1).sort(dim=-1, stable=True)
    askers = (order.indices // seen.shape[2]).to(torch.int32)
    wanted = torch.arange(num_clusters + 2, device=seen.device, dtype=seen.dtype).expand(len(seen), -1).contiguous()
    return askers, torch.searchsorted(order.values.contiguous(), wanted).to(torch.int32)


attend_near_far = torch.library.custom_op("secvit::attend_near_far", _attend_near_far, mutates_args=())
attend_near_far_backward = torch.library.custom_op(
    "secvit::attend_near_far_backward", _attend_near_far_backward, mutates_args=()
)


@attend_near_far.register_fake
def _(q, k, v, order, bounds, seen, far_key, far_value, far_bias, num_clusters, max_size, parts, prefix, scale):
    batch, heads, length = order.shape
    out = q.new_empty(batch, prefix + length, heads, q.shape[-1])
    return out, q.new_empty(batch, heads, length, dtype=torch.float32)


@attend_near_far_backward.register_fake
def _(
    grad, q, k, v, out, lse, order, bounds, seen, far_key, far_value, far_bias, num_clusters, max_size, parts, prefix,
    scale,
):  # fmt: skip
    batch, heads, length = order.shape
    dim = q.shape[-1]
    shape = (batch * heads, num_clusters, parts, num_clusters) if far_key is not None else (0, 0, 0, 0)
    dfar = q.new_empty(*shape, dim)
    dqkv = q.new_empty(batch, prefix + length, heads, 3, dim)
    return dqkv, dfar, torch.empty_like(dfar), q.new_empty(shape, dtype=torch.float32)


def _save(ctx, inputs, output):
    q, k, v, order, bounds, seen, far_key, far_value, far_bias, *constants = inputs
    ctx.save_for_backward(q, k, v, *output, order, bounds, seen, far_key, far_value, far_bias)
    ctx.constants = constants


def _derive(ctx, grad, _):
    dqkv, dkey, dvalue, dbias = attend_near_far_backward(grad, *ctx.saved_tensors, *ctx.constants)
    far = (None, None, None) if ctx.saved_tensors[-1] is None else (dkey, dvalue, dbias)
    return *dqkv.permute(3, 0, 2, 1, 4).unbind(0), None, None, None, *far, *[None] * 5


def _derive_again(ctx, *grads):
    raise RuntimeError('backend="triton" has no second derivatives; use backend="sdpa" or "math", which have')


attend_near_far_backward.register_autograd(_derive_again)
attend_near_far.register_autograd(_derive, setup_context=_save)
