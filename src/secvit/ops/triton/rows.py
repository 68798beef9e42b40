"""Rows of tokens, read and written by index."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_rows(
    x, token, real, stride, D: tl.constexpr, D_PAD: tl.constexpr, UNIT: tl.constexpr, INTERPRETED: tl.constexpr
):
    """Rows of tokens, zeros where there is none.  (TILE, D_PAD)"""
    # strides come divided by UNIT, their greatest common divisor (see `attention._launch`): the product shows the
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
