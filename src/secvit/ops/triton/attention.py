"""Eq. 4: attention in clusters, in one kernel that reads rows by index and writes them in place.

No sorted copy of q, k, v or of the output is made: a program takes one tile of one cluster's queries,
finds their rows through the order, runs over the cluster's keys with an online softmax, and stores to
the tokens' own rows.  The backward does the same; every row has one writer, so it needs no atomics and
gives the same bits every time.  Which tokens make a cluster is decided before (see `order`).
"""

# without `from __future__ import annotations`: torch.library reads the types of the operators' arguments
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from secvit.ops.triton.rows import (
    LOG2_E,
    aligned,
    by_channel,
    cluster_ranks,
    load_rows,
    program_of,
    score_weights,
    softmax_step,
    store_rows,
    tile_tokens,
)

# Integers that differ from call to call.  Triton would compile a binary for those that are 1 or a multiple of 16; what
# that tells about alignment, UNIT says for all of them.
SIZES = [f"{name}_{axis}" for name in ("order", "q", "k", "v", "out", "grad", "d") for axis in "bhl"]
SIZES += ["heads", "length", "num_clusters", "tiles"]  # one binary for all of them


@triton.jit(do_not_specialize=SIZES)
def _forward(
    q, k, v, order, bounds, out, lse,
    order_b, order_h, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, out_b, out_h, out_l,
    heads, length, num_clusters, tiles, scale,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, EQUAL: tl.constexpr, SINGLE: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Eq. 4 for one tile of a cluster's queries: an online softmax over the tiles of its keys.

    scale: log2(e) times the caller's, so that exp2 gives what exp would.  SINGLE: the cluster is one tile.
    """
    b, h, sequence, cluster, tile = program_of(heads, num_clusters, tiles)
    start, stop = cluster_ranks(bounds, sequence, cluster, num_clusters, length, EQUAL)
    if start + tile * TILE >= stop:  # clusters have as many tiles as the largest needs
        return
    order += b * order_b + h * order_h
    # [TILE]
    rank, real, token = tile_tokens(order, start + tile * TILE, stop, TILE)
    # [TILE, D_PAD]
    query = load_rows(q + (b * q_b + h * q_h) * UNIT, token, real, q_l, D, D_PAD, UNIT, INTERPRETED)
    k += (b * k_b + h * k_h) * UNIT
    v += (b * v_b + h * v_h) * UNIT
    # [TILE]: highest score of each query so far, and its sum of 2**(score - best)
    best = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    # [TILE, D_PAD]: values, each times 2**(score - best), summed
    mixed = tl.zeros([TILE, D_PAD], tl.float32)
    for i in range(0, 1 if SINGLE else tl.cdiv(stop - start, TILE)):
        _, key_real, key_token = tile_tokens(order, start + i * TILE, stop, TILE)
        # [TILE, D_PAD]
        key = load_rows(k, key_token, key_real, k_l, D, D_PAD, UNIT, INTERPRETED)
        value = load_rows(v, key_token, key_real, v_l, D, D_PAD, UNIT, INTERPRETED)
        # [TILE, TILE]: queries, keys
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        score = tl.where(key_real[None, :], score, float("-inf"))
        best, total, mixed = softmax_step(score, value, best, total, mixed, PRECISION)
    store_rows(out + (b * out_b + h * out_h) * UNIT, token, real, out_l, mixed / total[:, None], D, D_PAD, UNIT)
    tl.store(lse + sequence * length + rank, best + tl.log2(total), mask=real)


@triton.jit(do_not_specialize=SIZES)
def _backward(
    q, k, v, order, bounds, out, lse, grad, dq, dk, dv,
    order_b, order_h, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, out_b, out_h, out_l, grad_b, grad_h, grad_l,
    d_b, d_h, d_l, heads, length, num_clusters, tiles, scale, dscale,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, EQUAL: tl.constexpr, SINGLE: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of a cluster's tokens: as keys and values under all queries, and as queries.

    A program writes its own tokens' rows alone, hence no atomics; scores are computed again from lse, by rank.
    scale is log2(e) times the caller's, as in `_forward`; dscale the caller's, for the gradient of q k^T scale.
    """
    b, h, sequence, cluster, tile = program_of(heads, num_clusters, tiles)
    start, stop = cluster_ranks(bounds, sequence, cluster, num_clusters, length, EQUAL)
    if start + tile * TILE >= stop:
        return
    order += b * order_b + h * order_h
    q += (b * q_b + h * q_h) * UNIT
    k += (b * k_b + h * k_h) * UNIT
    v += (b * v_b + h * v_h) * UNIT
    out += (b * out_b + h * out_h) * UNIT
    grad += (b * grad_b + h * grad_h) * UNIT
    lse += sequence * length
    # [TILE]
    rank, real, token = tile_tokens(order, start + tile * TILE, stop, TILE)
    # [TILE, D_PAD]
    own_query = load_rows(q, token, real, q_l, D, D_PAD, UNIT, INTERPRETED)
    own_key = load_rows(k, token, real, k_l, D, D_PAD, UNIT, INTERPRETED)
    own_value = load_rows(v, token, real, v_l, D, D_PAD, UNIT, INTERPRETED)
    own_grad = load_rows(grad, token, real, grad_l, D, D_PAD, UNIT, INTERPRETED)
    own_out = load_rows(out, token, real, out_l, D, D_PAD, UNIT, INTERPRETED)
    # [TILE]
    own_lse = tl.load(lse + rank, mask=real, other=0.0)
    if SINGLE:  # the cluster is this tile: one product of each kind
        # [TILE, TILE]: queries, keys
        weight, dscore = score_weights(
            own_query, own_key, own_value, own_grad, own_out, own_lse, real, scale, 0.0, PRECISION
        )
        dscore = dscore.to(own_key.dtype)
        # [TILE, D_PAD]
        dvalue = tl.dot(tl.trans(weight.to(own_grad.dtype)), own_grad, input_precision=PRECISION)
        dkey = tl.dot(tl.trans(dscore), own_query, input_precision=PRECISION)
        dquery = tl.dot(dscore, own_key, input_precision=PRECISION)
    else:
        # [TILE, D_PAD]
        dvalue = tl.zeros([TILE, D_PAD], tl.float32)
        dkey = tl.zeros([TILE, D_PAD], tl.float32)
        dquery = tl.zeros([TILE, D_PAD], tl.float32)
        for first in range(start, stop, TILE):  # this tile's keys and values, all queries
            # [TILE]
            at, there, other = tile_tokens(order, first, stop, TILE)
            # [TILE, D_PAD]
            query = load_rows(q, other, there, q_l, D, D_PAD, UNIT, INTERPRETED)
            its_grad = load_rows(grad, other, there, grad_l, D, D_PAD, UNIT, INTERPRETED)
            its_out = load_rows(out, other, there, out_l, D, D_PAD, UNIT, INTERPRETED)
            its_lse = tl.load(lse + at, mask=there, other=0.0)
            # [TILE, TILE]: others' queries, own keys
            weight, dscore = score_weights(
                query, own_key, own_value, its_grad, its_out, its_lse, real, scale, 0.0, PRECISION
            )
            dvalue += tl.dot(tl.trans(weight.to(its_grad.dtype)), its_grad, input_precision=PRECISION)
            dkey += tl.dot(tl.trans(dscore.to(query.dtype)), query, input_precision=PRECISION)
        for first in range(start, stop, TILE):  # this tile's queries, all keys and values
            _, there, other = tile_tokens(order, first, stop, TILE)
            # [TILE, D_PAD]
            key = load_rows(k, other, there, k_l, D, D_PAD, UNIT, INTERPRETED)
            value = load_rows(v, other, there, v_l, D, D_PAD, UNIT, INTERPRETED)
            # [TILE, TILE]: own queries, others' keys
            _, dscore = score_weights(own_query, key, value, own_grad, own_out, own_lse, there, scale, 0.0, PRECISION)
            dquery += tl.dot(dscore.to(key.dtype), key, input_precision=PRECISION)
    place = (b * d_b + h * d_h) * UNIT
    store_rows(dq + place, token, real, d_l, dquery * dscale, D, D_PAD, UNIT)
    store_rows(dk + place, token, real, d_l, dkey * dscale, D, D_PAD, UNIT)
    store_rows(dv + place, token, real, d_l, dvalue, D, D_PAD, UNIT)


INTERPRETED = not isinstance(_forward, triton.JITFunction)


def options(max_size: int, dim: int, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    """Tile and warps for clusters of up to `max_size` tokens: one tile a cluster where that is possible.

    As large as the registers of sm_90 hold, by the compiler's report.
    """
    padded = max(16, triton.next_power_of_2(dim))
    if dtype.itemsize == 2 and max_size <= 128 and (padded <= 64 or not backward):
        largest = 128
    else:
        side = 128 // (2 if backward else 1) // (2 if dtype.itemsize == 4 else 1)
        largest = min(side, 64 * side // padded)
    tile = min(largest, max(16, triton.next_power_of_2(max_size)))
    single = max_size <= tile
    warps = 8 if tile > 64 or (backward and not single) else 4
    shapes = {"D": dim, "D_PAD": padded, "TILE": tile, "SINGLE": single}
    return {**shapes, "num_warps": warps, "enable_fp_fusion": True}  # the latter named, or triton 3.9 warns


def _launch(kernel: Any, tensors: list[Any], views: list[Tensor], scales: list[float], arguments: list[Any]) -> None:
    """A program for every tile of every cluster.  views (B, h, L, D): those whose strides the kernel takes."""
    order, bounds, num_clusters, max_size = arguments
    batch, heads, length, dim = views[0].shape
    if not batch * heads * length:
        return
    settings = options(max_size, dim, views[0].dtype, backward=kernel is _backward)
    tiles = triton.cdiv(max_size, settings["TILE"])
    strides, unit = aligned(views)
    exact = torch.get_float32_matmul_precision() == "highest"
    with torch.cuda.device_of(order):
        kernel[(batch * heads * num_clusters * tiles,)](
            *tensors, *order.stride()[:2], *strides,
            heads, length, num_clusters, tiles, *scales,
            EQUAL=bounds is None, UNIT=unit, PRECISION="tf32x3" if exact else "tf32", INTERPRETED=INTERPRETED,
            **settings,
        )  # fmt: skip


def _new(x: Tensor, shape: list[int], bounds: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """For rows that a kernel writes: all of them where every token is in a cluster, else zeros wait there."""
    make = torch.empty if bounds is None else torch.zeros
    return make(shape, device=x.device, dtype=dtype or x.dtype)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, bounds: Tensor | None, num_clusters: int, max_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Eq. 4 by an order and the ranks at which clusters begin.  q k v (B, h, L, D) -> out (B, L, h, D), lse (B, h, L).

    order (B, h, L).  bounds (B, h, M + 1), or None for the equal clusters of `partition_sizes`; tokens from the
    last bound on are in no cluster, and zero in the output.
    lse: log2 of each query's sum of exponentials, by rank; the backward needs it.
    """
    q, k, v, order = (by_channel(x) for x in (q, k, v, order))
    batch, heads, length, dim = q.shape
    out = _new(q, [batch, length, heads, dim], bounds)
    lse = _new(q, [batch, heads, length], bounds, torch.float32)
    _launch(
        _forward, [q, k, v, order, bounds, out, lse], [q, k, v, out.transpose(1, 2)], [scale * LOG2_E],
        [order, bounds, num_clusters, max_size],
    )  # fmt: skip
    return out, lse


def _attend_packed(qkv: Tensor, order: Tensor, num_clusters: int, scale: float) -> tuple[Tensor, Tensor]:
    """`_attend` in equal clusters of packed rows, whose gradient is packed too.  qkv (B, L, h, 3, D)"""
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    return _attend(q, k, v, order, None, num_clusters, triton.cdiv(q.shape[2], num_clusters), scale)


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, order: Tensor, bounds: Tensor | None,
    num_clusters: int, max_size: int, scale: float,
) -> Tensor:  # fmt: skip
    """Gradients of `_attend`.  grad out (B, L, h, D), the others as there -> dqkv (B, L, h, 3, D)."""
    grad, q, k, v, order = (by_channel(x) for x in (grad, q, k, v, order))
    batch, heads, length, dim = q.shape
    dqkv = _new(q, [batch, length, heads, 3, dim], bounds)
    dq, dk, dv = dqkv.permute(3, 0, 2, 1, 4).unbind(0)
    _launch(
        _backward, [q, k, v, order, bounds, out, lse, grad, dq, dk, dv],
        [q, k, v, out.transpose(1, 2), grad.transpose(1, 2), dq], [scale * LOG2_E, scale],
        [order, bounds, num_clusters, max_size],
    )  # fmt: skip
    return dqkv


attend_clusters = torch.library.custom_op("secvit::attend_clusters", _attend, mutates_args=())
attend_clusters_packed = torch.library.custom_op("secvit::attend_clusters_packed", _attend_packed, mutates_args=())
attend_clusters_backward = torch.library.custom_op(
    "secvit::attend_clusters_backward", _attend_backward, mutates_args=()
)


@attend_clusters.register_fake
def _(q, k, v, order, bounds, num_clusters, max_size, scale):
    batch, heads, length, dim = q.shape
    return q.new_empty(batch, length, heads, dim), q.new_empty(batch, heads, length, dtype=torch.float32)


@attend_clusters_packed.register_fake
def _(qkv, order, num_clusters, scale):
    batch, length, heads, _, dim = qkv.shape
    return qkv.new_empty(batch, length, heads, dim), qkv.new_empty(batch, heads, length, dtype=torch.float32)


@attend_clusters_backward.register_fake
def _(grad, q, k, v, out, lse, order, bounds, num_clusters, max_size, scale):
    batch, heads, length, dim = q.shape
    return q.new_empty(batch, length, heads, 3, dim)


def _save(ctx, inputs, output):
    *tensors, order, bounds, num_clusters, max_size, scale = inputs
    ctx.save_for_backward(*tensors, *output, order, bounds)
    ctx.constants = num_clusters, max_size, scale


def _derive(ctx, grad, _):
    dqkv = attend_clusters_backward(grad, *ctx.saved_tensors, *ctx.constants)
    return *dqkv.permute(3, 0, 2, 1, 4).unbind(0), None, None, None, None, None


def _save_packed(ctx, inputs, output):
    qkv, order, num_clusters, scale = inputs
    ctx.save_for_backward(qkv, *output, order)
    ctx.constants = num_clusters, triton.cdiv(qkv.shape[1], num_clusters), scale


def _derive_packed(ctx, grad, _):
    qkv, out, lse, order = ctx.saved_tensors
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    return attend_clusters_backward(grad, q, k, v, out, lse, order, None, *ctx.constants), None, None, None


def _derive_again(ctx, *grads):
    raise RuntimeError('backend="triton" has no second derivatives; use backend="sdpa" or "math", which have')


attend_clusters_backward.register_autograd(_derive_again)
attend_clusters.register_autograd(_derive, setup_context=_save)
attend_clusters_packed.register_autograd(_derive_packed, setup_context=_save_packed)
