"""Folders of images and masks: checked before the first step, read as classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from secvit.fields import Faults
from secvit.images import Images, View, seeded, upright_size
from secvit.images.classes import check_names
from secvit.processes import is_first, of_all_processes, share
from secvit.progress import reading
from secvit.segmentation.augment import IGNORED, training_view
from secvit.segmentation.classes import Classes, check_used, number_classes, say_zero
from secvit.segmentation.config import Augment
from secvit.segmentation.layouts import Layout, find_layout, splits
from secvit.segmentation.masks import MASKS, Colours, Indexed, clashing, palette_of, read_indexed, read_mask, values_of
from secvit.segmentation.names import Named, Palette
from secvit.train.sampler import mix

__all__ = ["MASKS", "EvalView", "Split", "TrainView", "load", "read_mask", "splits"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
REPAIR = "Repair or remove them"
VALUES = (
    'Repair or remove them, or say in classes.json which values are classes: {"classes": {"0": "sky", "128": "road"}} '
    "(docs/segmentation.md)"
)


@dataclass(frozen=True)
class Split:
    """Images with a mask each.

    masks: their files.  labels: names, values and colours of the classes.  colours: what masks in colours are read by.
    palettes: of indexed masks, for each index the first mask that holds it.
    """

    images: Images
    masks: tuple[Path, ...]
    labels: Classes
    colours: Colours | None = None
    palettes: tuple[Indexed, ...] = ()

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.names

    @property
    def palette(self) -> Palette:
        """Red, green and blue of each class in 0..255."""
        return self.labels.palette

    def mask(self, i: int) -> np.ndarray:
        """The classes of an image's pixels, (H, W), 255 where there is none."""
        return self.labels.table[read_mask(self.masks[i], self.colours)]

    def in_order_of(self, names: Sequence[str], names_from: str) -> Split:
        """The same with the classes in another order; a ValueError if they are not the same by name."""
        labels = self.labels.in_order_of(names, names_from, f"the data {self.images.root}")
        return replace(self, labels=labels, images=replace(self.images, classes=labels.names))


class Looked(NamedTuple):
    """What is wrong with an image and its mask, "" if nothing is, the values in the mask, and its palette."""

    fault: str
    values: tuple[int, ...]
    palette: bytes = b""


@reading
def load(root: str | Path, split: str, train: Split | None = None) -> Split:
    """A split ("train", "val" or "test"), checked.

    train: that split, if it is loaded already: its masks decide which values are classes.
    A ValueError names images without a mask, masks of another size or with values that are no class, what cannot
    be read, and names of classes that the masks cannot mean.  Of a set without splits, "val" is a fixed 15 %.
    Of many processes each reads a share, so every one has to ask.
    """
    layout = find_layout(Path(root))
    pairs = layout.pairs(split)
    images, masks, where = pairs.images, pairs.masks, pairs.images[0].parent
    pairs.left_out.tell(split, 2 * len(images))
    named = layout.named()
    colours = (named.colours if named else None) or layout.colours
    looked = over(
        lambda pair: look_at(pair[0], pair[1], colours), list(zip(images, masks, strict=True)), f"checking {where.name}"
    )
    used = {value for one in looked for value in one.values}
    if not (train or named):  # the values of all masks are the classes
        check_looked(where, masks, looked)
    classes, of_train = (train.labels, None) if train else number(layout, split, named, colours, used, masks[0].parent)
    check_looked(where, masks, looked, classes)
    palettes = check_palettes(masks, looked, train.palettes if train else ())
    if not used & set(classes.values):
        ignored = ", ".join(map(str, sorted(used))) or "nothing"
        raise ValueError(f"{masks[0].parent}: no pixel of any mask has a class; all hold {ignored}")
    if not train:
        check_names(classes.names, named.where if named else masks[0].parent)
    if of_train is not None and named:
        check_used(classes, named, of_train, str(masks[0].parent))
    if not (train or (named and named.palette)):
        classes = replace(classes, palette=palette_of(masks[0], classes.values) or classes.palette)
    if is_first():
        logger.info("%s: %s images, %d classes", split, f"{len(images):,}", len(classes.names))
    image_set = Images(split, classes.names, torch.zeros(len(images)), None, tuple(map(str, images)), root=str(where))
    return Split(image_set, masks, classes, colours, palettes)


def number(
    layout: Layout, split: str, named: Named | None, colours: Colours | None, used: set[int], folder: Path
) -> tuple[Classes, set[int] | None]:
    """The classes, and the values that the masks of train hold if these had to be known.

    used, folder: values in the masks of this split, and where they lie.
    """
    rising_pair = named is not None and named.values is None and len(named.names) == 2
    unsaid = layout.ade20k and named is not None and named.values is None and named.ignored is None
    unknown = named is None or unsaid or (rising_pair and used <= {0, IGNORED})
    from_train = unknown and "train" in layout.splits
    if split != "train" and from_train:
        masks = layout.pairs("train").masks
        folder = masks[0].parent
        looked = over(lambda mask: values_in(mask, colours), masks, f"reading masks of {folder.name}")
        faults = Faults(f"{folder}: masks that cannot be used")
        for one in looked:
            if one.fault:
                faults.add(one.fault)
        faults.check(REPAIR)
        check_palettes(masks, looked)
        used = {value for one in looked for value in one.values}
    named = say_zero(named, used, str(folder)) if named and unsaid else named
    classes = number_classes(named, used, str(folder))
    return classes, used if split == "train" or from_train else None


