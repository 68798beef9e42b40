"""Labelled images, wherever they come from."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from secvit.images.classes import class_names, match_classes
from secvit.images.names import Names
from secvit.images.read import read_image

logger = logging.getLogger(__name__)


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
    names: Sequence[str]  # kept as Names
    skipped: tuple[str, ...] = ()
    read: Callable[[str], Image.Image] = read_image
    root: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", Names.of(self.names))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image; a broken one is a ValueError that names it."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].permute(1, 2, 0).numpy())
        return self.read(self.names[index])

    def part(self, name: str, indices: Sequence[int]) -> Images:
        """Some of the images under another name."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return replace(
            self,
            name=name,
            labels=self.labels[chosen],
            pixels=None if self.pixels is None else self.pixels[chosen],
            names=Names.of(self.names).select(chosen.tolist()),
        )

    def numbered_as(self, classes: Sequence[str], expected_name: str, actual_name: str) -> Images:
        """The same images with the classes, and their numbers, of somebody else, compared by name.

        expected_name, actual_name: what messages call the two ("the run runs/a", "the data DIR").
        Says where the images lack some of these classes; ValueError if they have others.
        """
        if tuple(classes) == self.classes:
            return self
        places = match_classes(classes, self.classes, expected_name, actual_name)
        if len(places) < len(classes):
            logger.warning(
                "%s has %d of the %d classes of %s; the numbers are those of %s",
                *(actual_name, len(places), len(classes), expected_name, expected_name),
            )
        elif places != sorted(places):
            logger.info(
                "%s has the classes of %s in another order; they are matched by name", actual_name, expected_name
            )
        return replace(self, classes=tuple(classes), labels=torch.tensor(places)[self.labels])

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class."""
        return float(self.labels.bincount().max()) / len(self)


class Source(NamedTuple):
    """One split where it lies: how to read it, given train's classes if it is not train, and its own classes."""

    read: Callable[[tuple[str, ...] | None], Images]
    classes: Callable[[], tuple[str, ...]]


def number_labels(
    labels: Sequence[str], classes: tuple[str, ...] | None, where: Callable[[int], str]
) -> tuple[tuple[str, ...], Tensor]:
    """The classes, and for each label its place among them.  Train's classes are given for another split.

    `where` names an entry for errors.
    """
    names = classes or class_names(labels)
    for i, label in enumerate(labels):
        if re.fullmatch(r"-\d+", label):
            raise ValueError(f"{where(i)}: label {label}, but classes count from 0; leave unlabelled images out")
    if len(names) < 2:
        raise ValueError(f"{where(0)}: all {len(labels)} images are of class {names[0]!r}; expected at least two")
    number = {name: i for i, name in enumerate(names)}
    new = [i for i, label in enumerate(labels) if label not in number]
    if new:
        raise ValueError(
            f"{where(new[0])}: class {labels[new[0]]!r}, which train lacks ({len(new)} such entries of {len(labels)}); "
            "add it to train or remove it here"
        )
    return names, torch.tensor([number[label] for label in labels])


def check_skipped(skipped: Sequence[str], total: int) -> None:
    """More than 1 % of broken images (but at least two) is not bad luck any more."""
    if len(skipped) > max(1, total // 100):
        raise ValueError(
            f"{len(skipped)} broken images of {total}, which is too many to go on: "
            f"{', '.join(skipped[:3])}{', ...' if len(skipped) > 3 else ''}; repair the data"
        )
