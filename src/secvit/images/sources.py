"""Where labelled images come from, and how they are split.

DIR/train/CLASS/*.jpg, DIR/val/..., DIR/test/...     folders
DIR/CLASS/*.jpg                                      folders, a part is held out
DIR/train.npz, DIR/val.npz, DIR/test.npz             npz (keys: jpeg offset label name classes)
FILE.npz                                             one npz, a part is held out
"digits"                                             1,797 real handwritten digits, 8x8 px
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from secvit.images.digits import DIGITS, read_digits
from secvit.images.folders import folder_classes, read_folder
from secvit.images.labelled import Images
from secvit.images.npz import npz_classes, read_npz

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
HELD_OUT = 0.15


class Source(NamedTuple):
    """One split where it lies: how to read it, and its classes without reading it all."""

    read: Callable[[], Images]
    classes: Callable[[], tuple[str, ...]]


def load_split(data: str | Path, split: str = "train") -> Images:
    """One split ("train", "val" or "test") of the data at a path, checked from end to end.

    Where only "train" or an undivided set is given, "val" is a fixed stratified 15 % of it.
    """
    found = _found(data)
    if split in found:
        images = found[split].read()
        if split != "train":
            _check_classes(images, found["train"].classes(), str(data))
        elif len(found) == 1:
            return _held_out(images, split)
        return images
    if split == "val" and len(found) == 1:
        return _held_out(found["train"].read(), split)
    raise ValueError(f"{data}: has no split {split!r}, only {', '.join(splits(data))}")


def splits(data: str | Path) -> tuple[str, ...]:
    """The splits that `load_split` can give."""
    found = tuple(_found(data))
    return found if len(found) > 1 else ("train", "val")


def _found(data: str | Path) -> dict[str, Source]:
    """What lies at a place, by split; an undivided set is all "train"."""
    if str(data) == "digits":
        return {"train": Source(partial(read_digits, "digits"), lambda: DIGITS)}
    path = Path(data)
    if not path.exists():
        raise ValueError(f'{path}: no such data; give a folder, an .npz file or "digits"')
    if path.suffix == ".npz":
        return {"train": _npz(path)}
    found = {}
    for split in SPLITS:
        if (path / f"{split}.npz").exists():
            found[split] = _npz(path / f"{split}.npz")
        elif (path / split).is_dir():
            found[split] = _folder(path / split)
    if found and "train" not in found:
        raise ValueError(f"{path}: has {', '.join(found)} but no train; add it")
    return found or {"train": _folder(path)}


def _folder(path: Path) -> Source:
    return Source(partial(read_folder, path, path.name), partial(folder_classes, path))


def _npz(path: Path) -> Source:
    return Source(partial(read_npz, path, path.stem), partial(npz_classes, path))


def _check_classes(images: Images, train: tuple[str, ...], data: str) -> None:
    if images.classes == train:
        return
    extra = sorted(set(images.classes) - set(train))
    lacking = sorted(set(train) - set(images.classes))
    raise ValueError(
        f"{data}: {images.name} has {len(images.classes)} classes, but train has {len(train)}"
        + (f"; only in {images.name}: {', '.join(extra[:3])}" if extra else "")
        + (f"; missing in {images.name}: {', '.join(lacking[:3])}" if lacking else "")
        + ("; in another order" if not extra and not lacking else "")
    )


def _held_out(images: Images, split: str) -> Images:
    """Split an undivided set: the 15 % of each class with the lowest hash of the name are "val"."""

    def by_hash(index: int) -> bytes:
        name = images.names[index].removeprefix(images.root).replace("\\", "/").lstrip("/")
        return hashlib.sha1(name.encode()).digest()

    chosen = []
    for label in range(len(images.classes)):
        members = sorted((images.labels == label).nonzero().flatten().tolist(), key=by_hash)
        count = min(len(members) - 1, max(1, round(HELD_OUT * len(members))))
        chosen += members[:count] if split == "val" else members[count:]
    logger.info(
        "%s: no splits given; %s is a fixed stratified part of %d of %d images",
        *(images.name, split, len(chosen), len(images)),
    )
    return images.part(split, sorted(chosen))
