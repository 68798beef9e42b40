"""What happens to a training image and its mask: the field's resize, crop, flip and photometric distortion."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from secvit.segmentation.config import Augment

IGNORED = 255
TRIES = 10  # crops that are drawn to find one of several classes


def training_view(
    image: Image.Image, mask: np.ndarray, augment: Augment, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """An image and its mask (H, W) -> normalised (3, S, S), zero outside, and classes (S, S), 255 outside.

    Random numbers are torch's.  mean, std (3, 1, 1).
    """
    scale = uniform(*augment.scale) * base_scale(image.size, augment.short_side)
    width, height = (max(1, round(side * scale)) for side in image.size)
    mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    left, top = crop_at(mask, augment)
    right, bottom = min(left + augment.crop, width), min(top + augment.crop, height)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, right * x, bottom * y)  # resizing this part alone gives the same and saves most of it
    part = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box)
    pixels, target = tv.to_dtype(tv.pil_to_tensor(part), torch.float32, scale=True), mask[top:bottom, left:right]
    if uniform() < augment.flip:
        pixels, target = pixels.flip(-1), target[:, ::-1]
    if augment.distort:
        pixels = distort(pixels)
    padded = torch.zeros(3, augment.crop, augment.crop)
    labels = torch.full((augment.crop, augment.crop), IGNORED, dtype=torch.uint8)
    padded[:, : bottom - top, : right - left] = (pixels - mean) / std
    labels[: bottom - top, : right - left] = torch.from_numpy(target.copy())
    return padded, labels


def base_scale(size: tuple[int, int], short_side: int) -> float:
    """What brings an image's short side to so many px, its long side to four times that at most."""
    return min(short_side / min(size), 4 * short_side / max(size)) if short_side else 1.0


def crop_at(mask: np.ndarray, augment: Augment) -> tuple[int, int]:
    """Left and top of a random square in which no class has too large a share, if one is found soon."""
    height, width = mask.shape
    for _ in range(TRIES):
        left, top = (int(torch.randint(max(side - augment.crop, 0) + 1, ())) for side in (width, height))
        if augment.max_share >= 1:
            break
        part = mask[top : top + augment.crop, left : left + augment.crop]
        counts = np.bincount(part.ravel(), minlength=256)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < augment.max_share * counts.sum():
            break
    return left, top


def distort(image: Tensor) -> Tensor:
    """mmseg's PhotoMetricDistortion of (3, H, W) in 0..1: brightness, contrast, saturation and hue, each with
    probability 1/2, contrast before or after colour; saturation and hue by torchvision."""
    if coin():
        image = (image + uniform(-32, 32) / 255).clamp(0, 1)
    early = coin()
    if early and coin():
        image = (image * uniform(0.5, 1.5)).clamp(0, 1)
    if coin():
        image = tv.adjust_saturation(image, uniform(0.5, 1.5))
    if coin():
        image = tv.adjust_hue(image, uniform(-0.1, 0.1))
    if not early and coin():
        image = (image * uniform(0.5, 1.5)).clamp(0, 1)
    return image


def uniform(low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand(()))


def coin() -> bool:
    return bool(torch.rand(()) < 0.5)
