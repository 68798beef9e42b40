"""Where a data set's splits lie: COCO's JSON as many tools lay it out, YOLO, Pascal VOC.  Trees: docs/detection.md."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from secvit.detection.source import Content, Source, folders
from secvit.detection.voc import voc_splits
from secvit.detection.yolo import yolo_splits
from secvit.fields import Entry, Faults, items, read_json
from secvit.images.files import is_image, is_stray
from secvit.images.words import SPLITS, split_of

HELD_OUT = 0.15  # of an undivided set
UNDIVIDED = ("default", "all", "")  # what CVAT and others call a set without splits, after "instances_"
FILES = ("_annotations.coco.json", "annotations.json", "labels.json", "result.json", "instances.json", "coco.json")
FOLDERS = ("images", "data", "JPEGImages")  # of images, beside or above a JSON
LOOKED_FOR = (
    "annotations/instances_{split}.json, annotations/instances_{split}2017.json, annotations/{split}.json, "
    "{split}.json, {split}/_annotations.coco.json; undivided: annotations/instances_default.json, result.json, "
    "labels.json; YOLO: data.yaml or classes.txt with images/{split} and labels/{split}; "
    "Pascal VOC: Annotations/*.xml with ImageSets/Main/{split}.txt"
)


def splits(root: str | Path) -> tuple[str, ...]:
    """The splits that `find` can give, of a set without val and test those that it is divided into."""
    found = _found(Path(root))
    return ("train", "val") if set(found) <= {"", "train"} and found else tuple(s for s in SPLITS if s in found)


def find(root: str | Path, split: str, divide: bool = False) -> Source:
    """A split's file and folders; a ValueError that lists what was looked for if there is none.

    divide: hold val out of a train split that has neither val nor test beside it, as of an undivided set.
    """
    found = _found(Path(root))
    if split in found and not (divide and set(found) == {"train"}):
        return found[split]
    alone = found.get("") or (found.get("train") if divide and set(found) == {"train"} else None)
    if alone and split in ("train", "val"):
        return replace(alone, part=split)
    has = ", ".join(name or "an undivided set" for name in found)
    looked_for = LOOKED_FOR.format(split=split)
    raise ValueError(
        f"{root}: no {split} split in COCO's format; looked for {looked_for}" + (f"; found {has}" if has else "")
    )


def held_out(names: Sequence[str], part: str) -> set[int]:
    """Which images of an undivided set are in a part: the 15 % with the lowest SHA-1 of their name are "val"."""
    order = sorted(range(len(names)), key=lambda i: hashlib.sha1(names[i].encode(errors="surrogatepass")).digest())
    count = min(len(names) - 1, max(1, round(HELD_OUT * len(names))))
    return set(order[:count] if part == "val" else order[count:])


def _found(root: Path) -> dict[str, Source]:
    """What lies in a folder, by split; "" is a set without splits."""
    if not root.is_dir():
        raise ValueError(f"{root}: {'a file' if root.exists() else 'no such data'}; give the folder of a data set")
    for kind in (_coco_splits, yolo_splits, voc_splits):
        if found := kind(root):
            return found
    return {}


# -- COCO ----------------------------------------------------------------------------------------


def _coco_splits(root: Path) -> dict[str, Source]:
    found: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    above = [child for child in folders(root) if child.name.casefold() == "annotations"]
    for place, prefix in [(place, prefix) for prefix in ("instances_", "") for place in (*above, root)]:
        named = {file: file.stem.removeprefix(prefix) for file in _jsons(place) if file.stem.startswith(prefix)}
        for split in SPLITS:
            if file := _choose([file for file, word in named.items() if split_of(word) == split], prefix, split):
                found.setdefault(split, (file, _image_folders(root, named[file], split)))
        for file, word in named.items():
            if prefix and word.casefold() in UNDIVIDED:
                found.setdefault("", (file, _image_folders(root, word, "")))
    inside: dict[str, Path] = {}
    for child in folders(root):
        split = split_of(child.name)
        file = next((child / name for name in FILES if (child / name).is_file()), None)
        if split and file:
            if split in inside:
                raise ValueError(f"{inside[split]} and {file} are both a {split} split; keep one of them")
            inside[split] = file
            own = (child, *(child / name for name in FOLDERS if (child / name).is_dir()))
            found.setdefault(split, (file, own))
    if len(found) > 1:
        found.pop("", None)
    if not found:
        files = [place / name for place in (root, *above) for name in FILES if (place / name).is_file()]
        files += [file for place in (*above, root) for file in _jsons(place) if _is_coco(file)]
        if files:
            found[""] = (files[0], _image_folders(root, "", ""))
    return {split: Source(file, places, functools.partial(_read_coco, file)) for split, (file, places) in found.items()}


def _choose(files: list[Path], prefix: str, split: str) -> Path | None:
    """Of several files of a split the one without a year, else that of 2017, COCO's usual one."""
    for year in ("", "2017", None):
        some = [f for f in files if year is None or f.stem.removeprefix(prefix).casefold() == f"{split}{year}"]
        if len(some) > 1:
            raise ValueError(f"{some[0]} and {some[1].name} are both a {split} split; keep one of them")
        if some:
            return some[0]
    return None


def _image_folders(root: Path, word: str, split: str) -> tuple[Path, ...]:
    """Where the images of a split may lie, its own folders first."""
    own, common = [], [child for name in FOLDERS for child in folders(root) if child.name.casefold() == name.casefold()]
    for place in (root, *common):
        inside = [child for child in folders(place) if child not in common]
        own += [child for child in inside if word and child.name == word]
        own += [child for child in inside if child.name != word and (split and split_of(child.name) == split)]
        own += [child for child in inside if place != root and not split and child.name.casefold() in UNDIVIDED]
    nested = [child / name for child in own for name in FOLDERS if (child / name).is_dir()]
    return tuple(dict.fromkeys([*own, *nested, *common]))


def _read_coco(file: Path, _: Faults) -> Content:
    """The three lists of a COCO file."""
    try:
        whole = Entry("the file", read_json(file))
        return Content(*(whole.get(name, items) for name in ("images", "annotations", "categories")))
    except ValueError as error:
        raise ValueError(f"{file}: not a readable COCO file ({str(error).removeprefix(f'{file}: ')})") from None


def _is_coco(file: Path) -> bool:
    """Whether an unnamed JSON's beginning or end looks like COCO's: no other list in it is called so."""
    with open(file, "rb") as opened:
        head = opened.read(1 << 16)
        opened.seek(max(0, os.path.getsize(file) - (1 << 16)))
        return any(f'"{name}"'.encode() in head + opened.read() for name in ("images", "annotations", "categories"))


def _jsons(folder: Path) -> list[Path]:
    return sorted(f for f in folder.glob("*.json") if f.is_file() and not is_stray(f.name))


def has_images(root: Path) -> bool:
    """Whether a folder has images, or a folder that may have them."""
    return any(is_image(child) for child in root.iterdir()) or any(
        child.name.casefold() != "annotations" for child in folders(root)
    )
