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


def resolve(name: str, places: Sequence[Path]) -> Path | None:
    """The file that a file_name means: as it stands, or tidied of backslashes, %20, "../" and leading folders."""
    for place in places:
        if os.path.isfile(path := os.path.join(place, name)):
            return Path(path)
    plain = name.replace("\\", "/")
    for tidy in dict.fromkeys([plain, unquote(plain)]):
        parts = [part for part in tidy.split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            for place in places:
                if os.path.isfile(path := os.path.join(place, *parts[start:])):
                    return Path(path)
    return None
