"""What happens to training images: timm's transforms and mixing, by a recipe's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor
from torchvision.transforms import RandomCrop

from secvit.fields import within
from secvit.images import Transform


@dataclass(frozen=True)
class Augment:
    """What happens to a training image, in this order.

    Args:
        crop: "resized" is a random part of random shape scaled to the training size, "pad" shifts
            images of the training size by up to `padding` px.
        padding: px of black on each side for crop="pad".
        scale: smallest and largest area of crop="resized", as a part of the image.
        flip: probability of a horizontal flip.
        color_jitter: strength of brightness, contrast and saturation changes; without `auto` only.
        auto: RandAugment and its like in timm's words, "rand-m9-mstd0.5-inc1"; "" for none.
        erase: probability that a rectangle becomes noise.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.  With both, each batch gets one of them.
        mix: probability that a batch is mixed at all.
    """

    crop: Literal["pad", "resized"] = "pad"
    padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    color_jitter: float = 0.0
    auto: str = ""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0

    def __post_init__(self) -> None:
        within(self, 0, 1, "flip", "erase", "mix")
        within(self, 0, math.inf, "padding", "color_jitter", "mixup", "cutmix")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={self.scale}; give the smallest and the largest area, like 0.08, 1.0")


def training_transform(augment: Augment, size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """An image to a normalised tensor (3, size, size), by timm's create_transform."""
    try:
        transform = create_transform(
            size,
            is_training=True,
            scale=augment.scale,
            hflip=augment.flip,
            color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]  # timm takes None, and annotates float
            auto_augment=augment.auto or None,
            interpolation="bicubic",
            mean=tuple(mean),
            std=tuple(std),
            re_prob=augment.erase,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError):
        raise ValueError(
            f'auto={augment.auto!r}: timm knows no such augmentation; try "rand-m9-mstd0.5-inc1"'
        ) from None
    if augment.crop == "pad":  # as DeiT does for images of 32 px
        transform.transforms[0] = RandomCrop(size, padding=augment.padding)

    def apply(image: Image.Image) -> Tensor:
        for _ in range(20):
            try:
                return transform(image)
            except ValueError:  # timm posterizes to 0 bits, which Pillow >= 13 refuses: draw again
                continue
        return transform(image)

    return apply


def mixing(augment: Augment, classes: int) -> Mixup | None:
    """timm's mixup and cutmix of a batch, or None.  The loss smooths the labels, not the mixing."""
    if not (augment.mixup or augment.cutmix):
        return None
    return Mixup(augment.mixup, augment.cutmix, prob=augment.mix, label_smoothing=0.0, num_classes=classes)