def look_at(image: Path, mask: Path, colours: Colours | None) -> Looked:
    """An image and its mask, read as training will read them."""
    try:
        size, (values, palette) = upright_size(image), read_indexed(mask, colours)
    except ValueError as error:
        return Looked(str(error), ())
    if size != values.shape[::-1]:
        height, width = values.shape
        return Looked(f"{mask} is {width}x{height} px, {image.name} is {size[0]}x{size[1]} px upright", ())
    return Looked("", values_of(values), palette)


def check_looked(where: Path, masks: Sequence[Path], looked: Sequence[Looked], classes: Classes | None = None) -> None:
    """A ValueError for what cannot be read and, where the classes are known, for masks with other values."""
    faults, values = Faults(f"{where}: images and masks that cannot be used"), False
    for mask, one in zip(masks, looked, strict=True):
        if fault := one.fault or (strange(mask, one.values, classes) if classes else ""):
            values |= not one.fault
            faults.add(fault)
    faults.check(VALUES if values else REPAIR)


def values_in(mask: Path, colours: Colours | None) -> Looked:
    try:
        values, palette = read_indexed(mask, colours)
    except ValueError as error:
        return Looked(str(error), ())
    return Looked("", values_of(values), palette)


def check_palettes(
    masks: Sequence[Path], looked: Sequence[Looked], train: Sequence[Indexed] = ()
) -> tuple[Indexed, ...]:
    """For each index the first mask that holds it; a ValueError if its colour is another in a later one.

    train: what this gave for the masks of train, with which others are compared.
    """
    palettes = [(mask, one.values, one.palette) for mask, one in zip(masks, looked, strict=True)]
    if clash := clashing([*train, *palettes]):
        raise ValueError(f"{masks[0].parent}: {clash}")
    first: dict[int, Indexed] = {}
    for mask, values, palette in palettes:
        for index in values if palette else ():
            first.setdefault(index, (mask, (index,), palette))
    return tuple(first.values())


def strange(mask: Path, values: Sequence[int], classes: Classes) -> str:
    """Which values of a mask are neither a class nor ignored; "" if none is."""
    others = sorted(set(values) - set(classes.values) - set(classes.ignored))
    if not others:
        return ""
    none = f"which is none of {len(classes.names)} classes"
    if others[-1] > IGNORED:
        return f"{mask}: holds the value {others[-1]}, {none}; does it count objects, not classes?"
    return f"{mask} holds {', '.join(map(str, others[:5]))}, {none}"


def over(work: Callable[[Any], T], items: Sequence[Any], title: str) -> list[T]:
    """Some work on each item, with a bar; every process does a share, in threads, and gets what all have done."""
    indices = share(len(items))
    hidden = not is_first() or None
    with ThreadPoolExecutor() as pool:
        done = tqdm(pool.map(work, [items[i] for i in indices]), title, len(indices), disable=hidden, leave=False)
        results = list(zip(indices, done, strict=True))
    return [result for _, result in sorted(of_all_processes(results), key=itemgetter(0))]


# -- batches -----------------------------------------------------------------------------------


class TrainView(View):
    """Batches {"image": (B, 3, S, S), "target": (B, S, S) of classes, 255 to be ignored} by sampler keys.

    What is drawn for an image depends on (seed, key) alone.
    """

    def __init__(
        self, split: Split, augment: Augment, mean: Sequence[float], std: Sequence[float], seed: int = 0
    ) -> None:
        super().__init__(split.images, pil_to_tensor)
        self.split, self.augment, self.seed = split, augment, seed
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        pairs = [self.pair(key) for key in keys]
        images = torch.stack([image for image, _ in pairs])
        return {"image": images, "target": torch.stack([target for _, target in pairs])}

    def pair(self, key: int) -> tuple[Tensor, Tensor]:
        image, i = self.open_or_next(key % len(self))
        with seeded(mix(self.seed, key)):
            return training_view(image, self.split.mask(i), self.augment, self.mean, self.std)


class EvalView(View):
    """Batches {"image": images, "target": masks (H, W)} by index, as they are.  Broken images drop out."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.images, pil_to_tensor)
        self.split = split

    def __getitems__(self, keys: list[int]) -> dict[str, Any]:
        opened = {i: image for i in keys if (image := self.open(i)) is not None}
        return {"image": list(opened.values()), "target": [self.split.mask(i) for i in opened]}
