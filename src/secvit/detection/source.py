"""A split where it lies, whatever its format, and the images that its file names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from secvit.fields import Faults
from secvit.images.files import is_stray


class Content(NamedTuple):
    """COCO's three lists.

    where, paths: what errors call each annotation, and the file of each image; None for a COCO file, which is not
    checked yet and knows neither.
    """

    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    where: list[str] | None = None
    paths: list[Path] | None = None


@dataclass(frozen=True)
class Source:
    """One split where it lies.

    file: the JSON, or what lists the classes or images of another format.  folders: where images are looked for.
    read: its content; what is wrong with single entries is added to the faults.
    part: "train" or "val" of an undivided set, None for all of it.
    """

    file: Path
    folders: tuple[Path, ...]
    read: Callable[[Faults], Content]
    part: str | None = None


def folders(place: Path) -> list[Path]:
    """The folders inside a folder, without hidden ones."""
    return sorted(child for child in place.iterdir() if not is_stray(child.name) and child.is_dir())


class Resolved(NamedTuple):
    """A file; the leading folders of its name that were dropped, and how many parts of the name were kept."""

    path: Path
    dropped: tuple[str, ...]
    kept: int


def resolve(name: str, places: Sequence[Path]) -> Resolved | None:
    """The file that a file_name means: as it stands, or tidied of backslashes, %20, "../" and leading folders."""
    plain = name.replace("\\", "/")
    for place in places:
        if os.path.isfile(path := os.path.join(place, name)):
            return Resolved(Path(path), (), len(_parts(plain)))
    for tidy in dict.fromkeys([plain, unquote(plain)]):
        parts = _parts(tidy)
        for start in range(len(parts)):
            for place in places:
                if os.path.isfile(path := os.path.join(place, *parts[start:])):
                    return Resolved(Path(path), parts[:start], len(parts) - start)
    return None


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def resolve_all(names: Sequence[str], places: Sequence[Path]) -> list[Resolved | None]:
    """The file of each name; None for one that is not there.

    Leading folders are dropped only where no other name keeps more of its own: where b/1.png lies in b, 1.png is not
    the a/1.png that is missing.
    """
    found = [resolve(name, places) for name in names]
    most: dict[tuple[str, ...], int] = {}  # parts kept, by what was dropped
    for one in found:
        if one:
            most[one.dropped] = max(most.get(one.dropped, 0), one.kept)

    def alike(one: Resolved) -> bool:
        return all(one.kept >= kept for dropped, kept in most.items() if dropped != one.dropped)

    right = {(one.dropped, one.kept): not one.dropped or alike(one) for one in found if one}
    return [one if one and right[one.dropped, one.kept] else None for one in found]
