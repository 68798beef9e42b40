"""Where a data set's splits lie: COCO's JSON as many tools lay it out, YOLO, Pascal VOC.  Trees: docs/detection.md."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
from dataclasses import replace
from pathlib import Path

from secvit.detection.source import (
    FOLDERS,
    Candidate,
    Content,
    Listing,
    Source,
    called_val,
    choose,
    files_in,
    folder_called,
    folders,
    not_read,
    speaks_of,
    split_word,
    unreadable,
)
from secvit.detection.voc import voc_splits
from secvit.detection.yolo import yolo_splits
from secvit.fields import Entry, Faults, items, read_json
from secvit.images.files import is_image
from secvit.splits import SPLITS, split_inside, split_of

UNDIVIDED = ("default", "all", "")  # what CVAT and others call a set without splits, after "instances_"
FILES = ("_annotations.coco.json", "annotations.json", "labels.json", "result.json", "instances.json", "coco.json")
POINTS = "person_keypoints_"  # COCO's, with boxes; its other files have none of objects
OTHER_KINDS = (POINTS, "captions_", "stuff_", "panoptic_", "image_info_")  # of COCO, of the same images
LOOKED_FOR = (
    "COCO: annotations/instances_{split}.json, annotations/instances_{split}2017.json, annotations/{split}.json, "
    "{split}.json, {split}/_annotations.coco.json; undivided: annotations/instances_default.json, result.json, "
    "labels.json; YOLO: data.yaml or classes.txt with images/{split} and labels/{split}; "
    "Pascal VOC: Annotations/*.xml with ImageSets/Main/{split}.txt"
)


def splits(root: str | Path) -> tuple[str, ...]:
    """The splits that are there by name, of a set without val and test those that it is divided into."""
    listing = _list_splits(Path(root))
    named = listing.sources.keys() | listing.refused.keys()
    return ("train", "val") if named <= {"", "train"} and named else tuple(s for s in SPLITS if s in named)


def find(root: str | Path, split: str, divide: bool = False) -> Source:
    """A split's file and folders; a ValueError that lists what was looked for if there is none.

    divide: hold val out of a train split that has neither val nor test beside it, as of an undivided set.  A split
    that is there by its name and cannot be read is a ValueError as well: nothing takes its place.
    """
    listing = _list_splits(Path(root))
    source, named = listing.sources.get(split), listing.sources.keys() | listing.refused.keys()
    if split in listing.refused:
        raise ValueError(listing.refused[split])
    if source and not (divide and named == {"train"}):
        return replace(source, notes=(*listing.notes, *source.notes))
    of = "" if "" in listing.sources else "train" if divide and named == {"train"} else None
    if of is not None and split in ("train", "val"):
        if listing.refused:
            raise ValueError(next(iter(listing.refused.values())))
        alone = listing.sources[of]
        return replace(alone, part=split, of=of, notes=(*listing.notes, *alone.notes))
    has = ", ".join(f"{name or 'an undivided set'} ({one.file})" for name, one in listing.sources.items())
    more = list(listing.refused.values()) + ([f"found {has}"] if has else [])
    if not more and (inner := _inner(Path(root))):
        more = [f"the folder {inner} has one: give that"]
    raise ValueError("; ".join([f"{root}: no {split} split; looked for {LOOKED_FOR.format(split=split)}", *more]))


def _inner(root: Path) -> Path | None:
    """The only folder with data inside of one that has none."""
    some = []
    for child in folders(root):
        with contextlib.suppress(ValueError):
            some += [child] if _list_splits(child).sources else []
    return some[0] if len(some) == 1 else None


def _list_splits(root: Path) -> Listing:
    """What lies in a folder, in the one format that it has."""
    if not root.is_dir():
        raise ValueError(f"{root}: {'a file' if root.exists() else 'no such data'}; give the folder of a data set")
    coco = _coco_splits(root)
    sure = bool(coco.sources) and all(_is_coco(source.file, 3) for source in coco.sources.values())
    formats = {"COCO": coco} if sure else {}  # beside the others, a JSON may be anything
    with contextlib.suppress(*([ValueError] if sure else [])):
        formats["YOLO"] = yolo_splits(root)
    with contextlib.suppress(*([ValueError] if sure else [])):
        formats["Pascal VOC"] = voc_splits(root, deep=not sure)
    formats = {name: one for name, one in formats.items() if one.sources or one.refused}
    usable = {name: one for name, one in formats.items() if one.sources}
    if len(usable) > 1:
        names = " and ".join(f"{name} ({next(iter(one.sources.values())).file})" for name, one in usable.items())
        raise ValueError(f"{root}: annotations of {names}; keep those of one format and move the others away")
    chosen = next(iter(usable.values()), coco if coco.sources else next(iter(formats.values()), coco))
    if chosen.sources and "val" not in chosen.sources.keys() | chosen.refused.keys():
        if place := called_val(root):
            what = unreadable(place) or "images without annotations"
            chosen.refused["val"] = (
                f"{place}: a val split by its name, but {what}; add its annotations, or move it away to hold a part of "
                "train out"
            )
    if chosen.sources.keys() == {""} and not chosen.refused:
        for file in (*files_in(root, ".txt"), *files_in(root, ".csv")):
            if (split := split_word(file.stem)) and not _labels_an_image(file):
                chosen.refused[split if split in SPLITS else "train"] = (
                    f"{file}: a {split} split by its name, but a list that is not read here; give each split "
                    "annotations of its own, or move the list away to hold a part out"
                )
    return chosen


def _labels_an_image(file: Path) -> bool:
    return any(is_image(beside) for beside in file.parent.glob(f"{glob.escape(file.stem)}.*"))


# -- COCO ----------------------------------------------------------------------------------------


def _coco_splits(root: Path) -> Listing:
    listing = Listing()
    places = [*(child for child in folders(root) if child.name.casefold() == "annotations"), root]
    files = [file for place in places for file in files_in(place, ".json")]
    named = [Candidate(_word(file), str(file), file) for file in files]
    for child in filter(lambda child: split_word(child.name), folders(root)):
        inside = [child / name for name in FILES if os.path.lexists(child / name)]
        named += [Candidate(child.name, str(file), file) for file in inside]
    sure = [one for one in named if unreadable(one.value) or _is_coco(one.value)]
    sure_splits = {split_word(one.word) for one in sure}
    named = [one for one in named if one in sure or split_word(one.word) not in sure_splits]  # beside these, anything
    if not any(split_word(one.word) for one in named):
        named = _with_more(root, files)
    for split, one in choose(named, listing).items():
        file = one.value
        if why := unreadable(file):
            listing.refused[split] = f"{file}: {why}; restore it, or remove it if there is no {split} split"
            continue
        own = (file.parent, *_nested(file.parent)) if file.parent not in places else _image_folders(root, one.word)
        listing.sources[split] = Source(file, own, functools.partial(_read_coco, file))
    used = {source.file for source in listing.sources.values()}
    others = [f for f in files if f not in used and not f.stem.startswith(OTHER_KINDS) and not split_word(_word(f))]
    others = [file for file in others if not unreadable(file) and _is_coco(file)]
    if not listing.sources and not listing.refused:
        _undivided(root, places, files, others, listing)
        return listing
    for file in others:
        like = speaks_of(_word(file))
        if like in SPLITS and like not in listing.sources and like not in listing.refused:
            listing.refused[like] = not_read(file, like, f"instances_{like}.json")
    noted = " ".join(listing.notes)
    if unused := [str(file) for file in others if str(file) not in noted]:
        listing.notes.append(f"not used: {', '.join(unused)}")
    return listing


def _word(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _with_more(root: Path, files: list[Path]) -> list[Candidate]:
    """Files whose longer names differ in the split alone: lvis_v1_train.json and lvis_v1_val.json."""
    by_rest: dict[tuple[Path, str], list[Candidate]] = {}
    for file in files:
        inside = split_inside(file.stem)
        if inside and not file.stem.startswith(tuple(set(OTHER_KINDS) - {POINTS})):
            if unreadable(file) or _is_coco(file, 3):
                word = next((part for part in re.findall(r"[A-Za-z]+\d*", file.stem) if split_of(part)), inside[0])
                by_rest.setdefault((file.parent, inside[1]), []).append(Candidate(word, str(file), file))
    if len(by_rest) > 1:
        by_rest = {key: some for key, some in by_rest.items() if not key[1].startswith("person keypoints")}
    divided = [some for some in by_rest.values() if len(some) > 1]
    if len(by_rest) > 1 and divided:
        names = " and ".join(some[0].shown for some in by_rest.values())
        raise ValueError(f"{root}: {names} are splits of several sets; keep those of one")
    return divided[0] if divided else []


def _undivided(root: Path, places: list[Path], files: list[Path], others: list[Path], listing: Listing) -> None:
    """The one file of a set without splits."""
    words = {f: _word(f) for f in files if f.stem.startswith("instances_") and _word(f).casefold() in UNDIVIDED}
    usual = [*words, *(place / name for place in places for name in FILES if (place / name).is_file())]
    points = [file for file in files if file.stem.startswith(OTHER_KINDS) and not unreadable(file) and _is_coco(file)]
    some = list(dict.fromkeys([*usual, *others, *points]))
    if broken := next(filter(unreadable, usual), None):
        listing.refused |= dict.fromkeys(SPLITS[:2], f"{broken}: {unreadable(broken)}; restore or remove it")
        return
    sure = [file for file in some if _is_coco(file, 3)]
    if instances := [file for file in sure if file.stem.startswith("instances_")]:  # captions, keypoints beside it
        sure = [file for file in sure if file in instances or not file.stem.startswith(OTHER_KINDS)]
    if len(sure) > 1:
        names = ", ".join(str(file.relative_to(root)) for file in sure)
        raise ValueError(f"{root}: {names} are each a set without splits; keep one of them")
    if some:
        file = (sure or some)[0]
        own = _image_folders(root, words.get(file, ""))
        listing.sources[""] = Source(file, own, functools.partial(_read_coco, file))


def _image_folders(root: Path, word: str) -> tuple[Path, ...]:
    """Where the images of a split may lie, its own folders first."""
    split = split_word(word)
    own, common = [], [folder for name in FOLDERS if (folder := folder_called(root, name))]
    for place in (root, *common):
        inside = [child for child in folders(place) if child not in common]
        own += [child for child in inside if word and child.name == word]
        own += [child for child in inside if child.name != word and (split and split_word(child.name) == split)]
        own += [child for child in inside if place != root and not split and child.name.casefold() in UNDIVIDED]
    nested = [deep for child in own for deep in _nested(child)]
    return tuple(dict.fromkeys([*own, *nested, *common]))


def _nested(folder: Path) -> list[Path]:
    return [deep for name in FOLDERS if (deep := folder_called(folder, name))]


def _read_coco(file: Path, _: Faults) -> Content:
    """The three lists of a COCO file."""
    try:
        content = Entry("the file", read_json(file))
        images, annotations, categories = (content.get(name, items) for name in ("images", "annotations", "categories"))
        return Content(images, annotations, categories)
    except ValueError as error:
        raise ValueError(f"{file}: not a readable COCO file ({str(error).removeprefix(f'{file}: ')})") from None


def _is_coco(file: Path, lists: int = 2) -> bool:
    """Whether a JSON has some of COCO's three lists; of a large one only the beginning and the end are looked at."""
    part = 1 << 16
    with open(file, "rb") as opened:
        head = opened.read(part)
        opened.seek(max(len(head), (size := os.path.getsize(file)) - part))
        content = head + opened.read()
    count = sum(
        bool(re.search(rf'"{name}"\s*:\s*\['.encode(), content)) for name in ("images", "annotations", "categories")
    )
    return count >= (lists if size <= 2 * part else 1)


def has_images(root: Path) -> bool:
    """Whether a folder has images, or a folder that may have them."""
    return any(is_image(child) for child in root.iterdir()) or any(
        child.name.casefold() != "annotations" for child in folders(root)
    )
