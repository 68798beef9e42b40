"""The images of a folder and their masks, by name: every one has the other, or an error says which has not."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from secvit.fields import Faults, read_text
from secvit.images.files import LeftOut, image_files, is_image, is_stray
from secvit.segmentation.masks import LOSSY, MASKS

logger = logging.getLogger(__name__)
CSV = "_classes.csv"  # Roboflow's, of classes
LISTS = 1 << 28  # bytes that a list of names may have


@dataclass(frozen=True)
class Place:
    """Where a split lies.

    ends: what names of images and of masks end with, before the ending, and which no name of the pair has.
    lists: files with the names that belong to it; all of them without.  partial: images may lack a mask.
    columns: a list has further words behind a name.
    """

    images: Path
    masks: Path
    ends: tuple[str, str] = ("", "")
    lists: tuple[Path, ...] = ()
    partial: bool = False
    columns: bool = False


@dataclass(frozen=True)
class Pairs:
    """Images and masks of a split, in order, and what was left out."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    left_out: LeftOut


def find_pairs(place: Place) -> tuple[dict[str, Path], dict[str, Path], LeftOut]:
    """Images and masks by name: the path in their folder without what the two differ in."""
    left_out = LeftOut()
    files = image_files(place.images, left_out)
    beside = files if place.masks == place.images else image_files(place.masks, left_out)
    ours, masks = place.ends
    others = [path for path in beside if not is_mask(path.name, masks)]
    images = [path for path in files if path.stem.endswith(ours)]
    if beside is files:
        images = [path for path in images if not is_mask(path.name, masks)]
    else:
        left_out.add(f"not ending in {ours}", len(files) - len(images))
        left_out.add(f"not ending in {masks}" if masks else "of a lossy format among the masks", len(others))
    drawn = [path for path in beside if is_mask(path.name, masks)]
    files_by_name = _by_name(place.images, images, ours), _by_name(place.masks, drawn, masks)
    if end := _common_end(*files_by_name) if not masks else "":
        logger.info("%s: the names of masks end in %s, those of images do not", place.masks, end)
        files_by_name = files_by_name[0], {name.removesuffix(end): path for name, path in files_by_name[1].items()}
    if (place.images / CSV).is_file():
        left_out.reasons -= Counter(["of another ending (.csv)"])  # it is read elsewhere
    if not files_by_name[0]:
        raise ValueError(f"{place.images}: no images; expected files ending in .jpg, .png ...")
    if place.lists:
        files_by_name = _listed(place, *files_by_name, left_out)
    if place.partial:
        left_out.add("without a mask", len(files_by_name[0].keys() - files_by_name[1].keys()))
        files_by_name = (
            {name: path for name, path in files_by_name[0].items() if name in files_by_name[1]},
            files_by_name[1],
        )
        if not files_by_name[0]:
            raise ValueError(f"{place.masks}: no mask has the name of an image in {place.images}")
    _check_lonely(place, *files_by_name, [] if beside is files else others)
    return *files_by_name, left_out


def _common_end(images: Collection[str], masks: Collection[str]) -> str:
    """What all names of masks have behind the names of images, like "_mask"; "" if that is nothing or not sure."""
    if not images or not masks or any(name in masks for name in images):
        return ""
    order, ends = sorted(masks), set[str]()
    for name in sorted(images):
        start = end = bisect_left(order, name)
        while end < len(order) and order[end].startswith(name):
            end += 1
        if end > start:  # of the first image that has some
            ends = {mask.removeprefix(name) for mask in order[start:end]}
            break
    sure = [one for one in ends if not one[0].isalnum() and all(mask.endswith(one) for mask in masks)]
    own = [one for one in sure if sum(name + one in masks for name in images) > len(masks) / 2]
    return own[0] if len(own) == 1 else ""


def is_mask(name: str, end: str) -> bool:
    stem, ending = os.path.splitext(name)
    return ending.lower() in MASKS and stem.endswith(end) and not is_stray(name)


def names_in(folder: Path, files: Sequence[Path]) -> set[str]:
    return {path.relative_to(folder).with_suffix("").as_posix() for path in files}


def names_of_masks(folder: Path) -> set[str]:
    return names_in(folder, [path for path in image_files(folder) if is_mask(path.name, "")])


def _by_name(folder: Path, files: Sequence[Path], end: str) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    faults = Faults(f"{folder}: files of one name, which is that of one image and its mask")
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(end)
        if name in paths:
            faults.add(f"{paths[name].relative_to(folder)} and {path.relative_to(folder)}")
        paths[name] = path
    faults.check("Keep one of each, or rename one with its mask")
    return paths


def _listed(
    place: Place, images: dict[str, Path], masks: dict[str, Path], left_out: LeftOut
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Those that stand in the split's lists, a name a line."""
    listed: dict[str, None] = {}
    for file in place.lists:
        faults = Faults(file)
        for number, line in enumerate(read_text(file, LISTS).splitlines(), 1):
            name = line.strip().strip('"').replace("\\", "/")
            name = name.partition(" ")[0] if place.columns else name
            name = os.path.splitext(name)[0] if name not in images and is_image(name) else name
            if name and name not in images:
                faults.add(f"line {number}: {name[:80]!r} has no image in {place.images}")
            elif name:
                listed[name] = None
        faults.check("Add the images, or take the names out")
    if not listed:
        raise ValueError(f"{place.lists[0]}: lists no image; write the name of one a line")
    left_out.add(
        f"not listed in {', '.join(file.name for file in place.lists)}",
        len(images.keys() - listed.keys()) + len(masks.keys() - listed.keys()),
    )
    return (
        {name: path for name, path in images.items() if name in listed},
        {name: path for name, path in masks.items() if name in listed},
    )


def _check_lonely(place: Place, images: dict[str, Path], masks: dict[str, Path], others: Sequence[Path]) -> None:
    for kind, lonely, folder in (
        ("images without a mask", images.keys() - masks.keys(), place.masks),
        ("masks without an image", masks.keys() - images.keys(), place.images),
    ):
        if lonely:
            shown = ", ".join(sorted(lonely)[:3])
            formats = {_format(p) for p in others if _is_lossy(p) and names_in(place.masks, [p]) & lonely}
            why = ""
            if folder is place.masks and formats:
                of = " and ".join(sorted(formats))
                why = f"; there are {of} files of these names, which change the values of pixels: export masks as PNG"
            raise ValueError(
                f"{len(lonely)} {kind} of that name in {folder}: {shown}{', ...' * (len(lonely) > 3)}{why}"
            )


def _is_lossy(path: Path) -> bool:
    return path.suffix.lower() in LOSSY


def _format(path: Path) -> str:
    """What people call the lossy format of a file."""
    ending = path.suffix.lower()
    if ending.startswith((".jp2", ".j2", ".jpc", ".jpf", ".jpx")):
        return "JPEG 2000"
    return {".webp": "WebP", ".avif": "AVIF", ".avifs": "AVIF"}.get(ending, "JPG")
