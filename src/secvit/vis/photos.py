"""Photos that a command is given, and names for the pictures it makes of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from secvit.images import EXTENSIONS
from secvit.images.files import is_image, is_stray


def listed(photos: Iterable[str | os.PathLike[str]], output: Path | None = None) -> list[Path]:
    """Absolute paths of files and of the images right in folders, each once.

    A ValueError where there is none, or where a folder of photos is also the one for the pictures (output).
    """
    found: dict[Path, None] = {}
    for photo in map(Path, photos):
        inside = [photo]
        if photo.is_dir():
            if output is not None and photo.resolve() == output.resolve():
                raise ValueError(f"{output}: folder of photos and of pictures of them; choose another output")
            inside = sorted(f for f in photo.iterdir() if is_image(f) and not is_stray(f.name) and f.is_file())
            if not inside:
                raise ValueError(f"{photo}: folder without images ({' '.join(EXTENSIONS)})")
        found |= dict.fromkeys(Path(os.path.abspath(file)) for file in inside)
    if not found:
        raise ValueError("no photo; name files, or folders of them")
    return list(found)


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
