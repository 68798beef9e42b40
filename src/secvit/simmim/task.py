"""SimMIM as the loop sees it: hide patches, predict their pixels from the others.

Xie et al.: "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022; the paper's Table 2
pre-trains by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from secvit.simmim.seam import halves


class MaskedImageTask(nn.Module):
    """L1 between masked pixels and their prediction, on {"image": (B, 3, H, W), "mask": (B, rows, columns)}.

    Images are normalised; a true value of the mask hides H/rows x W/columns pixels.  Hidden pixels
    are set to 0, the mean colour, before the stem, and the stem's tokens in their place become the
    mask token: convolutions overlap, so either alone would not do, and together nothing of a hidden
    pixel reaches the encoder.  Stem tokens beside a hidden patch see its edge as mean colour.

    `mean_baseline` in the result is the loss of predicting each image's mean visible colour.
    The model is one of `halves`, with timm's `feature_info`.  Its `head`, which nothing here uses, is
    frozen: DistributedDataParallel waits for the gradient of every parameter.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stem, self.stages = halves(model)
        self.model: Any = model
        if isinstance(head := getattr(model, "head", None), nn.Module):
            head.requires_grad_(False)
        first, last = model.feature_info[0], model.feature_info[-1]
        self.stride = int(last["reduction"])
        self.mask_token = nn.Parameter(trunc_normal_(torch.zeros(first["num_chs"]), std=0.02))
        self.decoder = nn.Sequential(
            nn.Conv2d(last["num_chs"], 3 * self.stride**2, 1),
            nn.PixelShuffle(self.stride),
        )

    def no_weight_decay(self) -> set[str]:
        """What the model names, for timm's optimizer factory."""
        named: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {f"model.{name}" for name in named}

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """The last features of what is visible.  -> (B, C, H/stride, W/stride)"""
        x = self.stem(image.masked_fill(stretch(mask, *image.shape[2:]), 0))
        token = self.mask_token.to(x.dtype)[:, None, None]
        return self.stages(torch.where(stretch(mask, *x.shape[2:]), token, x))

    def reconstruct(self, image: Tensor, mask: Tensor) -> Tensor:
        """The prediction of every pixel, hidden or not.  -> (B, 3, H, W)"""
        H, W = image.shape[2:]
        if H % self.stride or W % self.stride:
            raise ValueError(f"images of {W}x{H} px; choose multiples of the model's stride, {self.stride}")
        return self.decoder(self.encode(image, mask)).float()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image, mask = batch["image"], batch["mask"]
        hidden = stretch(mask, *image.shape[2:])
        return {
            "loss": masked_l1(self.reconstruct(image, mask), image, hidden),
            "mean_baseline": masked_l1(visible_mean(image, hidden), image, hidden),
        }


def stretch(mask: Tensor, height: int, width: int) -> Tensor:
    """Mask patches as the pixels or tokens they cover.  (B, rows, columns) -> (B, 1, height, width)"""
    rows, columns = mask.shape[1:]
    if height % rows or width % columns:
        raise ValueError(
            f"a mask of {rows}x{columns} patches does not divide {height}x{width} pixels or tokens; "
            "choose a mask patch that divides the image size and is a multiple of the stem's stride"
        )
    return mask.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)[:, None]


def masked_l1(predicted: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """Sum of |error| over hidden pixels / their number / channels.  images (B, 3, H, W), hidden (B, 1, H, W)"""
    return ((predicted - image).abs() * hidden).sum() / hidden.sum() / image.shape[1]


def visible_mean(image: Tensor, hidden: Tensor) -> Tensor:
    """Each image's mean visible colour.  (B, 3, H, W), (B, 1, H, W) -> (B, 3, 1, 1)"""
    total = image.masked_fill(hidden, 0).sum((2, 3), keepdim=True)
    return total / (~hidden).sum((2, 3), keepdim=True)
