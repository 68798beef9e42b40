"""YOLO's text files as COCO's lists: a line an object, its class and a box or a polygon in shares of the image."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secvit.detection.source import Content, Source, folders
from secvit.fields import Faults, Wrong, number, read_text, read_yaml, shown, text, whole
from secvit.images.files import image_files
from secvit.images.read import upright_size
from secvit.images.words import split_of

logger = logging.getLogger(__name__)

NAMES = ("classes.txt", "obj.names")  # a class a line, where there is no YAML
SLACK = 0.02  # of the image, by which a rounded number may lie outside


def yolo_splits(root: Path) -> dict[str, Source]:
    """Splits by data.yaml, or by a list of classes with folders images and labels; "" is a set without splits."""
    file = _listing(root)
    if file is None:
        return {}
    config = _config(file)
    places: dict[str, list[Path]] = {}
    for key, value in config.items():
        split = split_of(key) if isinstance(key, str) else None
        listed = value if isinstance(value, list) else [value]
        if split and value and all(isinstance(one, str) for one in listed):
            found = [_place(root, config.get("path"), one) for one in listed]
            places.setdefault(split, []).extend(place for place in found if place)
    for child in [*folders(root), *(folders(root / "images") if (root / "images").is_dir() else [])]:
        split = split_of(child.name)
        if split and not places.get(split):
            places[split] = [child / "images" if (child / "images").is_dir() else child]
    places = {split: some for split, some in places.items() if some and any(map(_has_labels, some))}
    whole_set = root / "images" if (root / "images").is_dir() else root / "obj_train_data"
    if not places and _has_labels(whole_set):
        places[""] = [whole_set]
    return {
        split: Source(file, tuple(some), functools.partial(_read, file, root, tuple(some)))
        for split, some in places.items()
    }


def _listing(root: Path) -> Path | None:
    """What lists the classes: data.yaml, else a YAML that names splits, else another one, else a text file."""
    files = [file for file in (*sorted(root.glob("*.y*ml")), *(root / name for name in NAMES)) if _names_classes(file)]
    rank = {file: _rank(file) for file in files}
    best = [file for file in files if rank[file] == min(rank.values())]
    if len(best) > 1:
        said = [(_by_number(config["names"]), _places(config)) for config in map(_config, best)]
        if any(one != said[0] for one in said):
            names = ", ".join(file.name for file in best)
            raise ValueError(f"{root}: {names} have other names of classes or splits; keep one of them")
    return best[0] if best else None


def _rank(file: Path) -> int:
    if file.name in NAMES:
        return 3
    return 0 if file.stem.casefold() == "data" else 1 if _readable(file) and _places(_config(file)) else 2


def _readable(file: Path) -> bool:
    try:
        return bool(_config(file))
    except ValueError:
        return False


def _places(config: dict[Any, Any]) -> dict[Any, Any]:
    """The entries of a YAML that name a split."""
    return {key: value for key, value in config.items() if isinstance(key, str) and split_of(key)}


def _by_number(names: Any) -> Any:
    return dict(enumerate(names)) if isinstance(names, list) else names


def _names_classes(file: Path) -> bool:
    try:
        return file.is_file() and (file.name in NAMES or "names" in _config(file))
    except ValueError:  # some other YAML may be anything
        return file.stem in ("data", "dataset")


def _config(file: Path) -> dict[Any, Any]:
    """A YAML's entries; of a list of classes, "names" alone."""
    if file.name in NAMES:
        lines = read_text(file, 1 << 24).rstrip().splitlines()
        if blank := next((i for i, line in enumerate(lines, 1) if not line.strip()), 0):
            raise ValueError(f"{file}: line {blank} is blank, and classes count by lines; give it a name or remove it")
        return {"names": [line.strip() for line in lines]}
    found = read_yaml(file)
    return found if isinstance(found, dict) else {}


