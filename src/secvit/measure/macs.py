"""Multiply-accumulates of a network, counted on the meta device: the "FLOPs (G)" of table 1 and the honest totals.

Counted as the paper's tool does: convolutions, linear layers, matrix products and norms; activations,
sums, softmax, positions and sorting are free.  The paper prints the total divided by 2**30.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secvit.measure.wrap import Function, wrapped

aten = torch.ops.aten


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass of one image.

    matmul: the products q k^T and (weights) v, scores: the products k . k_c of Eq. 2.
    norm: 5 an element for layer norm, 2 for batch norm, as fvcore counts them.
    """

    conv: int
    linear: int
    matmul: int
    scores: int
    norm: int

    @property
    def total(self) -> int:
        return self.conv + self.linear + self.matmul + self.scores + self.norm

    @property
    def without_attention(self) -> int:
        """What is left when only modules are counted: the convention of the paper's tables 4 to 6."""
        return self.conv + self.linear + self.norm

    @property
    def paper_gflops(self) -> float:
        """The paper's "FLOPs (G)"."""
        return self.total / 2**30


def count_macs(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Macs:
    """Count one image of (channels, height, width).  Nothing is computed and the model is left as it is."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, *input_size, device="meta", dtype=next(iter(on_meta.values())).dtype)
    counter = FlopCounterMode(display=False, custom_mapping=NORMS)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), _counted_scores() as scores, counter:
            torch.func.functional_call(model, on_meta, (image,))
    finally:
        for module, training in modes:
            module.training = training
    counts = {"conv": 0, "linear": 0, "matmul": 0, "norm": 0}
    for operator, flops in counter.get_flop_counts()["Global"].items():
        counts[_kind(str(operator))] += flops // 2
    return Macs(scores=sum(scores), **counts)


def _kind(operator: str) -> str:
    if "norm" in operator:
        return "norm"
    if "conv" in operator:
        return "conv"
    return "linear" if operator in ("aten.addmm", "aten.mm") else "matmul"  # the rest: bmm, baddbmm, fused attention


def _norm(macs_per_element: int) -> Callable[..., int]:
    def flops(shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * macs_per_element * math.prod(shape)

    return flops


NORMS = {
    aten.native_layer_norm: _norm(5),
    aten.native_batch_norm: _norm(2),
    aten._native_batch_norm_legit_no_training: _norm(2),
    aten.cudnn_batch_norm: _norm(2),
}


@contextmanager
def _counted_scores() -> Iterator[list[int]]:
    """Products k . k_c, one an element of k.  They are written as a product and a sum, which no counter sees."""
    counts: list[int] = []

    def counting(similarity: Function) -> Function:
        def counted(k: Tensor, centre: Tensor) -> Tensor:
            counts.append(k.numel())
            return similarity(k, centre)

        return counted

    with wrapped(counting, *(f"secvit.ops.{module}:similarity" for module in ("order", "partitions"))):
        yield counts
