"""Images without their labels, cropped and masked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.data import create_transform
from torch import Tensor

from secvit.fields import within
from secvit.images import Images, View, middle, seeded
from secvit.train.sampler import mix


@dataclass(frozen=True)
class Masking:
    """Which part of an image is hidden.

    Args:
        patch: side of the squares that are hidden or not, in px.
        ratio: part of the squares that is hidden, rounded up to whole ones.
    """

    patch: int = 32
    ratio: float = 0.6

    def grid(self, size: int) -> int:
        """Squares along the side of an image of `size` px; a ValueError where they do not fit."""
        if self.patch < 1 or size % self.patch:
            raise ValueError(
                f"images of {size}x{size} px cannot be cut into mask patches of {self.patch} px; "
                f"choose image_size as a multiple of patch, like {max(2, size // max(self.patch, 1)) * self.patch}"
            )
        side = size // self.patch
        if self.ratio <= 0 or math.ceil(self.ratio * side**2) >= side**2:
            raise ValueError(
                f"ratio={self.ratio} of {side**2} mask patches hides {math.ceil(self.ratio * side**2)} of them; hide "
                "at least one and not all: choose a ratio between 0 and 1, a larger image_size or a smaller patch"
            )
        return side


@dataclass(frozen=True)
class Augment:
    """What happens to a training image before it is masked.

    Args:
        scale: smallest and largest area of the random crop, as a part of the image.
        ratio: narrowest and widest shape of the crop, width / height.
        flip: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.67, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        within(self, 0, 1, "flip")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}={(low, high)}; give the smallest and the largest, both above 0")


def random_mask(side: int, ratio: float) -> Tensor:
    """Hide ceil(ratio * side^2) random patches, by torch's global generator.  -> bool (side, side)"""
    mask = torch.zeros(side * side, dtype=torch.bool)
    mask[torch.randperm(side * side)[: math.ceil(ratio * side * side)]] = True
    return mask.view(side, side)


class TrainView(View):
    """Batches {"image": (B, 3, S, S), "mask": (B, side, side)} by sampler keys.

    Crop, flip and mask of a sample depend on (seed, key) alone, never on batch, worker or process.
    """

    def __init__(
        self,
        images: Images,
        augment: Augment,
        masking: Masking,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
    ) -> None:
        transform = create_transform(
            size,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.flip,
            color_jitter=None,  # type: ignore[arg-type]  # timm takes None, and annotates float
            interpolation="bilinear",
            mean=tuple(mean),
            std=tuple(std),
        )
        super().__init__(images, transform)
        self.side, self.ratio, self.seed = masking.grid(size), masking.ratio, seed

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        views, masks = [], []
        for key in keys:
            image, _ = self.open_or_next(key % len(self))
            with seeded(mix(self.seed, key)):
                views.append(self.transform(image))
                masks.append(random_mask(self.side, self.ratio))
        return {"image": torch.stack(views), "mask": torch.stack(masks)}


class EvalView(View):
    """The same by index, in the middle view and with one mask for each image, whatever the run's seed.

    Broken files drop out.
    """

    def __init__(
        self, images: Images, masking: Masking, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(images, middle(size, mean, std))
        self.mean, self.std = tuple(mean), tuple(std)
        self.side, self.ratio = masking.grid(size), masking.ratio

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        index, images = self.whole_ones(keys)
        masks = torch.zeros(len(index), self.side, self.side, dtype=torch.bool)
        for row, i in enumerate(index):
            with seeded(i):
                masks[row] = random_mask(self.side, self.ratio)
        return {"image": images, "mask": masks}
