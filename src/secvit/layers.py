"""Layers whose products take the road of `secvit.ops.road`; their parameters and names are those of torch's layers."""

from __future__ import annotations

from typing import Any

from timm.layers import register_notrace_module
from torch import Tensor, nn

from secvit.ops.products import depthwise_5x5, linear

__all__ = ["Depthwise5x5", "Linear", "route_linears"]


@register_notrace_module
class Linear(nn.Linear):
    """nn.Linear by the road of `secvit.ops.road`.  (..., in_features) -> (..., out_features)"""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@register_notrace_module
class Depthwise5x5(nn.Conv2d):
    """A 5x5 convolution of each channel alone, by the road of `secvit.ops.road` in training.  (B, C, H, W)"""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__(dim, dim, 5, padding=2, groups=dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_5x5(x, self.weight, self.bias)


def route_linears(model: nn.Module) -> int:
    """Put `Linear` in place of each nn.Linear of a model, in place; returns how many there were.

    For networks of others: a patched ViT, a connector, a LLaVA.  Parameters, hooks and names stay the very same, so
    weights and optimizers go on.  Layers of other classes (quantised, LoRA's) stay as they are; a model that is itself
    an nn.Linear has no place to put another in.
    """
    routed: dict[nn.Module, Linear] = {}
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        if type(layer) is nn.Linear and path:
            if layer not in routed:
                routed[layer] = _routed(layer)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, routed[layer])
    return len(routed)


def _routed(layer: nn.Linear) -> Linear:
    """The same parameters, hooks and mode in a layer of ours."""
    new = Linear.__new__(Linear)
    new.__dict__ = layer.__dict__
    return new
