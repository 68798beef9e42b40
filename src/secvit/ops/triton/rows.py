"""What the attention kernels share: whose program this is, rows read and written by index, weights of a tile."""

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634  # the kernels use 2**x, which is what the hardware has


@triton.jit
def program_of(heads, num_clusters, tiles):
    """Image, head, cluster and tile of this program.

    Tiles of one cluster are neighbours, for they read the same keys.  Offsets are int64: B h L D may pass 2**31.
    """
    program = tl.program_id(0)
    tile = program % tiles
    cluster = program // tiles % num_clusters
    sequence = program // tiles // num_clusters
    return (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64), sequence.to(tl.int64), cluster, tile


@triton.jit
def cluster_ranks(bounds, sequence, cluster, num_clusters, length, EQUAL: tl.constexpr):
    """First rank of a cluster, and the one after its last."""
    if EQUAL:  # the rule of `partition_sizes`
        size = length // num_clusters
        remainder = length % num_clusters
        start = cluster * size + tl.minimum(cluster, remainder)
        stop = (cluster + 1) * size + tl.minimum(cluster + 1, remainder)
    else:
        border = bounds + sequence * (num_clusters + 1) + cluster
        start = tl.load(border).to(tl.int32)
        stop = tl.load(border + 1).to(tl.int32)
    return start, stop


@triton.jit
def tile_tokens(order, first, stop, TILE: tl.constexpr):
    """Ranks of a tile, which of them the cluster has, and their tokens.  (TILE)"""
    # [TILE]
    rank = first + tl.arange(0, TILE)
    real = rank < stop
    return rank, real, tl.load(order + rank, mask=real, other=0)


@triton.jit
def softmax_step(score, value, best, total, mixed, PRECISION: tl.constexpr):
    """An online softmax, one tile of keys on.  score (queries, keys), value (keys, D_PAD) -> best, total, mixed

    best, total (queries): highest score so far, and the sum of 2**(score - best).  mixed (queries, D_PAD): values, each
    times that, summed.
    """
    # [queries]
    higher = tl.maximum(best, tl.max(score, axis=1))
    # [queries, keys]
    weight = tl.exp2(score - higher[:, None])
    # [queries]: what was summed by the former best is brought to the new one
    shrink = tl.exp2(best - higher)
    total = total * shrink + tl.sum(weight, axis=1)
    return higher, total, mixed * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)


@triton.jit
def score_weights(
    query, key, value, grad, mixed, lse, key_real, scale, shift, PRECISION: tl.constexpr
):  # fmt: skip
    """Weights of a tile of queries on a tile of keys, and the gradient of their scores.  (queries, keys)

    shift: what is added to scores, by key, times log2(e) as scale is; 0.0 for nothing.
    """
    # [queries, keys]; lse is log2 of a query's sum, so this is its softmax
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale + shift
    weight = tl.where(key_real[None, :], tl.exp2(score - lse[:, None]), 0.0)
    # [queries]: the softmax's gradient is weight * (dweight - mean of dweight), and that mean is grad . output
    mean = tl.sum(grad.to(tl.float32) * mixed.to(tl.float32), axis=1)
    return weight, weight * (tl.dot(grad, tl.trans(value), input_precision=PRECISION) - mean[:, None])


@triton.jit
def load_rows(
    x, token, real, stride, D: tl.constexpr, D_PAD: tl.constexpr, UNIT: tl.constexpr, INTERPRETED: tl.constexpr
):
    """Rows of tokens, zeros where there is none.  (TILE, D_PAD)"""
    # strides come divided by UNIT, their greatest common divisor (see `aligned`): the product shows the
    # compiler that every row begins at a multiple of UNIT elements, so that it may load 16 bytes at once
    # [1, D_PAD]
    channel = tl.arange(0, D_PAD)[None, :]
    # [TILE, D_PAD]
    exists = real[:, None] & (channel < D)
    rows = tl.load(x + token[:, None] * (stride * UNIT) + channel, mask=exists, other=0.0)
    return rows.to(tl.float32) if INTERPRETED else rows  # triton's interpreter multiplies bfloat16 wrongly


@triton.jit
def store_rows(x, token, real, stride, rows, D: tl.constexpr, D_PAD: tl.constexpr, UNIT: tl.constexpr):
    channel = tl.arange(0, D_PAD)[None, :]
    exists = real[:, None] & (channel < D)
    tl.store(x + token[:, None] * (stride * UNIT) + channel, rows.to(x.dtype.element_ty), mask=exists)


def by_channel(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def aligned(views: Sequence[Tensor]) -> tuple[list[int], int]:
    """Strides of axes before the last, divided by what all rows are aligned to; and that number.

    The kernels multiply them again: so the compiler sees the alignment, and can load widely.
    """
    strides = [stride for view in views for stride in view.stride()[:3]]
    unit = math.gcd(16, *strides)
    return [stride // unit for stride in strides], unit
