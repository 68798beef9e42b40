"""The lists of a COCO file, entry by entry: typed, with our own numbers for its ids, and every fault with its name."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from secvit.detection.shapes import LIMIT, REAL
from secvit.detection.source import Content, Source, resolve_all
from secvit.fields import Entry, Faults, Wrong, flag, identity, integer, number, shown, text
from secvit.images import upright_size
from secvit.processes import is_first
from secvit.splits import held_out

BROKEN, ELSEWHERE = -1, -2  # for an image's place: left out, of the other part
Id = int | str


@dataclass
class Categories:
    """Names and the file's ids of labels 0, 1, ..., by rising id; `label` by id."""

    names: tuple[str, ...]
    ids: tuple[Id, ...]
    label: dict[Id, int]


@dataclass
class ImageList:
    """Usable images: file_name, file, the file's id, width and height in px of each; `place` of an id among them."""

    names: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    ids: list[Id] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    place: dict[Id, int] = field(default_factory=dict)
    shortened: list[str] = field(default_factory=list)  # names whose leading folders are not there


@dataclass
class Annotations:
    """Columns of the usable annotations: place in the file's list, image, label, box, crowd, area (NaN: not given)."""

    numbers: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    segmentations: list[Any] = field(default_factory=list)
    lost: int = 0  # of images that are left out
    elsewhere: int = 0  # of images in the other part


def read_categories(entries: Sequence[Any], faults: Faults) -> Categories:
    """Every category has an id and a name of its own."""
    pairs: list[tuple[Id, str]] = []
    for i, entry in enumerate(entries):
        try:
            one = Entry(called("category", entry, i), entry)
            pairs.append((one.get("id", identity), one.get("name", _plain)))
        except ValueError as error:
            faults.add(error)
    for what, values in (("id", [id for id, _ in pairs]), ("name", [name for _, name in pairs])):
        for value, count in Counter(values).items():
            if count > 1:
                faults.add(f"{count} categories have the {what} {value!r}; give each its own")
    pairs.sort(key=lambda pair: (isinstance(pair[0], str), pair[0]))
    return Categories(
        tuple(name for _, name in pairs), tuple(id for id, _ in pairs), {id: i for i, (id, _) in enumerate(pairs)}
    )


def without_supercategory(content: Content) -> tuple[list[Any], str]:
    """The categories but for one without objects that only heads the others, as Roboflow writes it, and its name."""
    named = [(i, one, one["name"]) for i, one in enumerate(content.categories) if type(one) is dict and "name" in one]
    used = set(_ids(content.annotations, "category_id"))
    for i, one, name in named:
        others = [other for k, other, _ in named if k != i]
        if others and all(other.get("supercategory") == name for other in others):
            with contextlib.suppress(Wrong):
                if identity(one.get("id")) not in used:
                    return [*content.categories[:i], *content.categories[i + 1 :]], str(name)
    return content.categories, ""


def image_ids(content: Content) -> set[Id]:
    """Ids of the images that have an annotation, usable or not."""
    return set(_ids(content.annotations, "image_id"))


def _ids(annotations: Sequence[Any], name: str) -> Iterator[Id]:
    """What annotations refer to, where they are objects with a reference."""
    for one in annotations:
        value = one.get(name) if type(one) is dict else None
        if type(value) is int:
            yield value
        elif value is not None:
            with contextlib.suppress(Wrong):
                yield identity(value)


def read_images(content: Content, source: Source, places: Sequence[Path], fatal: Faults, broken: Faults) -> ImageList:
    """Images whose files are there and of the size that the file says; headers are read, pixels are not."""
    entries = _image_entries(content, fatal, broken)
    val = _val_part([name for _, _, name, _ in entries], source.file, broken) if source.part else set()
    image_list = ImageList()
    files = None if content.paths else resolve_all([name for _, _, name, _ in entries], places)
    by_path: dict[str, str] = {}
    bar = tqdm(entries, desc=f"checking {source.file.stem}", disable=not is_first() or None, leave=False)
    for k, (one, id, name, i) in enumerate(bar):
        image_list.place[id] = BROKEN
        file = files[k] if files else None
        path = content.paths[i] if content.paths else file.path if file else None
        if path:  # of the other part, too: the file would be in both
            if (other := by_path.setdefault(os.path.realpath(path), one.where)) != one.where:
                fatal.add(f"{other} and {one.where} are one file, {path}; put their annotations under one of them")
        if source.part and (k in val) != (source.part == "val"):
            image_list.place[id] = ELSEWHERE
            continue
        try:
            size = (one.get("width", _pixels), one.get("height", _pixels))
            if path is None:
                raise ValueError(f"{one.where}: no file {name} in {places[0]}")
            if file and file.dropped:
                image_list.shortened.append(name)
            if content.paths is None:
                _check_size(one.where, path, size)
        except ValueError as error:
            broken.add(error)
            continue
        image_list.place[id] = len(image_list.names)
        image_list.names.append(name)
        image_list.paths.append(path)
        image_list.ids.append(id)
        image_list.sizes.append(size)
    return image_list


