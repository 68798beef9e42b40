"""What training and evaluation see of labelled images."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secvit.images.labelled import Images, check_skipped
from secvit.train.shares import sum_over_processes

logger = logging.getLogger(__name__)


class View:
    """Images as tensors of one size and normalisation, with a count of the broken ones.

    A subclass makes batches in `__getitems__`.
    """

    def __init__(self, images: Images, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.size = images, size
        self.mean, self.std = tuple(mean), tuple(std)
        # one byte per image in memory that the loading processes share with this one
        self.broken = torch.zeros(len(images), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        raise NotImplementedError

    @staticmethod
    def collate(batch: Any) -> Any:
        return batch

    @property
    def skipped(self) -> list[str]:
        """Names of the images found broken so far."""
        names = [self.images.names[i] for i in self.broken.nonzero().flatten().tolist()]
        return [*self.images.skipped, *names]

    def gather_broken(self) -> None:
        """Let every process know what any of them found broken; each has to ask."""
        self.broken.copy_(sum_over_processes(self.broken) > 0)

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

    def open_or_next(self, index: int) -> tuple[Image.Image, int]:
        """The image and its index; the next whole one stands in for a broken one."""
        while (image := self.open(index)) is None:
            index = (index + 1) % len(self)
        return image, index

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) -> float32, by mean and std."""
        scale = 255 * torch.tensor(self.std).view(3, 1, 1)
        shift = (torch.tensor(self.mean) / torch.tensor(self.std)).view(3, 1, 1)
        return pixels.float().div_(scale).sub_(shift)


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


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """python's, numpy's and torch's random numbers from one seed; on leaving, all are as before.

    Of torch, the CPU's alone: seeding GPUs from a loading process is slow and has no use.
    """
    python, numpy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(state)
