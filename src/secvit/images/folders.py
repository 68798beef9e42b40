"""Image folders: DIR/CLASS/*.jpg; and ImageNet's val as it is downloaded, without folders."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from secvit.fields import read_text
from secvit.images.classes import class_names
from secvit.images.files import EXTENSIONS, HIDDEN, LeftOut, image_names, is_image, is_stray, kind_of
from secvit.images.labelled import Images, number_labels
from secvit.images.names import Names
from secvit.splits import split_inside, split_of

SOLUTION = "LOC_val_solution.csv"


def read_folder(path: Path, name: str, train_classes: tuple[str, ...] | None = None) -> Images:
    """The images below a folder of class folders.  train_classes: for another split, which may lack some of them."""
    left_out = LeftOut()
    classes = folder_classes(path, left_out, least=1 if train_classes else 2)
    names: list[str] = []
    counts = []
    for folder in classes:
        files = image_names(path / folder, left_out)
        if not files:
            raise ValueError(
                f"{path / folder}: class folder without images ({' '.join(EXTENSIONS)}); "
                "add images or remove the folder"
            )
        names += files
        counts.append(len(files))
    left_out.tell(str(path), len(names))
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return Images(name, classes, labels, None, Names.of(names), root=str(path))


def folder_classes(path: Path, left_out: LeftOut | None = None, least: int = 2) -> tuple[str, ...]:
    """The names of the class folders in order, at least so many.  left_out: gets what else lies in the folder."""
    folders, files = contents(path, left_out)
    images = [file for file in files if is_image(file)]
    if len(folders) < least:
        raise ValueError(
            f"{path}: {len(folders)} class folders; expected at least {'two' if least > 1 else 'one'}, "
            "each with its images"
            + (f" ({len(images):,} images lie in {path.name} itself: give each class a folder)" if images else "")
            + _deeper(path, folders)
        )
    if all(split_of(folder) for folder in folders):
        raise ValueError(
            f"{path}: its class folders are called {', '.join(folders)}, which are words for splits; "
            f"give the folder that holds them as the data, with class folders in each"
        )
    if named := _splits_with_more(path, folders):
        raise ValueError(
            f"{path}: its folders {', '.join(named)} seem to be splits, not classes; rename them to "
            f"{', '.join(f'{split}/' for split in named.values())} with the class folders right below "
            "(if they are classes, give them names without a split's word)"
        )
    if below := _splits_below(path, folders):
        raise ValueError(
            f"{path / folders[0] / below[0]}: a split inside of a class, as in each class folder of {path}; "
            f"expected {path / below[0] / folders[0]}"
        )
    if left_out is not None:
        left_out.add("images outside of the class folders", len(images))
        left_out.add("other files outside of the class folders", len(files) - len(images))
        left_out.harmless.add("other files outside of the class folders")
    return class_names(folders)


def _deeper(path: Path, folders: Sequence[str]) -> str:
    """Where the data seem to lie, if that is in the one folder inside; "" if it is not."""
    for folder in folders:
        inside = contents(path / folder)[0]
        if len(inside) > 1 or any(map(split_of, inside)):
            return f"; {path / folder} has {', '.join(inside[:3])}{', ...' * (len(inside) > 3)}: give it as the data"
    return ""


def contents(path: Path, left_out: LeftOut | None = None) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder; what is stray or a broken link is left out."""
    folders, files = [], []
    try:
        for entry in os.scandir(path):
            if is_stray(entry.name):
                left_out.add(HIDDEN) if left_out is not None else None
            elif (kind := kind_of(entry)) == "folder":
                folders.append(entry.name)
            elif kind == "file":
                files.append(entry.name)
            elif left_out is not None:
                left_out.add(kind)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return sorted(folders), sorted(files)


