"""Folders by patterns like "images/{}", in any case and with any of the words for splits."""

from __future__ import annotations

import os
from pathlib import Path

from secvit.images.files import is_stray, kind_of
from secvit.splits import split_of


def both_folders(root: Path, layout: tuple[str, str], split: str = "") -> tuple[Path, Path] | None:
    """The two folders that patterns like "images/{}" mean; a ValueError if one of them is there twice."""
    images, masks = (matching_folders(root, pattern, split) for pattern in layout)
    if not images or not masks:
        return None
    for folders, pattern in ((images, layout[0]), (masks, layout[1])):
        if len(folders) > 1:
            names = ", ".join(str(folder.relative_to(root)) for folder in folders)
            raise ValueError(f"{root}: {len(folders)} folders for {split or pattern}: {names}; keep one, or join them")
    return images[0], masks[0]


def matching_folders(root: Path, pattern: str, split: str, links: bool = False) -> list[Path]:
    """The folders that a pattern means; with `links`, also links to nothing."""
    matches = [root]
    for part in pattern.split("/"):
        above = [folder for folder in matches if folder.is_dir()]
        matches = [folder for one in above for folder in folders_in(one, links) if _means(folder.name, part, split)]
    return matches


def _means(name: str, part: str, split: str) -> bool:
    """Whether a folder's name is a part of a pattern: "Train_label" is "{}_label" of train."""
    name = name.casefold()
    before, mark, after = part.partition("{}")
    if not mark:
        return name == part
    return name.endswith(after) and split_of(name[len(before) : len(name) - len(after)]) == split


def folders_in(above: Path, links: bool = False) -> list[Path]:
    kinds = ("folder", "broken links") if links else ("folder",)
    try:
        entries = [entry for entry in os.scandir(above) if not is_stray(entry.name)]
        return sorted(Path(entry.path) for entry in entries if kind_of(entry) in kinds)
    except OSError as error:
        raise ValueError(f"{above}: cannot be read ({error.strerror}); check its permissions") from None
