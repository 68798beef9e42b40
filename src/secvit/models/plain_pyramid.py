"""Maps of four scales from the one map of a plain vision transformer."""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor, nn

STRIDE = 16  # of the map it is made of
STRIDES = (4, 8, 16, 32)


class PlainPyramid(nn.Module):
    """ViTDet's simple feature pyramid (Li et al., "Exploring Plain Vision Transformer Backbones", ECCV 2022).

    The last map of a plain ViT, (B, C, H/16, W/16) -> [(B, C_l, H/s, W/s)] of the last `levels` of strides s 4, 8,
    16, 32: two transposed convolutions with norm and GELU between (C_l = C/4), one (C/2), the map itself (C), and its
    maximum over 2x2 (C).  The convolutions that ViTDet has behind these are those of the head's own FPN, so that all
    backbones have the same heads (ViTDet's figure 2 (b), "FPN, last-map").
    `channels` and `strides` say what the maps are.
    """

    def __init__(self, channels: int, levels: int = 4) -> None:
        super().__init__()
        self.strides = list(STRIDES[-levels:])
        widths = {4: channels // 4, 8: channels // 2, 16: channels, 32: channels}
        self.channels = [widths[stride] for stride in self.strides]
        self.scales = nn.ModuleList(_scale(channels, stride) for stride in self.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [scale(x) for scale in self.scales]


def _scale(channels: int, stride: int) -> nn.Module:
    if stride == 4:
        return nn.Sequential(_twice(channels), LayerNorm2d(channels // 2), nn.GELU(), _twice(channels // 2))
    if stride == 8:
        return _twice(channels)
    # an odd side counts its last row, as the strided convolutions of hierarchical backbones do
    return nn.Identity() if stride == STRIDE else nn.MaxPool2d(2, ceil_mode=True)


def _twice(channels: int) -> nn.Module:
    """A map of twice the size and half the channels."""
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
