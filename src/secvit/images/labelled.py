"""Labelled images, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from secvit.images.read import read_image


@dataclass(frozen=True)
class Images:
    """Labelled images: in memory as uint8 pixels (n, 3, H, W), or read by name when asked for.

    `read` turns a name into an image, and a broken one into a ValueError that names it.  `root` is
    what all names begin with and no split may depend on.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    pixels: Tensor | None
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    read: Callable[[str], Image.Image] = read_image
    root: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image; a broken one is a ValueError that names it."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].permute(1, 2, 0).numpy())
        return self.read(self.names[index])

    def part(self, name: str, indices: Sequence[int]) -> Images:
        """Some of the images under another name."""
        return replace(
            self,
            name=name,
            labels=self.labels[torch.tensor(indices)],
            pixels=None if self.pixels is None else self.pixels[torch.tensor(indices)],
            names=tuple(self.names[i] for i in indices),
        )

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class."""
        return float(self.labels.bincount().max()) / len(self)


def check_skipped(skipped: Sequence[str], total: int) -> None:
    """More than 1 % of broken images (but at least two) is not bad luck any more."""
    if len(skipped) > max(1, total // 100):
        raise ValueError(
            f"{len(skipped)} broken images of {total}, which is too many to go on: "
            f"{', '.join(skipped[:3])}{', ...' if len(skipped) > 3 else ''}; repair the data"
        )
