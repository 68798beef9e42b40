"""Inference forms of layers: batch norms folded into convolutions, weights laid out beforehand for the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from secvit.ops.products import linear


def fold_layers(layers: nn.Sequential) -> None:
    """Fold batch norms, then GELUs, into the convolutions before them, in place; identities take their places."""
    for i in range(len(layers) - 1):
        conv, norm = layers[i], layers[i + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[i], layers[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for i in range(len(layers) - 2):
        conv, between, act = layers[i : i + 3]
        if isinstance(conv, nn.Conv2d) and isinstance(between, nn.Identity) and isinstance(act, nn.GELU):
            layers[i], layers[i + 2] = ConvGELU(conv), nn.Identity()


class ConvGELU(nn.Conv2d):
    """A convolution and GELU after it, in one call of oneDNN where `PackedLinear` would use it.  (B, C, H, W)"""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and _can_pack(x, self.weight):
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "gelu", [], "none"
            )
        return F.gelu(self._conv_forward(x, self.weight, self.bias))


class PackedLinear(nn.Linear):
    """A linear layer, and GELU after it if wanted, on a weight that oneDNN has laid out: 1.1 to 1.3 times as fast.

    Only for inference on a CPU, in float32 or bfloat16; elsewhere it computes what nn.Linear does.  oneDNN is reached
    by operators of torch that are not public, so a torch without them falls back as well.
    (..., in_features) -> (..., out_features)
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.gelu = gelu
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and _can_pack(x, self.weight):
            return self._packed_product(x)
        x = linear(x, self.weight, self.bias)
        return F.gelu(x) if self.gelu else x

    def _packed_product(self, x: Tensor) -> Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, x.numel() // self.in_features)
        kind = ("gelu", "none") if self.gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, kind[0], [], kind[1])

    def _apply(self, *args: Any, **kwargs: Any) -> PackedLinear:
        self.packed = None  # of another dtype or device from now on
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}


def _can_pack(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's product is there for these."""
    if x.device.type != "cpu" or x.dtype != weight.dtype or type(x) is not Tensor or torch.is_autocast_enabled("cpu"):
        return False
    return (x.dtype == torch.float32 and _HAS_ONEDNN) or (x.dtype == torch.bfloat16 and _HAS_BFLOAT16)


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise")
)
_HAS_BFLOAT16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
