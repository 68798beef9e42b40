"""Where labelled images come from, and how they are split.  docs/data.md shows each with a tree.

DIR/train/CLASS/*.jpg, DIR/val/..., DIR/test/...     folders
DIR/CLASS/*.jpg                                      folders, a part is held out
DIR/train.npz, DIR/val.npz, DIR/test.npz             npz (keys: jpeg offset label name classes)
FILE.npz                                             one npz, a part is held out
DIR/train.csv, DIR/val.csv, DIR/test.csv             paths and labels; .tsv likewise
FILE.csv                                             by a column split; without it, a part is held out
wds/DIR, wds/DIR/train-{000..015}.tar                WebDataset shards
hfds/NAME, hfds/DIR                                  Hugging Face datasets
"digits"                                             1,797 real handwritten digits, 8x8 px
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from pathlib import Path

from secvit.images.digits import DIGITS, read_digits
from secvit.images.folders import folder_classes, read_folder
from secvit.images.hfds import hfds_sources
from secvit.images.labelled import SPLITS, Images, Source
from secvit.images.npz import npz_classes, read_npz
from secvit.images.shards import shard_sources
from secvit.images.tables import SUFFIXES, table_source, table_sources

logger = logging.getLogger(__name__)

HELD_OUT = 0.15


def load_split(data: str | Path, split: str = "train") -> Images:
    """One split ("train", "val" or "test") of the data at a path, checked from end to end.

    Where only "train" or an undivided set is given, "val" is a fixed stratified 15 % of it.
    """
    found = _found(data)
    if len(found) == 1 and split in ("train", "val"):
        return _held_out(found["train"].read(None), split)
    if split == "train":
        return found[split].read(None)
    if split in found:
        classes = found["train"].classes()
        images = found[split].read(classes)
        _check_classes(images, classes, str(data))
        return images
    raise ValueError(f"{data}: has no split {split!r}, only {', '.join(splits(data))}")


def splits(data: str | Path) -> tuple[str, ...]:
    """The splits that `load_split` can give."""
    found = tuple(_found(data))
    return found if len(found) > 1 else ("train", "val")


def _found(data: str | Path) -> dict[str, Source]:
    """What lies at a place, by split; an undivided set is all "train"."""
    found = _sources(data)
    if "train" not in found:
        raise ValueError(f"{data}: has {', '.join(found)} but no train; add it")
    return found


def _sources(data: str | Path) -> dict[str, Source]:
    kind, _, rest = str(data).partition("/")
    if str(data) == "digits":
        return {"train": Source(lambda _: read_digits("digits"), lambda: DIGITS)}
    if kind == "hfds" and rest:
        return hfds_sources(rest)
    if kind == "wds" and rest:
        return shard_sources(rest)
    path = Path(data)
    if not path.exists():
        raise ValueError(f'{path}: no such data; give a folder, an .npz or .csv file, wds/..., hfds/... or "digits"')
    if path.suffix == ".npz":
        return {"train": _npz(path)}
    if path.suffix in SUFFIXES:
        return table_sources(path)
    if not path.is_dir():
        raise ValueError(f"{path}: not a folder, nor an .npz, .csv or .tsv file; tar shards are given as wds/{path}")
    found: dict[str, Source] = {}
    for word, split in SPLITS.items():
        source = _in_folder(path, word)
        if source and split in found:
            raise ValueError(f"{path}: {word} is a second {split}; keep one of them")
        if source:
            found[split] = source
    return found or {"train": _folder(path)}


def _in_folder(path: Path, word: str) -> Source | None:
    """A split by its name in a folder: a file of it, or a folder, where a file says more."""
    if (path / f"{word}.npz").is_file():
        return _npz(path / f"{word}.npz")
    for suffix in SUFFIXES:
        if (path / f"{word}{suffix}").is_file():
            return table_source(path / f"{word}{suffix}")
    return _folder(path / word) if (path / word).is_dir() else None


def _folder(path: Path) -> Source:
    return Source(lambda _: read_folder(path, path.name), partial(folder_classes, path))


def _npz(path: Path) -> Source:
    return Source(lambda _: read_npz(path, path.stem), partial(npz_classes, path))


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
