"""Table 6: Semantic FPN and UperNet on any backbone of timm.

Kirillov et al. 2019 (Panoptic Feature Pyramid Networks) and Xiao et al. 2018.  The heads' layouts are those of
the field's reference configs, which the published counts of parameters follow.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from secvit.models.features import FeatureMaps

BINS = (1, 2, 3, 6)  # PSPNet's: the top map pooled to so many cells a side


class Segmenter(nn.Module):
    """A backbone, a head over its four maps, and for training perhaps a second head on the third map.

    images (B, 3, H, W), normalised by `backbone.normalization()`, of any size -> logits (B, classes, H, W).
    """

    def __init__(self, backbone: FeatureMaps, head: nn.Module, auxiliary: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.head, self.auxiliary = backbone, head, auxiliary

    def forward(self, images: Tensor) -> Tensor:
        return resize(self.logits(images), images.shape[-2:])

    def logits(self, images: Tensor) -> Tensor:
        """Logits as fine as the finest map.  -> (B, classes, H/4, W/4)"""
        return self.head(self.backbone(images))

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """Logits of the head and, where there is one, of the auxiliary head."""
        maps = self.backbone(images)
        return [self.head(maps)] + ([self.auxiliary(maps[2])] if self.auxiliary is not None else [])


def semantic_fpn(
    backbone: str = "secvit_tiny",
    num_classes: int = 150,
    *,
    pyramid: int = 256,
    channels: int = 128,
    dropout: float = 0.1,
    backbone_args: dict[str, Any] | None = None,
) -> Segmenter:
    """Table 6: Semantic FPN, an FPN of 256 channels whose levels are brought to the finest one and summed.

    backbone: a timm name that offers features_only.  backbone_args: of timm.create_model.
    pyramid: channels of the FPN.  channels: of the summed map.  dropout: of whole channels before the classifier.
    """
    maps = FeatureMaps(backbone, backbone_args)
    return Segmenter(maps, SemanticFPN(maps.channels, num_classes, pyramid, channels, dropout), None)


def upernet(
    backbone: str = "secvit_tiny",
    num_classes: int = 150,
    *,
    channels: int = 512,
    auxiliary_channels: int = 256,
    dropout: float = 0.1,
    backbone_args: dict[str, Any] | None = None,
) -> Segmenter:
    """Table 6: UperNet, pyramid pooling on the top map, an FPN below it, all levels fused; an FCN on stage 3 beside.

    Arguments as in `semantic_fpn`.  auxiliary_channels: of the FCN that helps in training; 0 for none.
    Its pooled maps have one cell, whose batch norm wants two images at a time in training.
    """
    maps = FeatureMaps(backbone, backbone_args)
    third = fcn(maps.channels[2], num_classes, auxiliary_channels, dropout) if auxiliary_channels else None
    return Segmenter(maps, UperNet(maps.channels, num_classes, channels, dropout), third)


# -- heads -------------------------------------------------------------------------------------


class SemanticFPN(nn.Module):
    """[(B, C_l, H_l, W_l)] of four levels -> (B, classes, H_1, W_1)."""

    def __init__(self, in_channels: list[int], classes: int, pyramid: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(in_channels, pyramid)
        # a convolution for each doubling on the way to the finest level, and one for that level itself
        self.scale_heads = nn.ModuleList(
            nn.ModuleList(conv(channels if i else pyramid, channels, 3) for i in range(max(1, level)))
            for level in range(len(in_channels))
        )
        self.classify = classifier(channels, classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        levels = list(self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps))).values())
        sizes = [x.shape[-2:] for x in maps]
        total: Tensor | None = None
        for level, (x, head) in enumerate(zip(levels, self.scale_heads)):
            for i, layer in enumerate(head.children()):
                x = resize(layer(x), sizes[max(0, level - 1 - i)])
            total = x if total is None else total + x
        return self.classify(total)


class UperNet(nn.Module):
    """[(B, C_l, H_l, W_l)] of four levels -> (B, classes, H_1, W_1)."""

    def __init__(self, in_channels: list[int], classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        *lower, top = in_channels
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv(top, channels, 1)) for bins in BINS)
        self.bottleneck = conv(top + len(BINS) * channels, channels, 3)
        self.laterals = nn.ModuleList(conv(c, channels, 1) for c in lower)
        self.smooth = nn.ModuleList(conv(channels, channels, 3) for _ in lower)
        self.fuse = conv(len(in_channels) * channels, channels, 3)
        self.classify = classifier(channels, classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        *lower, top = maps
        pooled = [resize(pool(top), top.shape[-2:]) for pool in self.pools]
        levels = [lateral(x) for lateral, x in zip(self.laterals, lower)]
        levels.append(self.bottleneck(torch.cat([top, *pooled], dim=1)))
        for i in reversed(range(len(lower))):
            levels[i] = levels[i] + resize(levels[i + 1], levels[i].shape[-2:])
        levels[:-1] = [smooth(x) for smooth, x in zip(self.smooth, levels)]
        return self.classify(self.fuse(torch.cat([resize(x, maps[0].shape[-2:]) for x in levels], dim=1)))


def fcn(in_channels: int, classes: int, channels: int, dropout: float) -> nn.Sequential:
    """One convolution and a classifier."""
    return nn.Sequential(conv(in_channels, channels, 3), classifier(channels, classes, dropout))


# -- parts -------------------------------------------------------------------------------------


def conv(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    layer = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


def classifier(channels: int, classes: int, dropout: float) -> nn.Sequential:
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:  # for the type checker
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout2d(dropout), layer)


def resize(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear, pixels as cells (align_corners=False)."""
    return x if x.shape[-2:] == size else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
