"""A split where it lies, whatever its format: which files and folders mean it, and the images that its file names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from secvit.fields import Faults
from secvit.images.files import LeftOut, is_image, is_stray
from secvit.splits import is_joint, split_of, splits_like

BOTH = "trainval"  # the images of train and val, as Pascal VOC has it
UNREADABLE = ("broken links", "that are no regular files")
FOLDERS = ("images", "data", "JPEGImages")  # of images


class Content(NamedTuple):
    """COCO's three lists.

    where, paths: what errors call each annotation, and the file of each image; None for a COCO file, which is not
    checked yet and knows neither.  notes: lines for the log.  left_out: how many images, by
    reason.
    """

    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    where: list[str] | None = None
    paths: list[Path] | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()


class Gathered:
    """COCO's three lists in the making, of a format with a file for each image; images are numbered from 1."""

    def __init__(self, categories: list[Any]) -> None:
        self.images: list[Any] = []
        self.annotations: list[Any] = []
        self.categories = categories
        self.where: list[str] = []
        self.paths: list[Path] = []

    def image(self, path: Path, name: str, size: tuple[int, int]) -> None:
        """An image of a width and height in px; the annotations that follow are its own."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        self.paths.append(path)

    def annotation(self, where: str, one: dict[str, Any]) -> None:
        """What lies in the last image; where: what errors call it."""
        self.annotations.append({"image_id": len(self.images), **one})
        self.where.append(where)

    def content(self, notes: Sequence[str], left_out: tuple[tuple[str, int], ...]) -> Content:
        return Content(self.images, self.annotations, self.categories, self.where, self.paths, tuple(notes), left_out)


@dataclass(frozen=True)
class Source:
    """One split where it lies.

    file: the JSON, or what lists the classes or images of another format.  folders: where images are looked for.
    read: its content; what is wrong with single entries is added to the faults.
    part: "train" or "val" of what is divided, None for all of it.  of: the split that is divided, "" for a set
    without splits.  notes: lines for the log.
    """

    file: Path
    folders: tuple[Path, ...]
    read: Callable[[Faults], Content]
    part: str | None = None
    of: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Listing:
    """What a folder holds in one format.

    sources: by split, "" for a set without splits.  refused: why a split that is there by its name cannot be read.
    notes: lines for the log.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Candidate(NamedTuple):
    """What may be a split by its name.  word: its name; shown: what errors call it."""

    word: str
    shown: str
    value: Any


def split_word(word: str) -> str | None:
    """The split that a name means: "train", "val", "test" or BOTH."""
    return BOTH if is_joint(word) else split_of(word)


def speaks_of(name: str) -> str | None:
    """The split that a longer or another name speaks of: "minival", "seg_val", "eval" -> "val"; None if none."""
    if word := split_word(name):
        return word
    likely = splits_like(name)
    return BOTH if likely == {"train", "val"} else likely.pop() if len(likely) == 1 else None


def choose(candidates: Sequence[Candidate], listing: Listing) -> dict[str, Candidate]:
    """The candidate of each split, all of one year where several have theirs, and BOTH for a train that is not there.

    A ValueError names two for one split; what is not used is noted.
    """
    by_year: dict[str, dict[str, list[Candidate]]] = {}
    for one in candidates:
        if split := split_word(one.word):
            by_year.setdefault(split, {}).setdefault(_year(one.word), []).append(one)
    wanted = [split for split in by_year if split in ("train", "val")] or list(by_year)
    years = sorted({year for split in wanted for year in by_year[split]})
    years.sort(key=lambda year: ("", "2017").index(year) if year in ("", "2017") else 2)
    common = next((year for year in years if all(year in by_year[split] for split in wanted)), None)
    chosen: dict[str, Candidate] = {}
    for split, named in by_year.items():
        some = named[common] if common in named else [one for each in named.values() for one in each]
        if len(some) > 1:
            raise ValueError(f"{some[0].shown} and {some[1].shown} are both a {split} split; keep one of them")
        chosen[split] = some[0]
    joint = chosen.pop(BOTH, None)
    if joint and not {"train", "val"} & (chosen.keys() | listing.refused.keys()):
        chosen["train"] = joint
        listing.notes.append(f"{joint.shown} is read as train")
    elif joint and ("train" in chosen) != ("val" in chosen):
        split, other = ("val", "train") if "train" in chosen else ("train", "val")
        listing.refused[split] = (
            f"{joint.shown}: holds train and val, and only {chosen[other].shown} is beside it; give {split} a list or "
            f"file of its own, or remove {joint.shown}"
        )
    others = [one for one in candidates if one not in chosen.values()]
    if unused := [one.shown for one in others if split_word(one.word) not in (None, BOTH)]:
        listing.notes.append(f"not used: {', '.join(unused)}")
    return chosen


