"""Products of float32 on a CPU by oneDNN, where `road` says so; elsewhere torch's own functions, bit for bit.

oneDNN is reached by a public function: a 1x1 convolution on rows is their product with a matrix.  dilation=2 changes
nothing in a 1x1 kernel, but keeps torch from its slow convolution at small batches and one thread.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from secvit.ops.road import has_exact_matmul, matmul_on_onednn, takes_onednn

MIN_ROWS = 128  # below, as in decoding, laying out the matrix costs more than the product
MIN_ELEMENTS = 20480  # up to here torch does not give a single map to oneDNN


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by the road of `secvit.ops.road`.  x (..., I), weight (O, I), bias (O) -> (..., O)"""
    count, width = x.numel(), x.shape[-1]
    given = (x, weight) if bias is None else (x, weight, bias)
    if not takes_onednn(*given) or count <= MIN_ELEMENTS or count < MIN_ROWS * width:
        return F.linear(x, weight, bias)
    rows = x.contiguous().view(1, 1, -1, width).permute(0, 3, 1, 2)  # of rows with gaps it would give such
    fast = torch.is_grad_enabled() and not torch.compiler.is_compiling() and has_exact_matmul()
    out = (_RowProduct.apply if fast else _row_product)(rows, weight, bias)
    return out.permute(0, 2, 3, 1).view(*x.shape[:-1], weight.shape[0])


def _row_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows (1, I, 1, R), I innermost in memory -> (1, O, 1, R)"""
    return F.conv2d(rows, weight[:, :, None, None], bias, dilation=2)


class _RowProduct(torch.autograd.Function):
    """`_row_product`, whose gradients are products by oneDNN too: its convolution's own take 1.2 times as long.

    Of one map, not of (R, O): a view would be refused by what writes into it later.
    """

    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _row_product(rows, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        rows, weight, _ = inputs
        ctx.save_for_backward(rows, weight)
        ctx.save_for_forward(rows, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, weight = ctx.saved_tensors
        by_rows = by_weight = by_bias = None
        grad = grad[0, :, 0].t()
        if ctx.needs_input_grad[0]:
            by_rows = product(grad, weight).t()[None, :, None]
        if ctx.needs_input_grad[1]:
            by_weight = product(grad.t(), rows[0, :, 0].t())
        if ctx.needs_input_grad[2]:
            by_bias = grad.sum(dim=0)
        return by_rows, by_weight, by_bias

    @staticmethod
    def jvp(ctx, rows: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        primal_rows, primal_weight = ctx.saved_tensors
        parts = []
        if rows is not None:
            parts.append(_row_product(rows, primal_weight, None))
        if weight is not None:
            parts.append(_row_product(primal_rows, weight, None))
        if bias is not None:
            parts.append(bias.view(1, -1, 1, 1).expand(1, -1, 1, primal_rows.shape[-1]))
        return _sum(parts)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, by the road of `secvit.ops.road` where oneDNN's is exact float32.  (..., m, k), (..., k, n) -> (..., m, n)

    a and b have the same leading dimensions.
    """
    return _Product.apply(a, b) if has_fast_product(a, b) else a @ b


def has_fast_product(*tensors: Tensor) -> bool:
    """Whether `product` of these goes to oneDNN."""
    return not torch.compiler.is_compiling() and takes_onednn(*tensors) and has_exact_matmul()


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with matmul_on_onednn():
            return a @ b

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, b = ctx.saved_tensors
        by_a = product(grad, b.transpose(-2, -1)) if ctx.needs_input_grad[0] else None
        by_b = product(a.transpose(-2, -1), grad) if ctx.needs_input_grad[1] else None
        return by_a, by_b

    @staticmethod
    def jvp(ctx, a: Tensor | None, b: Tensor | None) -> Tensor:
        primal_a, primal_b = ctx.saved_tensors
        parts = [] if a is None else [a @ primal_b]
        return _sum(parts if b is None else [*parts, primal_a @ b])


# -- depthwise convolution of 5x5 --------------------------------------------------------------------


def depthwise_5x5(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 5x5 convolution of each channel alone, zeros around.  x (B, C, H, W), weight (C, 1, 5, 5), bias (C)

    On the road to oneDNN the gradient of its weight is put together from four of 3x3, for which oneDNN has code of
    its own; that of 5x5 is a dense convolution's.
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    trains = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
    if trains and x.numel() > 0 and takes_onednn(*given):
        return _Depthwise5x5.apply(x, weight, bias)
    return _depthwise_5x5(x, weight, bias)


def _depthwise_5x5(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=2, groups=weight.shape[0])


class _Depthwise5x5(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _depthwise_5x5(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:  # the kernel turned round: its padding is 2 again
            by_x = depthwise_5x5(grad, weight.flip(2, 3))
        if ctx.needs_input_grad[1]:
            by_weight = _by_four_kernels(x, grad)
        if ctx.needs_input_grad[2]:
            by_bias = grad.sum(dim=(0, 2, 3))
        return by_x, by_weight, by_bias

    @staticmethod
    def jvp(ctx, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        primal_x, primal_weight = ctx.saved_tensors
        parts = []
        if x is not None:
            parts.append(_depthwise_5x5(x, primal_weight, None))
        if weight is not None:
            parts.append(_depthwise_5x5(primal_x, weight, None))
        if bias is not None:
            parts.append(bias.view(1, -1, 1, 1).expand_as(primal_x))
        return _sum(parts)


def _by_four_kernels(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a 5x5 kernel: those of the 3x3 kernels in its four corners, which share its middle row and column."""
    (height, width), shape = x.shape[2:], (x.shape[1], 1, 3, 3)
    padded = F.pad(x, (2, 2, 2, 2))

    def corner(down: int, right: int) -> Tensor:
        part = padded[:, :, down : down + height + 2, right : right + width + 2]
        return conv2d_weight(part, shape, grad, groups=shape[0])

    upper, lower = (torch.cat([corner(down, 0), corner(down, 2)[..., 1:]], dim=3) for down in (0, 2))
    return torch.cat([upper, lower[:, :, 1:]], dim=2)


def _sum(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])