def _image_entries(content: Content, fatal: Faults, broken: Faults) -> list[tuple[Entry, Id, str, int]]:
    """The complete ones: each entry with its id, its file_name and its place in the list."""
    entries: list[tuple[Entry, Id, str, int]] = []
    for i, entry in enumerate(content.images):
        where = called("image", entry, i)
        try:
            one = Entry(where, entry)
            if lacking := sorted({"id", "file_name", "width", "height"} - set(entry)):
                raise ValueError(f"{where}: entry without {', '.join(lacking)}")
            entries.append((one, one.get("id", identity), one.get("file_name", _plain), i))
        except ValueError as error:
            broken.add(error)
    for id, count in Counter(id for _, id, _, _ in entries).items():
        if count > 1:
            same = ", ".join([name for _, other, name, _ in entries if other == id][:3])
            fatal.add(f"{count} images have the id {id!r} ({same}); give each its own")
    return entries


def _val_part(names: Sequence[str], file: Path, broken: Faults) -> set[int]:
    """Which images of an undivided set are its val, by their names."""
    if len(names) < 2:
        broken.check("Repair them")
        raise ValueError(f"{file}: {len(names)} image cannot be divided into train and val; add images")
    return set(held_out(name.replace("\\", "/") for name in names).tolist())


def read_annotations(
    content: Content, categories: Categories, image_list: ImageList, broken: Faults, masks: bool, single: bool
) -> Annotations:
    """Annotations whose fields are of the right types and refer to what there is.  single: crowds are no crowds."""
    annotations = Annotations()
    for i, one in enumerate(content.annotations):
        try:
            if type(one) is not dict:
                raise Wrong(f"{shown(one)}, expected an object {{...}}")
            if (id := one.get("id")) is not None and type(id) is not int:
                _typed("id", id, identity)
            image_id = one.get("image_id")
            image = image_list.place.get(image_id if type(image_id) is int else _typed("image_id", image_id, identity))
            if image is None:
                raise Wrong(f"unknown image_id {shown(image_id)}")
            if image < 0:
                annotations.lost += image == BROKEN
                annotations.elsewhere += image == ELSEWHERE
                continue
            category = one.get("category_id")
            checked = category if type(category) is int else _typed("category_id", category, identity)
            label = categories.label.get(checked)
            if label is None:
                raise Wrong(f"of {image_list.names[image]} has unknown category_id {shown(category)}")
            box: Any = one.get("bbox")
            if not _is_box(box):
                raise Wrong(f"of {image_list.names[image]} has no box of four numbers: {shown(box)}")
            crowd, area = _crowd(one.get("iscrowd")), _area(one.get("area"))
        except Wrong as error:
            broken.add(f"{where(content, i)}: {error}")
            continue
        annotations.numbers.append(i)
        annotations.images.append(image)
        annotations.labels.append(label)
        annotations.boxes.append(box)
        annotations.crowd.append(crowd and not single)
        annotations.areas.append(area)
        annotations.segmentations.append(one.get("segmentation") if masks else None)
    return annotations


def all_crowd(annotations: Sequence[Any]) -> bool:
    """Whether every annotation is marked as a crowd, as CVAT marks whatever was drawn with its brush."""
    return bool(annotations) and all(type(a) is dict and a.get("iscrowd") in (1, "1", True) for a in annotations)


def renumbered(annotations: Sequence[Any]) -> int:
    """How many annotations have no id, or one that an earlier one has."""
    ids = [one["id"] for one in annotations if type(one) is dict and type(one.get("id")) in (int, str)]
    return len(annotations) - len(set(ids))


def called(kind: str, entry: Any, i: int) -> str:
    """What an error calls an entry: by its id, else by its place in the list."""
    id = entry.get("id") if isinstance(entry, dict) else None
    return f"{kind} {shown(id)}" if type(id) in (int, str) else f"{kind} at place {i + 1} of the list"


def where(content: Content, i: int) -> str:
    return content.where[i] if content.where else called("annotation", content.annotations[i], i)


def _typed(name: str, value: Any, read: Any) -> Any:
    try:
        return read(value)
    except Wrong as error:
        raise Wrong(f"{name} is {shown(value)}, expected {error}") from None


def _plain(value: Any) -> str:
    """Text that can be written as UTF-8."""
    name = text(value)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Wrong("text of whole characters") from None
    return name


def _pixels(value: Any) -> int:
    size = integer(value)
    if size < 1:
        raise Wrong("a size of at least 1 px")
    return size


def _is_box(value: Any) -> bool:
    """Whether it is four numbers of a size that an image can have."""
    return type(value) is list and len(value) == 4 and all(type(v) in REAL and -LIMIT < v < LIMIT for v in value)


def _crowd(value: Any) -> bool:
    if type(value) in (int, type(None)) and value in (0, 1, None):
        return bool(value)
    return _typed("iscrowd", value, flag)


def _area(value: Any) -> float:
    """In px; NaN where it is not given."""
    if type(value) in REAL and 0 <= value < LIMIT**2:
        return value
    return np.nan if value is None else _typed("area", value, _area_of)


def _area_of(value: Any) -> float:
    area = number(value)
    if not 0 <= area < LIMIT**2:
        raise Wrong("an area in px, 0 or more")
    return area


def _check_size(where: str, path: Path, stated: tuple[int, int]) -> None:
    try:
        size = upright_size(path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if size != stated:
        raise ValueError(f"{where}: {path} is {size[0]}x{size[1]} px upright, the entry says {stated[0]}x{stated[1]}")
