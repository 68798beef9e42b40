"""What training and evaluation see of labelled images."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from tqdm import tqdm

from secvit.images.labelled import Images, check_skipped
from secvit.loading import read
from secvit.processes import is_first, share, sum_over_processes

logger = logging.getLogger(__name__)


Transform = Callable[[Image.Image], Tensor]


class View:
    """Images through a transform, as batches, with a count of the broken ones.

    A subclass makes a batch in `__getitems__`.
    """

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform
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

    def batches(self, batch_size: int, workers: int = 0) -> Iterator[dict[str, Tensor]]:
        """Each image once, in batches without the broken ones; of many processes, each gets a share.

        In the end all know what any of them found broken, so each has to come to the end.
        """
        indices = share(len(self))
        keys = [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]
        silent = None if is_first() else True
        with contextlib.closing(read(self, keys, workers, self.images.names)) as batches:
            for batch in tqdm(batches, f"evaluating {self.images.name}", len(keys), disable=silent, leave=False):
                if len(batch["image"]):
                    yield batch
        self.gather_broken()

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

    def whole_ones(self, keys: Sequence[int]) -> tuple[list[int], Tensor]:
        """Those of some indices that are not broken, and what the transform makes of them, (n, 3, H, W)."""
        opened = {i: image for i in keys if (image := self.open(i)) is not None}
        views = [self.transform(image) for image in opened.values()]
        return list(opened), torch.stack(views) if views else torch.empty(0, 3, 1, 1)


def middle(size: int, mean: Sequence[float], std: Sequence[float], crop_pct: float = 1.0) -> Transform:
    """timm's view for evaluation: short side to size / crop_pct (bicubic), the middle square, normalised."""
    return create_transform(
        size, is_training=False, interpolation="bicubic", mean=tuple(mean), std=tuple(std), crop_pct=crop_pct
    )


def skipped_in(*views: View) -> list[str]:
    """Names of what was found broken in some views, by any process; a warning if there are any."""
    for view in views:
        view.gather_broken()
    names = [name for view in views for name in view.skipped]
    if names:
        logger.warning("%d broken images were skipped: %s", len(names), ", ".join(names[:5]))
    return names


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
