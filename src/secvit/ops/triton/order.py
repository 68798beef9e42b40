"""Eqs. 1 and 2: the order of tokens by their scores, in two small kernels.

Scores and token numbers are packed into integers as they are made, so a sort of one block of threads gives the order,
ties included, and no float32 copy of the keys is made.

Scores are sorted whole.  A selection of M - 1 borders would do, for order inside a cluster is free, but it takes
several passes where the sort of a block takes one; `benchmarks/gpu.py` times order and attention apart, and this is to
be looked at again with its figures.
"""

# without `from __future__ import annotations`: torch.library reads the types of the operators' arguments
import torch
import triton
import triton.language as tl
from torch import Tensor

from secvit.ops.order import raised
from secvit.ops.triton.rows import aligned, by_channel, load_rows

SMALL, LIFT = tl.constexpr(2.0**-100), tl.constexpr(2.0**100)  # of squared norms and of keys, as in `order.similarity`
SORTED_AT_ONCE = 4096  # tokens that a block of threads sorts; torch sorts more


@triton.jit(do_not_specialize=["k_b", "k_h", "k_l", "heads", "length", "tiles"])
def _score(
    k, centre, keys, k_b, k_h, k_l, heads, length, tiles,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Eq. 2 for a tile of tokens, as `order.similarity`; score and token in one integer, as `order.sort_packed`."""
    tile = tl.program_id(0) % tiles
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    # [TILE]
    token = tile * TILE + tl.arange(0, TILE)
    real = token < length
    start = k + ((sequence // heads) * k_b + (sequence % heads) * k_h) * UNIT
    # [TILE, D_PAD], float32
    key = load_rows(start, token, real, k_l, D, D_PAD, UNIT, True)
    # [D_PAD]
    channel = tl.arange(0, D_PAD)
    mean = tl.load(centre + sequence * D + channel, mask=channel < D, other=0.0)
    # [TILE]
    lift = tl.where(tl.sum(key * key, axis=1) < SMALL, LIFT, 1.0)  # squares of small keys would vanish
    key = key * lift[:, None]
    score = tl.sum(key * mean[None, :], axis=1) * tl.rsqrt(tl.maximum(tl.sum(key * key, axis=1), 1e-37))
    # A float's bits, read as an integer, rise with it where it is positive and fall where it is negative: there all
    # bits but the sign are turned over.  `bits >> 31` is -1 for negative numbers and 0 for others.
    # [TILE], int32
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(score == score, tl.where(score == 0, 0, bits), 0x7FC00000)  # one zero, one NaN
    # The score above, the token below: one sort of integers orders by score, and by token where scores are equal.
    # [TILE], int64
    packed = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32) | token
    tl.store(keys + sequence * length + token, packed, mask=real)


@triton.jit(do_not_specialize=["length"])
def _sort(keys, length, PADDED: tl.constexpr):
    """Tokens by rising key, in the place of the keys."""
    # [PADDED], int64; the greatest integer fills up, and stays behind all keys
    rank = tl.arange(0, PADDED)
    place = keys + tl.program_id(0).to(tl.int64) * length + rank
    key = tl.sort(tl.load(place, mask=rank < length, other=0x7FFFFFFFFFFFFFFF))
    # the lower half is the token
    tl.store(place, key & 0xFFFFFFFF, mask=rank < length)


def _order_tokens(k: Tensor) -> Tensor:
    """Eqs. 1, 2: token indices by rising similarity to the mean key, as `cluster_order`.  (B, h, L, D) -> (B, h, L)"""
    k = by_channel(k)
    batch, heads, length, dim = k.shape
    keys = torch.empty(batch, heads, length, dtype=torch.int64, device=k.device)
    if not keys.numel():
        return keys
    centre = raised(torch.nan_to_num(k.mean(dim=-2, dtype=torch.float32), nan=0.0, posinf=0.0, neginf=0.0))
    tiles = triton.cdiv(length, 128)
    strides, unit = aligned([k])
    settings = {"D": dim, "D_PAD": triton.next_power_of_2(dim), "TILE": 128, "UNIT": unit, "enable_fp_fusion": True}
    with torch.cuda.device_of(k):
        _score[(batch * heads * tiles,)](k, centre, keys, *strides, heads, length, tiles, **settings)
        if length > SORTED_AT_ONCE:
            return torch.sort(keys, dim=-1).values & 0xFFFFFFFF
        padded = max(16, triton.next_power_of_2(length))
        warps = min(32, max(1, padded // 128))
        _sort[(batch * heads,)](keys, length, PADDED=padded, num_warps=warps, enable_fp_fusion=True)
    return keys


order_tokens = torch.library.custom_op("secvit::order_tokens", _order_tokens, mutates_args=())


@order_tokens.register_fake
def _(k):
    return k.new_empty(k.shape[:3], dtype=torch.int64)
