"""Training images: cropped, flipped, distorted, erased and mixed, each from its own random numbers.

What is drawn for a sample depends on (seed, key) alone, never on the batch, the worker or the
process; what is drawn for mixing depends on the keys of the batch.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from torch import Tensor
from torch.nn import functional as F

from secvit.train.sampler import mix


@dataclass(frozen=True)
class Augment:
    """What happens to a training image, in this order.

    Args:
        crop: "pad" shifts by up to `padding` px (images of the training size), "resized" is a
            random crop of random shape scaled to the training size, "none" the evaluation's view.
        padding: px of black on each side for crop="pad".
        scale: smallest and largest area of crop="resized", as a part of the image.
        flip: probability of a horizontal flip.
        auto: RandAugment and its like in timm's words, "rand-m9-mstd0.5-inc1"; "" for none.
        erase: probability that a rectangle becomes noise.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.  With both, each batch gets one of them.
        mix: probability that a batch is mixed at all.
    """

    crop: Literal["none", "pad", "resized"] = "pad"
    padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    auto: str = ""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0


def uniforms(seed: int, keys: Sequence[int], count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1) for each key: splitmix64 of (seed, key, i), vectorised."""
    with np.errstate(over="ignore"):
        state = np.asarray(keys, np.uint64)[:, None] * np.uint64(0xD1342543DE82EF95)
        state = state + np.arange(count, dtype=np.uint64) * np.uint64(0xDA942042E4DD58B5)
        state = state ^ np.uint64(mix(seed, 1))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
            state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pad_crop(images: Tensor, padding: int, where: np.ndarray) -> Tensor:
    """Each image shifted by its own offset, black flowing in.  where (B, 2) in [0, 1)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [padding] * 4)
    out = torch.empty_like(images)
    for i, (top, left) in enumerate((where * (2 * padding + 1)).astype(int).tolist()):
        out[i] = padded[i, :, top : top + height, left : left + width]
    return out


def resized_crop(image: Image.Image, size: int, scale: tuple[float, float]) -> Image.Image:
    """A random part of the image with aspect 3/4 to 4/3, scaled to size x size (bicubic)."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def auto_augment(name: str, size: int, mean: Sequence[float]) -> Callable[..., Image.Image]:
    """timm's RandAugment or AutoAugment by its configuration string, with timm's own defaults."""
    fill = tuple(min(255, round(255 * m)) for m in mean)
    options = {"translate_const": int(size * 0.45), "img_mean": fill}
    build = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    try:
        chosen = build(name, options)
    except (AssertionError, KeyError, ValueError):
        raise ValueError(f'auto={name!r}: timm knows no such augmentation; try "rand-m9-mstd0.5-inc1"') from None

    def apply(image: Image.Image) -> Image.Image:
        for _ in range(20):
            try:
                return chosen(image)
            except ValueError:  # timm posterizes to 0 bits, which Pillow >= 13 refuses: draw again
                continue
        return image

    return apply


def erase(images: Tensor, probability: float, draws: np.ndarray, seeds: Sequence[int]) -> None:
    """Random erasing, in place, on normalised images: 2-33 % of the area becomes normal noise."""
    height, width = images.shape[-2:]
    for i, (chance, part, shape, y, x) in enumerate(draws.tolist()):
        if chance >= probability:
            continue
        area = height * width * (0.02 + part * (1 / 3 - 0.02))
        aspect = math.exp((2 * shape - 1) * math.log(1 / 0.3))
        h = min(height, max(1, round(math.sqrt(area * aspect))))
        w = min(width, max(1, round(math.sqrt(area / aspect))))
        top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
        noise = torch.randn(3, h, w, generator=torch.Generator().manual_seed(seeds[i]))
        images[i, :, top : top + h, left : left + w] = noise


def mix_batch(
    images: Tensor, targets: Tensor, augment: Augment, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix with the image at the mirrored place.  targets (B, classes) sum to 1."""
    if generator.random() >= augment.mix:
        return images, targets
    cut = augment.cutmix > 0 and (augment.mixup == 0 or generator.random() < 0.5)
    alpha = augment.cutmix if cut else augment.mixup
    keep = float(generator.beta(alpha, alpha))
    partner = images.flip(0)
    if cut:
        height, width = images.shape[-2:]
        side = math.sqrt(1 - keep)
        y, x = int(generator.integers(height)), int(generator.integers(width))
        h, w = int(height * side) // 2, int(width * side) // 2
        rows = slice(max(0, y - h), min(height, y + h))
        columns = slice(max(0, x - w), min(width, x + w))
        images = images.clone()
        images[:, :, rows, columns] = partner[:, :, rows, columns]
        cut_area = (rows.stop - rows.start) * (columns.stop - columns.start)
        keep = 1 - cut_area / (height * width)
    else:
        images = partner.lerp(images, keep)
    return images, targets.flip(0).lerp(targets, keep)


@contextlib.contextmanager
def own_randomness() -> Iterator[Callable[[int], None]]:
    """A function that seeds python's and numpy's generators; on leaving, both are as before."""
    python, numpy = random.getstate(), np.random.get_state()

    def seed(number: int) -> None:
        random.seed(number)
        np.random.seed(number % 2**32)

    try:
        yield seed
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
