"""Images as batches for the loop: augmented for training, in one fixed view for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from secvit.classification.augment import (
    Augment,
    auto_augment,
    erase,
    mix_batch,
    own_randomness,
    pad_crop,
    resized_crop,
    uniforms,
)
from secvit.classification.sources import Images, check_skipped
from secvit.train.sampler import mix

logger = logging.getLogger(__name__)


class View:
    """What training and evaluation share: the size, the normalisation, the list of broken files."""

    def __init__(self, images: Images, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.size, self.mean = images, size, tuple(mean)
        self.scale = torch.tensor(std).mul(255).reciprocal().view(3, 1, 1)
        self.shift = -torch.tensor(mean).div(torch.tensor(std)).view(3, 1, 1)
        # one byte per image in memory that the loading processes share with this one
        self.broken = torch.zeros(len(images), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ready(self) -> bool:
        """Whether the pixels in memory already have the right size."""
        pixels = self.images.pixels
        return pixels is not None and pixels.shape[-2:] == (self.size, self.size)

    @property
    def skipped(self) -> list[str]:
        """Names of the images found broken so far."""
        names = [self.images.names[i] for i in self.broken.nonzero().flatten().tolist()]
        return [*self.images.skipped, *names]

    def open(self, index: int) -> Image.Image | None:
        """The image, or None if it is broken: counted, named once, fatal above the limit."""
        try:
            return self.images.image(index)
        except ValueError as error:
            if not self.broken[index]:
                self.broken[index] = 1
                logger.warning("skipped: %s", error)
                check_skipped(self.skipped, len(self))
            return None

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self.scale).add_(self.shift)

    @staticmethod
    def collate(batch: Any) -> Any:
        return batch


class TrainView(View):
    """Batches {"image": (B, 3, S, S), "target": (B,) or, mixed, (B, classes)} by sampler keys."""

    def __init__(
        self,
        images: Images,
        augment: Augment,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
    ) -> None:
        super().__init__(images, size, mean, std)
        if augment.crop == "pad" and not self.ready:
            raise ValueError(f'crop="pad" needs images of {size}x{size} px in memory; use crop="resized"')
        self.augment, self.seed = augment, seed
        self.auto = auto_augment(augment.auto, size, mean) if augment.auto else None

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        augment, seeds = self.augment, [mix(self.seed, key) for key in keys]
        draws = uniforms(self.seed, keys, 8)  # flip, row, column, then five for erasing
        with own_randomness() as seed:
            pixels, index = self._pixels(keys, seeds, draws, seed)
            flipped = torch.from_numpy(draws[:, 0] < augment.flip)
            pixels[flipped] = pixels[flipped].flip(-1)
            if self.auto:
                for i, own in enumerate(seeds):
                    seed(own + 1)
                    image = self.auto(Image.fromarray(pixels[i].permute(1, 2, 0).numpy()))
                    pixels[i] = _tensor(image)
        out, target = self.normalise(pixels), self.images.labels[index]
        if augment.erase:
            erase(out, augment.erase, draws[:, 3:], seeds)
        if augment.mixup or augment.cutmix:
            soft = F.one_hot(target, len(self.images.classes)).float()
            out, target = mix_batch(out, soft, augment, np.random.default_rng(mix(*seeds)))
        return {"image": out, "target": target}

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}

    def _pixels(self, keys: list[int], seeds: list[int], draws: np.ndarray, seed: Any) -> tuple[Tensor, Tensor]:
        index = torch.tensor(keys) % len(self)
        if self.ready and self.augment.crop != "resized" and self.images.pixels is not None:
            pixels = self.images.pixels[index]
            if self.augment.crop == "pad":
                pixels = pad_crop(pixels, self.augment.padding, draws[:, 1:3])
            return pixels, index
        out = torch.empty(len(keys), 3, self.size, self.size, dtype=torch.uint8)
        for i, own in enumerate(seeds):
            while (image := self.open(int(index[i]))) is None:
                index[i] = (index[i] + 1) % len(self)  # the next one stands in for a broken one
            seed(own)
            if self.augment.crop == "resized":
                out[i] = _tensor(resized_crop(image, self.size, self.augment.scale))
            else:
                out[i] = _tensor(centre_crop(image, self.size))
        return out, index


class EvalView(View):
    """Batches {"image", "target"} by index, in the middle view.  Broken files drop out."""

    def __init__(
        self,
        images: Images,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float = 1.0,
    ) -> None:
        super().__init__(images, size, mean, std)
        self.crop_pct = crop_pct

    def __getitems__(self, index: list[int]) -> dict[str, Tensor]:
        if self.ready and self.images.pixels is not None and self.crop_pct == 1:
            pixels = self.images.pixels[torch.tensor(index)]
        else:
            opened = {i: image for i in index if (image := self.open(i)) is not None}
            views = [_tensor(centre_crop(x, self.size, self.crop_pct)) for x in opened.values()]
            index = list(opened)
            pixels = torch.stack(views) if views else torch.empty(0, 3, self.size, self.size)
        return {"image": self.normalise(pixels), "target": self.images.labels[index]}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def centre_crop(image: Image.Image, size: int, crop_pct: float = 1.0) -> Image.Image:
    """Short side to size / crop_pct (bicubic), then the middle size x size."""
    width, height = image.size
    if (width, height) == (size, size) and crop_pct == 1:
        return image
    factor = round(size / crop_pct) / min(width, height)
    width, height = max(size, round(width * factor)), max(size, round(height * factor))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