def _year(word: str) -> str:
    year = re.search(r"\d+$", word.strip())
    return year[0] if year else ""


def unreadable(path: Path) -> str:
    """Why a path is no regular file or folder, "" if it is one."""
    if path.is_file() or path.is_dir():
        return ""
    return "a broken link" if path.is_symlink() else "no regular file" if path.exists() else "not there"


def not_read(file: Path, split: str, name: str) -> str:
    return f"{file}: a {split} split by its name, but not by one that is read; call it {name}, or move it away"


def unreadable_images(left_out: LeftOut) -> tuple[tuple[str, int], ...]:
    """What a walk for images passed over, other than files that are none."""
    return tuple((reason, count) for reason, count in left_out.reasons.items() if reason in UNREADABLE)


def files_in(folder: Path, ending: str) -> list[Path]:
    """What is called like a file of an ending, in any case: broken links and pipes, too, but nothing hidden."""
    return sorted(
        child
        for child in folder.iterdir()
        if child.suffix.casefold() == ending and not is_stray(child.name) and not child.is_dir()
    )


def files_below(folder: Path, ending: str) -> list[Path]:
    """The same below a folder; linked folders are followed."""
    return sorted(path for path in _below(folder, frozenset()) if path.suffix.casefold() == ending)


def any_below(folder: Path, wanted: Callable[[Path], bool]) -> bool:
    """Whether some file below a folder is wanted; linked folders are followed."""
    return any(map(wanted, _below(folder, frozenset())))


def _below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Every name below a folder that is no folder and no stray.  above: the folders that contain it."""
    try:
        about = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    here = (about.st_dev, about.st_ino)
    if here in above:
        return
    for entry in entries:
        if is_stray(entry.name):
            continue
        if _is_dir(entry):
            yield from _below(Path(entry.path), above | {here})
        else:
            yield Path(entry.path)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def folders(place: Path) -> list[Path]:
    """The folders inside a folder, without hidden ones."""
    return sorted(Path(entry.path) for entry in os.scandir(place) if not is_stray(entry.name) and _is_dir(entry))


def folder_called(place: Path, *names: str) -> Path | None:
    """The first of some folders that is inside of another one, in the usual cases; the folder is not listed."""
    spelled = [way for name in names for way in (name, name.lower(), name.title(), name.upper())]
    return next((place / way for way in spelled if (place / way).is_dir()), None)


def may_have_images(folder: Path) -> bool:
    """Whether a folder has one of the usual names for a folder of images."""
    return folder.name.casefold() in map(str.casefold, FOLDERS)


def called_val(root: Path) -> Path | None:
    """A folder of images, or a broken link, that is called like a val split."""
    for place in (root, *filter(may_have_images, folders(root))):
        names = [entry.name for entry in os.scandir(place) if "." not in entry.name]
        for child in (place / name for name in sorted(names) if not is_stray(name) and speaks_of(name) == "val"):
            if unreadable(child) or (child.is_dir() and any_below(child, is_image)):
                return child
    return None


class Resolved(NamedTuple):
    """A file; the leading folders of its name that were dropped, and how many parts of the name were kept."""

    path: Path
    dropped: tuple[str, ...]
    kept: int


def resolve(name: str, places: Sequence[Path], there: Callable[[str], bool] = os.path.isfile) -> Resolved | None:
    """The file that a file_name means: as it stands, or tidied of backslashes, %20, "../" and leading folders.

    there: what tells that it exists.
    """
    plain = name.replace("\\", "/")
    for place in places:
        if there(path := os.path.join(place, name)):
            return Resolved(Path(path), (), len(_parts(plain)))
    for tidy in dict.fromkeys([plain, unquote(plain)]):
        parts = _parts(tidy)
        for start in range(len(parts)):
            for place in places:
                if there(path := os.path.join(place, *parts[start:])):
                    return Resolved(Path(path), parts[:start], len(parts) - start)
    return None


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def resolve_all(
    names: Sequence[str], places: Sequence[Path], there: Callable[[str], bool] = os.path.isfile
) -> list[Resolved | None]:
    """The file of each name; None for one that is not there.

    Leading folders are dropped only where no other name keeps more of its own: where b/1.png lies in b, 1.png is not
    the a/1.png that is missing.
    """
    resolved = [resolve(name, places, there) for name in names]
    most: dict[tuple[str, ...], int] = {}  # parts kept, by what was dropped
    for one in resolved:
        if one:
            most[one.dropped] = max(most.get(one.dropped, 0), one.kept)

    def alike(one: Resolved) -> bool:
        return all(one.kept >= kept for dropped, kept in most.items() if dropped != one.dropped)

    right = {(one.dropped, one.kept): not one.dropped or alike(one) for one in resolved if one}
    return [one if one and right[one.dropped, one.kept] else None for one in resolved]
