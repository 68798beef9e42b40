"""Where a data set's splits lie: COCO's JSON as many tools lay it out, YOLO, Pascal VOC.  Trees: docs/detection.md."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import replace
from pathlib import Path

from secvit.detection.source import Content, Source, folders
from secvit.detection.voc import voc_splits
from secvit.detection.yolo import yolo_splits
from secvit.fields import Entry, Faults, items, read_json
from secvit.images.files import is_image, is_stray
from secvit.images.words import SPLITS, split_of

UNDIVIDED = ("default", "all", "")  # what CVAT and others call a set without splits, after "instances_"
FILES = ("_annotations.coco.json", "annotations.json", "labels.json", "result.json", "instances.json", "coco.json")
OTHER_KINDS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")  # of COCO, of the same images
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


def _found(root: Path) -> dict[str, Source]:
    """What lies in a folder, by split; "" is a set without splits."""
    if not root.is_dir():
        raise ValueError(f"{root}: {'a file' if root.exists() else 'no such data'}; give the folder of a data set")
    found = _coco_splits(root)
    if found and all(_is_coco(source.file, 3) for source in found.values()):
        return found
    return yolo_splits(root) or voc_splits(root) or found  # beside these, a JSON may be anything


# -- COCO ----------------------------------------------------------------------------------------


def _coco_splits(root: Path) -> dict[str, Source]:
    found: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    undivided: dict[Path, str] = {}
    above = [child for child in folders(root) if child.name.casefold() == "annotations"]
    for place, prefix in [(place, prefix) for prefix in ("instances_", "") for place in (*above, root)]:
        named = {file: file.stem.removeprefix(prefix) for file in _jsons(place) if file.stem.startswith(prefix)}
        for split in SPLITS:
            if file := _choose([file for file, word in named.items() if split_of(word) == split], prefix, split):
                found.setdefault(split, (file, _image_folders(root, named[file], split)))
        for file, word in named.items():
            if prefix and word.casefold() in UNDIVIDED:
                undivided[file] = word
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
    if not found:
        files = [place / name for place in (root, *above) for name in FILES if (place / name).is_file()]
        files += [file for place in (*above, root) for file in _jsons(place) if _is_coco(file)]
        files = list(dict.fromkeys([*undivided, *files]))
        sure = [file for file in files if _is_coco(file, 3)]
        if instances := [file for file in sure if file.stem.startswith("instances_")]:  # captions, keypoints beside it
            sure = [file for file in sure if file in instances or not file.stem.startswith(OTHER_KINDS)]
        if len(sure) > 1:
            names = ", ".join(str(file.relative_to(root)) for file in sure)
            raise ValueError(f"{root}: {names} are each a set without splits; keep one of them")
        if files:
            file = (sure or files)[0]
            found[""] = (file, _image_folders(root, undivided.get(file, ""), ""))
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


def _is_coco(file: Path, lists: int = 2) -> bool:
    """Whether a JSON has some of COCO's three lists; of a large one only the beginning and the end are looked at."""
    part = 1 << 16
    with open(file, "rb") as opened:
        head = opened.read(part)
        opened.seek(max(len(head), (size := os.path.getsize(file)) - part))
        seen = head + opened.read()
    count = sum(
        bool(re.search(rf'"{name}"\s*:\s*\['.encode(), seen)) for name in ("images", "annotations", "categories")
    )
    return count >= (lists if size <= 2 * part else 1)


def _jsons(folder: Path) -> list[Path]:
    return sorted(f for f in folder.glob("*.json") if f.is_file() and not is_stray(f.name))


def has_images(root: Path) -> bool:
    """Whether a folder has images, or a folder that may have them."""
    return any(is_image(child) for child in root.iterdir()) or any(
        child.name.casefold() != "annotations" for child in folders(root)
    )