def _splits_with_more(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """The folders that look like splits under longer names, and which: seg_train and seg_test; {} if none do.

    They speak of different splits, and their names have the same rest or they hold the same folders.
    """
    inside = {folder: split for folder in folders if (split := split_inside(folder))}
    named = {folder: split for folder, (split, _) in inside.items()}
    words = set(named.values())
    if len(words) < 2 or ("train" not in words and len(named) < len(folders)):
        return {}
    rests = {split: {rest for s, rest in inside.values() if s == split} for split in words}
    if len(words) == len(named) and set.intersection(*rests.values()):
        return named
    return named if set.intersection(*(set(contents(path / folder)[0]) for folder in named)) else {}


def _splits_below(path: Path, folders: Sequence[str]) -> list[str]:
    """The folders with a split's name that are in every class folder."""
    common: set[str] | None = None
    for folder in folders:
        inside = {name for name in contents(path / folder)[0] if split_of(name)}
        common = inside if common is None else common & inside
        if not common:
            return []
    return sorted(common or ())


# -- ImageNet's val without folders ------------------------------------------------------------


def is_flat(path: Path) -> bool:
    """Whether a folder holds images and no folders."""
    folders, files = contents(path)
    return not folders and any(map(is_image, files))


def solution_of(path: Path) -> Path:
    """The file with the classes of ImageNet's flat val: in it, beside it, or at the root of Kaggle's archive."""
    places = [path, *list(path.absolute().parents)[:4]]
    file = next((place / SOLUTION for place in places if os.path.lexists(place / SOLUTION)), None)
    if file is None:
        raise ValueError(
            f"{path}: images without class folders, so their classes are unknown; if this is ImageNet's val, put "
            f"{SOLUTION} (it comes with Kaggle's archive of ILSVRC) beside {path.name}; else sort the images into a "
            f"folder for each class, or, if they have no labels, move {path.name} out of {path.parent}"
        )
    return file


def flat_classes(path: Path) -> tuple[str, ...]:
    return class_names(label for _, label in _solutions(solution_of(path)).values())


def read_flat(path: Path, name: str, classes: tuple[str, ...] | None) -> Images:
    """The images of ImageNet's flat val, by the solution file; train's classes are given."""
    solution, left_out = solution_of(path), LeftOut()
    solutions = _solutions(solution)
    names = image_names(path, left_out)
    stems = [os.path.splitext(os.path.basename(name))[0] for name in names]
    lacking = [stem for stem in stems if stem not in solutions]
    if lacking:
        raise ValueError(
            f"{solution}: no line for {lacking[0]} ({len(lacking)} such images of {len(names)} in {path}); "
            "remove them or take the file that belongs to them"
        )
    left_out.add(f"named in {SOLUTION}, but not there", len(solutions.keys() - set(stems)))
    left_out.tell(str(path), len(names))
    entries = [solutions[stem] for stem in stems]
    all_classes, labels = number_labels(
        [label for _, label in entries], classes, lambda i: f"{solution}, line {entries[i][0]}"
    )
    return Images(name, all_classes, labels, None, Names.of(names), root=str(path))


def _solutions(path: Path) -> dict[str, tuple[int, str]]:
    """Line and class of each image: ImageId,PredictionString, the latter "n03995372 85 1 499 272 ..."."""
    solutions: dict[str, tuple[int, str]] = {}
    try:
        rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        header = next(rows, [])
        if [cell.strip().casefold() for cell in header] != ["imageid", "predictionstring"]:
            raise ValueError(f"{path}, line 1: {','.join(header)[:80]!r}; expected ImageId,PredictionString")
        for row in filter(None, rows):
            label = row[1].split() if len(row) == 2 else []
            if not label or not row[0].strip():
                raise ValueError(
                    f"{path}, line {rows.line_num}: {','.join(row)[:80]!r}; expected an image and its class"
                )
            line, other = solutions.setdefault(row[0].strip(), (rows.line_num, label[0]))
            if other != label[0]:
                raise ValueError(
                    f"{path}: {row[0].strip()} is {other} in line {line} and {label[0]} in line {rows.line_num}; "
                    "keep one of them"
                )
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of text ({error})") from None
    return solutions
