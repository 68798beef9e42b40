"""What can be known about a data set before the first step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from secvit.fields import read_bytes
from secvit.images.labelled import Images, check_skipped
from secvit.images.names import Names
from secvit.images.read import read_image
from secvit.images.sources import load_split, splits

logger = logging.getLogger(__name__)

DARK = 32  # of 255
FEW_FILES = 5000  # read as a whole to find copies: seconds; beyond, names alone are compared


def load_checked(data: str | Path) -> tuple[Images, Images, str]:
    """What a run needs to begin: train, the held-out images, and which split those are ("val", else "test").

    Counts go to the log, some images are opened, and held-out ones are looked for in train.
    """
    held_out = "val" if "val" in splits(data) else "test"
    train, other = load_split(data, "train"), load_split(data, held_out)
    for images in (train, other):
        logger.info(describe(images))
        check_examples(images)
    check_overlap(train, other)
    return train, other, held_out


def describe(images: Images) -> str:
    """One line for the log: images, classes, the rarest and the most frequent.

    Warns of classes that have fewer than two images or a hundredth of the most frequent one's.
    """
    counts = images.labels.bincount(minlength=len(images.classes)).tolist()
    rare, often = counts.index(min(counts)), counts.index(max(counts))
    least, most = counts[rare], counts[often]
    lonely = [images.classes[i] for i, count in enumerate(counts) if count < 2]
    if lonely:
        names = f"{', '.join(lonely[:3])}{', ...' if len(lonely) > 3 else ''}"
        logger.warning("%s: %d classes with fewer than two images: %s", images.name, len(lonely), names)
    if most > 100 * least:
        logger.warning(
            "%s: %s has %s images, %s only %s; top-1 will say little about the rare classes, macro does",
            *(images.name, images.classes[often], f"{most:,}", images.classes[rare], f"{least:,}"),
        )
    each = (
        f"{least:,}" if least == most else f"{least:,} ({images.classes[rare]}) to {most:,} ({images.classes[often]})"
    )
    return f"{images.name}: {len(images):,} images, {len(counts):,} classes, {each} each"


def check_examples(images: Images, count: int = 32) -> None:
    """Open some images, at least the first of each class or of evenly chosen ones; a ValueError if they are broken.

    A broken one by chance is named in a warning; `check_skipped` says how many are too many.
    """
    if images.pixels is not None:
        return
    first: dict[int, int] = {}
    for i, label in enumerate(images.labels.tolist()):
        first.setdefault(label, i)
    chosen = set(_evenly(list(first.values()), count))
    chosen |= set(_evenly(range(len(images)), count - len(chosen)))
    broken: list[str] = []
    brightest = []
    for i in sorted(chosen):
        try:
            bands: Any = images.image(i).getextrema()  # of RGB, a pair for each band
            brightest.append(max(high for _, high in bands))
        except ValueError as error:
            broken.append(images.names[i])
            logger.warning("%s: %s", images.name, error)
            check_skipped(broken, len(chosen))
    if brightest and max(brightest) < DARK:
        logger.warning(
            "%s: the brightest value of %d examples is %d of 255; if these are 16-bit files with 10 or 12 bits of "
            "data, multiply their values by 64 or 16, as white is 65,535 in all of them",
            *(images.name, len(brightest), max(brightest)),
        )


def check_overlap(train: Images, held_out: Images) -> list[str]:
    """Warn of held-out images that are in train as well, and return their names.

    Compared by bytes in memory or in up to 5,000 files, otherwise by name.
    """
    if train.pixels is not None or held_out.pixels is not None or _few(train, held_out):
        train_contents = set(_contents(train))
        twice = [name for name, key in zip(held_out.names, _contents(held_out), strict=True) if key in train_contents]
    else:  # a set of all names of train would be as large as all names
        theirs, ours = (np.fromiter(map(hash, images.names), np.int64, len(images)) for images in (held_out, train))
        alike = Names.of(held_out.names).select(np.isin(theirs, ours).nonzero()[0].tolist())
        there = set(train.names).intersection(alike) if len(alike) else set()
        twice = [name for name in alike if name in there]
    if twice:
        logger.warning(
            "%d of %d images of %s are in %s as well, so the score will be too good: %s%s",
            *(len(twice), len(held_out), held_out.name, train.name, ", ".join(twice[:3])),
            ", ..." if len(twice) > 3 else "",
        )
    return twice


def _evenly(items: list[int] | range, count: int) -> list[int]:
    count = max(0, min(count, len(items)))
    return [items[i * len(items) // count] for i in range(count)]


def _few(*parts: Images) -> bool:
    """Whether all contents may be compared: they are files, and not many."""
    return sum(map(len, parts)) <= FEW_FILES and all(p.read is read_image for p in parts)


def _contents(images: Images) -> Iterable[str | bytes]:
    """What is equal for equal images: hashes of their bytes, or the name of a file that cannot be read."""
    if images.pixels is not None:
        return (hashlib.sha1(row.numpy().tobytes()).digest() for row in images.pixels)
    return map(_digest, images.names)


def _digest(name: str) -> str | bytes:
    try:
        return hashlib.sha1(read_bytes(name)).digest()
    except ValueError:  # reported elsewhere
        return name
