"""Photos that a command is given: listed, opened one after the other, and names for the pictures it makes of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from secvit.files import write_atomically
from secvit.images.files import EXTENSIONS, is_image, is_stray
from secvit.images.read import read_image
from secvit.processes import is_first

Photos = Iterable[str | os.PathLike[str]]


@dataclass
class Made:
    """Files that were made of photos, older ones that they replaced, photos left out and why, and numbers of each."""

    written: list[Path] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, path: Path, content: bytes | Callable[[Path], Any]) -> None:
        """Write a file, whole or not at all; or have it written so by a function."""
        files = self.replaced if path.exists() else self.written
        if isinstance(content, bytes):
            write_atomically(path, content)
        else:
            content(path)
        files.append(path)


def opened(
    paths: Sequence[Path],
    made: Made,
    batch_size: int = 1,
    doing: str = "",
    check: Callable[[Image.Image], Any] | None = None,
) -> Iterator[dict[Path, Image.Image]]:
    """Photos in batches, upright RGB.  One that is broken is noted as skipped; a ValueError if there is no other.

    check: a function that raises a ValueError for a photo that cannot be used.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; choose batch_size >= 1")
    with tqdm(total=len(paths), desc=doing, unit="photo", disable=None if is_first() else True, leave=False) as bar:
        for at in range(0, len(paths), batch_size):
            batch = {}
            for path in paths[at : at + batch_size]:
                try:
                    image = read_image(path)
                    if check:
                        check(image)
                    batch[path] = image
                except ValueError as error:
                    made.skipped.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            if batch:
                yield batch
            bar.update(min(batch_size, len(paths) - at))
    if len(made.skipped) == len(paths):
        raise ValueError("\n".join(made.skipped))


def listed(photos: Photos, output: Path | None = None) -> list[Path]:
    """Absolute paths of files and of the images right in folders, each once.

    A ValueError where there is none, or where a folder of photos is also the one for the pictures (output).
    """
    paths: dict[Path, None] = {}
    for photo in map(Path, photos):
        inside = [photo]
        if photo.is_dir():
            if output is not None and photo.resolve() == output.resolve():
                raise ValueError(f"{output}: folder of photos and of pictures of them; choose another output")
            inside = sorted(f for f in photo.iterdir() if is_image(f) and not is_stray(f.name) and f.is_file())
            if not inside:
                raise ValueError(f"{photo}: folder without images ({' '.join(EXTENSIONS)})")
        paths |= dict.fromkeys(Path(os.path.abspath(file)) for file in inside)
    if not paths:
        raise ValueError("no photo; name files, or folders of them")
    return list(paths)


def picture_names(
    paths: Sequence[Path], output: Path, *endings: str, replace: bool = True
) -> dict[Path, tuple[Path, ...]]:
    """Files for the pictures of each photo, one an ending: PHOTO_detections.jpg, PHOTO_detections_2.jpg, ...

    None of them is a photo or another's picture, on disks that ignore case too; without `replace` none exists yet.
    """
    taken = {_key(path) for path in paths}
    names = {}
    for path in paths:
        for number in itertools.chain([""], (f"_{n}" for n in itertools.count(2))):
            parts = (ending.rpartition(".") for ending in endings)
            chosen = tuple(output / f"{path.stem}{words}{number}.{kind}" for words, _, kind in parts)
            if not any(_key(name) in taken or (not replace and name.exists()) for name in chosen):
                break
        names[path] = chosen
        taken |= {_key(name) for name in chosen}
    return names


def _key(path: Path) -> str:
    return str(path.resolve()).lower()