def _place(root: Path, base: Any, given: str) -> Path | None:
    """The folder of images, or the list of them, that a YAML means: beside it, or below its `path`.

    Exports say ../train/images for train/images, and `path` is that of another machine.
    """
    parts = [part for part in given.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    inside = [root.joinpath(*parts)] + ([root / base / given] if isinstance(base, str) else []) + [root / given]
    return next((place for place in inside if parts and place.exists()), None)


def _label_file(image: Path) -> Path:
    """labels/x.txt of images/x.png: the last folder of that name is the other one; else beside the image."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i].casefold() == "images":
            other = Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt")
            return other if other.parent.is_dir() else image.with_suffix(".txt")
    return image.with_suffix(".txt")


def _images(place: Path, root: Path) -> list[Path]:
    """The images in a folder, or those that a text file lists."""
    if place.is_dir():
        return image_files(place)
    listed = [line.strip() for line in read_text(place).splitlines() if line.strip()]
    return [_place(root, None, name) or _place(root / "..", None, name) or root / name for name in listed]


def _has_labels(place: Path) -> bool:
    if place.is_file():
        return place.suffix == ".txt"
    labels = _label_file(place / "x.png").parent
    return place.is_dir() and next(labels.rglob("*.txt"), None) is not None


def _read(file: Path, root: Path, places: Sequence[Path], faults: Faults) -> Content:
    """What some folders of images and the label files beside them hold."""
    config = _config(file)
    categories = [{"id": number_, "name": name} for number_, name in _classes(file, config["names"]).items()]
    known = {category["id"] for category in categories}
    content = Content([], [], categories, [], [])
    for image in dict.fromkeys(image for place in places for image in _images(place, root)):
        try:
            width, height = upright_size(image)
        except ValueError as error:
            faults.add(f"image {image}: {str(error).removeprefix(f'{image}: ')}")
            continue
        image_id = len(content.images) + 1
        name = str(image.relative_to(root) if image.is_relative_to(root) else image)
        content.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        content.paths.append(image)
        labels = _label_file(image)
        if not labels.is_file():
            continue
        for line, words in enumerate(read_text(labels).splitlines(), 1):
            if not words.strip():
                continue
            here = f"{labels.relative_to(root) if labels.is_relative_to(root) else labels} line {line}"
            try:
                one = _object(words.split(), known, "kpt_shape" in config)
            except ValueError as error:
                faults.add(f"{here}: {error}")
                continue
            scale = (width, height)
            one["bbox"] = [value * scale[i % 2] for i, value in enumerate(one["bbox"])]
            one["segmentation"] = [[value * scale[i % 2] for i, value in enumerate(p)] for p in one["segmentation"]]
            content.annotations.append({"image_id": image_id, **one})
            content.where.append(here)
    used = {_label_file(image) for image in content.paths}
    beside = {_label_file(place / "x.png").parent for place in places if place.is_dir()}
    if lone := [path for labels in beside for path in labels.rglob("*.txt") if path not in used | {file}]:
        logger.warning("%d label files have no usable image and are left out, %s for one", len(lone), lone[0].name)
    return content


def _classes(file: Path, names: Any) -> dict[int, str]:
    """Names by number."""
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else None
    if not pairs:
        raise ValueError(f"{file}: names is {type(names).__name__}, expected a list of classes")
    try:
        return {whole(key): text(name) for key, name in pairs}
    except Wrong as error:
        raise ValueError(f"{file}: a class among names is wrong, expected {error}") from None


def _object(words: Sequence[str], known: set[int], points: bool) -> dict[str, Any]:
    """One line as category, box and polygons in shares of the image.  points: keypoints follow the box."""
    try:
        values = [number(word) for word in words]
        category = whole(words[0])
    except Wrong as error:
        raise ValueError(f"{shown(' '.join(words))}, expected numbers ({error})") from None
    if category not in known:
        raise ValueError(f"class {category}, expected one of {', '.join(map(str, sorted(known)[:8]))}")
    rest = values[1:5] if points else values[1:]
    if len(rest) != 4 and (len(rest) < 6 or len(rest) % 2):
        raise ValueError(f"{len(words)} numbers, expected a class and a box of 4, or a polygon of at least 3 points")
    if not all(-SLACK <= value <= 1 + SLACK for value in rest):
        raise ValueError(f"{shown(' '.join(words))}, expected shares of the image in 0..1")
    if len(rest) == 4:
        x, y, w, h = rest
        if w < 0 or h < 0:
            raise ValueError(f"a box of size {w:g} x {h:g}, expected sizes above 0")
        return {"category_id": category, "bbox": [x - w / 2, y - h / 2, w, h], "segmentation": []}
    rest = [min(max(value, 0.0), 1.0) for value in rest]
    x, y = min(rest[::2]), min(rest[1::2])
    box = [x, y, max(rest[::2]) - x, max(rest[1::2]) - y]
    return {"category_id": category, "bbox": box, "segmentation": [rest]}
