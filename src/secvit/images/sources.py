"""Where labelled images come from, and how they are split.  docs/data.md shows each with a tree.

Every word of SPLIT_WORDS names a split, in any case.

DIR/train/CLASS/*.jpg, DIR/val/..., DIR/test/...     folders
DIR/train/CLASS/*.jpg, DIR/val/*.jpg                 ImageNet as it is downloaded, with LOC_val_solution.csv
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

import logging
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from secvit.images.classes import check_names
from secvit.images.digits import DIGITS, read_digits
from secvit.images.files import is_stray
from secvit.images.folders import contents, flat_classes, folder_classes, is_flat, read_flat, read_folder
from secvit.images.hfds import hfds_sources
from secvit.images.labelled import Images, Source
from secvit.images.npz import npz_classes, read_npz
from secvit.images.shards import shard_sources
from secvit.images.tables import SUFFIXES, check_labels, table_source, table_sources
from secvit.progress import reading
from secvit.registry import Registry
from secvit.splits import SPLITS, check_like, held_out, is_joint, joint_is_train, split_of

logger = logging.getLogger(__name__)


@reading
def load_split(data: str | Path, split: str = "train", classes: tuple[str, ...] = ()) -> Images:
    """One split ("train", "val" or "test") of the data at a path, checked from end to end.

    Where only "train" or an undivided set is given, "val" is a fixed stratified 15 % of it.
    classes: those of a network, by which another split can be read where there is no "train".
    """
    sources = _sources(data)
    if classes and "train" not in sources and split in sources:
        return sources[split].read(classes)
    _check_train(sources, data)
    if split == "train" or (len(sources) == 1 and split == "val"):
        images = sources["train"].read(None)
        if split == "train":
            check_names(images.classes, data)
        return _held_out(images, split, data) if len(sources) == 1 else images
    if split in sources:
        train_classes = sources["train"].classes()
        images = sources[split].read(train_classes)
        try:
            return images.numbered_as(train_classes, "train", split)
        except ValueError as error:
            raise ValueError(f"{data}: {error}") from None
    raise ValueError(f"{data}: has no split {split!r}, only {', '.join(splits(data))}")


def place_of(data: str | Path) -> str:
    """The data in words that mean the same from every folder: paths become absolute, names stay."""
    kind, _, rest = str(data).partition("/")
    if str(data) == "digits" or (kind == "hfds" and rest and not os.path.isdir(rest)):
        return str(data)
    if kind in LAYOUTS and rest:
        return f"{kind}/{os.path.abspath(rest)}" if os.path.exists(rest) or kind == "wds" else str(data)
    return os.path.abspath(data)


def splits(data: str | Path) -> tuple[str, ...]:
    """The splits that `load_split` can give."""
    sources = _sources(data)
    _check_train(sources, data)
    return tuple(sources) if len(sources) > 1 else ("train", "val")


def _check_train(sources: dict[str, Source], data: str | Path) -> None:
    if "train" not in sources:
        raise ValueError(f"{data}: has {', '.join(sources)} but no train; add it")


def _sources(data: str | Path) -> dict[str, Source]:
    """What lies at a place, by split; an undivided set is all "train"."""
    kind, _, rest = str(data).partition("/")
    if kind in LAYOUTS and kind not in LAYOUTS.builtin:
        return _added(kind, rest)
    if str(data) == "digits":
        return {"train": Source(lambda _: read_digits("digits"), lambda: DIGITS)}
    if kind == "hfds" and rest:
        return hfds_sources(rest)
    if kind == "wds" and rest:
        return shard_sources(rest)
    path = Path(data)
    if not os.path.exists(path):
        added = "".join(f"{name}/..., " for name in LAYOUTS if name not in LAYOUTS.builtin)
        raise ValueError(
            f'{path}: no such data; give a folder, an .npz or .csv file, {added}wds/..., hfds/... or "digits"'
        )
    if path.suffix.lower() == ".npz":
        return {"train": _npz(path)}
    if path.suffix.lower() in SUFFIXES:
        return table_sources(path)
    if not path.is_dir():
        raise ValueError(f"{path}: not a folder, nor an .npz, .csv or .tsv file; tar shards are given as wds/{path}")
    return _in_folder(path) or {"train": _folder(path)}


LAYOUTS: Registry[Callable[[str], Mapping[str, Images]] | None]
LAYOUTS = Registry("layout", "secvit.images.register_layout", dict.fromkeys(("digits", "wds", "hfds")))


def register_layout(name: str, read: Callable[[str], Mapping[str, Images]]) -> Callable[[str], Mapping[str, Images]]:
    """Let data `NAME/WHERE`, in --data and in Python, be read by a function of your own, in this process; returns it.

    read: of WHERE; the splits that are there, {"train": Images, "val": Images, "test": Images}.  Of "train" alone a
        fixed stratified part is held out.  Raise a ValueError that names the file for what cannot be read.
    """
    if not callable(read):
        raise ValueError(f"secvit.images.register_layout({name!r}, {read!r}): give a function")
    LAYOUTS.add(name, read)
    return read


def _added(name: str, where: str) -> dict[str, Source]:
    read = LAYOUTS.named(name)
    assert read is not None  # none of ours
    images = read(where)
    if unknown := sorted({*images} - {*SPLITS}):
        raise ValueError(f"{name}/{where}: a split is called {unknown[0]!r}; choose {', '.join(SPLITS)}")
    return {split: _in_memory(one) for split, one in images.items()}


def _in_memory(images: Images) -> Source:
    return Source(lambda _: images, lambda: images.classes)


KINDS = (".npz", *SUFFIXES)  # of files that are a split


def _in_folder(path: Path) -> dict[str, Source]:
    """The splits of a folder by their names in it: files, or folders, where no file says more."""
    folders, files = contents(path)
    words: dict[str, dict[str, list[Path]]] = {}  # the places of each split, by the word that names it
    names = {name: name for name in folders} | {name: Path(name).stem for name in files if _is_table(name)}
    for name, word in names.items():
        if split := split_of(word) or ("both" if is_joint(word) else None):
            words.setdefault(split, {}).setdefault(word.strip().casefold(), []).append(path / name)
    _check_unread(path, {*folders, *files})
    if joint := words.pop("both", None):
        if joint_is_train(_chosen(path, "train", joint).name, words, path):
            words["train"] = joint
    places = {split: _chosen(path, split, words[split]) for split in SPLITS if split in words}
    others = [folder for folder in folders if not (split_of(folder) or is_joint(folder))]
    if others and places and all(place.is_dir() and not contents(place)[0] for place in places.values()):
        logger.warning(
            "%s: %s hold no class folders, and %s is beside them; each is read as a class",
            *(path, ", ".join(place.name for place in places.values()), others[0]),
        )
        return {}
    check_like(names, places, path)
    listing = any(place.suffix.lower() in SUFFIXES for place in places.values())  # a table's images lie anywhere
    if others and places and not listing:
        logger.warning("%s: folders that are no split and not used: %s", path, ", ".join(others[:5]))
    check_labels([place for place in places.values() if place.suffix.lower() in SUFFIXES and not place.is_dir()])
    return {split: _place(place, split) for split, place in places.items()}


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in KINDS


def _check_unread(path: Path, read: Collection[str]) -> None:
    """A ValueError for what is called like a split and is not among the folders and files that can be read."""
    for name in sorted({*os.listdir(path)} - {*read}):
        if (split := split_of(Path(name).stem if _is_table(name) else name)) and not is_stray(name):
            raise ValueError(
                f"{path / name}: called like a {split} split, but a link to nothing or no regular file; fetch what it "
                "links to, or remove it"
            )


def _chosen(path: Path, split: str, words: dict[str, list[Path]]) -> Path:
    """The file or folder of a split: the file, where it lists what lies in a folder of its name."""
    places = [place for same in words.values() for place in same]
    first = min(places, key=Path.is_dir)
    second = next((p for p in places if p != first and (len(words) > 1 or p.is_dir() == first.is_dir())), None)
    if second is not None:
        names = ", ".join(sorted(place.name for place in places))
        raise ValueError(f"{path}: {second.name} is a second {split}; keep one of them ({names})")
    for place in places:
        if place != first:
            logger.info("%s: %s is read, %s is not a split of its own", path, first.name, place.name)
    return first


def _place(place: Path, split: str) -> Source:
    if place.is_dir():
        return _flat(place) if is_flat(place) else _folder(place)
    return _npz(place) if place.suffix.lower() == ".npz" else table_source(place, split)


def _flat(path: Path) -> Source:
    return Source(lambda classes: read_flat(path, path.name, classes), partial(flat_classes, path))


def _folder(path: Path) -> Source:
    return Source(lambda classes: read_folder(path, path.name, classes), partial(folder_classes, path))


def _npz(path: Path) -> Source:
    return Source(lambda _: read_npz(path, path.stem), partial(npz_classes, path))


def _held_out(images: Images, split: str, data: str | Path) -> Images:
    """Split an undivided set: a fixed part of each class is "val"."""
    names = (name.removeprefix(images.root).replace("\\", "/").lstrip("/") for name in images.names)
    val = held_out(names, images.labels.numpy())
    indices = val if split == "val" else np.setdiff1d(np.arange(len(images)), val)
    if not len(indices):
        raise ValueError(
            f"{data}: each class has one image, so nothing can be held out for {split}; add images, or a val split"
        )
    logger.info(
        "%s: no val split; %s is a fixed stratified part of %d of %d images",
        *(data, split, len(indices), len(images)),
    )
    return images.part(split, indices.tolist())
