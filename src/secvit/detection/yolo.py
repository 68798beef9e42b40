"""YOLO's text files as COCO's lists: a line an object, its class and a box or a polygon in shares of the image."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from secvit.detection.source import (
    BOTH,
    Candidate,
    Content,
    Gathered,
    Listing,
    Source,
    any_below,
    choose,
    files_below,
    files_in,
    folder_called,
    folders,
    resolve_all,
    split_word,
    unreadable,
    unreadable_images,
)
from secvit.fields import Faults, Wrong, integer, number, read_text, read_yaml, shown, text
from secvit.images.files import LeftOut, image_files, is_image
from secvit.images.read import upright_size

NAMES = ("classes.txt", "obj.names")  # a class a line, where there is no YAML
_DARKNET = re.compile(r"obj_(.+)_data")  # CVAT's folder of a split
SLACK = 0.02  # of the image, by which a rounded number may lie outside


def yolo_splits(root: Path) -> Listing:
    """Splits by data.yaml or obj.data, or by a list of classes with folders of images; "" is a set without splits."""
    listing = Listing()
    file = _listing(root)
    if file is None:
        return listing
    config = _config(file)
    if others := [str(one) for one in sorted(root.glob("*.y*ml")) if one != file and _names_classes(one)]:
        listing.notes.append(f"not used: {', '.join(others)}")
    places = _places_by_split(root, file, config, listing)
    taken = {*places, *listing.refused}
    taken |= {BOTH} if taken & {"train", "val"} else set()
    by_name = [one for one in _folders(root) if split_word(one.word) not in taken]
    places |= {split: (one.value,) for split, one in choose(by_name, listing).items() if split not in places}
    labelled = {split for split, some in places.items() if any(map(_has_labels, some))}
    if not places and not listing.refused:
        whole_set = folder_called(root, "images", "obj_train_data")
        if whole_set and _has_labels(whole_set):
            places[""] = (whole_set,)
        elif _is_flat(root):
            places[""] = (root,)
        labelled = set(places)
    for split in places.keys() - labelled:
        listing.refused[split] = (
            f"{file}: {split}: no label file for {places.pop(split)[0]}; put one for each image below a folder labels "
            "beside images, or beside the images"
        )
    for split, some in places.items():
        listing.sources[split] = Source(file, some, functools.partial(_read, file, root, some))
    return listing


def _places_by_split(root: Path, file: Path, config: dict[Any, Any], listing: Listing) -> dict[str, tuple[Path, ...]]:
    """The folders and lists of images that a file's entries name, or lists called like splits."""
    places: dict[str, tuple[Path, ...]] = {}
    for split, one in choose(_named(file, config) or _lists(root), listing).items():
        if not all(isinstance(name, str) for name in one.value):
            listing.refused[split] = f"{one.shown}: {shown(one.value)}, expected the path of a folder or of a list"
            continue
        resolved = dict(zip(one.value, _places(root, config.get("path"), one.value), strict=True))
        if missing := [name for name, place in resolved.items() if place is None]:
            listing.refused[split] = (
                f"{one.shown}: {missing[0]} is not there, neither beside the file nor below its path; correct it, or "
                "remove the line to do without"
            )
        else:
            places[split] = tuple(place for place in resolved.values() if place)
    return places


def _named(file: Path, config: dict[Any, Any]) -> list[Candidate]:
    """The entries that name a split, with the folders and lists that they give."""
    named = []
    for key, value in config.items():
        if isinstance(key, str) and split_word(key) and value not in (None, "", []):
            named.append(Candidate(key, f"{file}: {key}", value if isinstance(value, list) else [value]))
    return named


def _lists(root: Path) -> list[Candidate]:
    """Lists of images that are called like splits, and are no labels of an image of that name."""
    images = {path.stem for path in root.iterdir() if is_image(path)}
    named = [file for file in files_in(root, ".txt") if split_word(file.stem) and file.stem not in images]
    return [Candidate(file.stem, str(file), [file.name]) for file in named]


def _folders(root: Path) -> list[Candidate]:
    """Folders of images with labels, by name: train, images/train, obj_train_data."""
    named = []
    images = folder_called(root, "images")
    darknet = [child for child in folders(root) if _DARKNET.fullmatch(child.name)]  # one alone is a set without splits
    for child in [*folders(root), *(folders(images) if images else [])]:
        word = _DARKNET.sub(r"\1", child.name) if len(darknet) > 1 else child.name
        place = folder_called(child, "images") or child
        if split_word(word) and _has_labels(place):
            named.append(Candidate(word, str(place), place))
    return named


def _is_flat(root: Path) -> bool:
    """Whether images and their labels lie beside each other."""
    names = {path.name for path in root.iterdir()}
    return any(is_image(name) and f"{os.path.splitext(name)[0]}.txt" in names for name in names)


def _listing(root: Path) -> Path | None:
    """What lists the classes: data.yaml, else a YAML that names splits, else another one, else a text file."""
    named = [root / name for name in ("data.yaml", "data.yml", *NAMES)]
    if broken := next((file for file in named if os.path.lexists(file) and unreadable(file)), None):
        raise ValueError(f"{broken}: {unreadable(broken)}; restore or remove it")
    files = [file for file in (*sorted(root.glob("*.y*ml")), *(root / name for name in NAMES)) if _names_classes(file)]
    rank = {file: _rank(file) for file in files}
    best = [file for file in files if rank[file] == min(rank.values())]
    if len(best) > 1:
        contents = [(_by_number(config["names"]), _split_entries(config)) for config in map(_config, best)]
        if any(one != contents[0] for one in contents):
            names = ", ".join(file.name for file in best)
            raise ValueError(f"{root}: {names} have other names of classes or splits; keep one of them")
    if best:
        lists = [root / name for name in NAMES if (root / name) not in best]
        if labels := folder_called(root, "labels"):  # where LabelImg writes its own
            lists += [place / NAMES[0] for place in (labels, *folders(labels))]
        _check_same_names(best[0], [file for file in lists if file.is_file()])
    return best[0] if best else None


def _check_same_names(file: Path, others: Sequence[Path]) -> None:
    """A ValueError if a list of classes has another name for a number."""
    own = _config(file).get("names")
    for other in others:
        for number_, name in enumerate(_config(other)["names"]):
            other_name = _by_number(own).get(number_) if isinstance(own, (list, dict)) else None
            if other_name is not None and str(other_name).strip() != name:
                raise ValueError(
                    f"{file} and {other} have other names for class {number_}, {other_name!r} and {name!r}; keep the "
                    "right one and remove the other"
                )


def _rank(file: Path) -> int:
    if file.name in NAMES:
        return 3
    return 0 if file.stem.casefold() == "data" else 1 if _readable(file) and _split_entries(_config(file)) else 2


def _readable(file: Path) -> bool:
    try:
        return bool(_config(file))
    except ValueError:
        return False


def _split_entries(config: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in config.items() if isinstance(key, str) and split_word(key)}


def _by_number(names: Any) -> Any:
    return dict(enumerate(names)) if isinstance(names, list) else names


def _names_classes(file: Path) -> bool:
    try:
        return file.is_file() and (file.name in NAMES or "names" in _config(file))
    except ValueError:  # some other YAML may be anything
        return file.stem in ("data", "dataset")


def _config(file: Path) -> dict[Any, Any]:
    """A YAML's entries; of a list of classes "names", and what an obj.data beside it says."""
    if file.name in NAMES:
        lines = read_text(file, 1 << 24).rstrip().splitlines()
        if blank := next((i for i, line in enumerate(lines, 1) if not line.strip()), 0):
            raise ValueError(f"{file}: line {blank} is blank, and classes count by lines; give it a name or remove it")
        return {**_darknet(file.parent / "obj.data"), "names": [line.strip() for line in lines]}
    content = read_yaml(file)
    return content if isinstance(content, dict) else {}


def _darknet(file: Path) -> dict[str, str]:
    """The splits that a file of lines "train = data/train.txt" names."""
    if not os.path.lexists(file):
        return {}
    pairs = [line.split("=", 1) for line in read_text(file, 1 << 20).splitlines() if "=" in line]
    return {key.strip(): value.strip() for key, value in pairs if split_word(key)}


def _places(root: Path, base: Any, names: Sequence[str]) -> list[Path | None]:
    """The folders of images, or the lists of them, that a YAML means: beside it, or below its `path`.

    Exports say ../train/images for train/images, and `path` is that of another machine.
    """
    resolved = resolve_all(names, [root], os.path.exists)
    below = [root / base / one for one in names] if isinstance(base, str) else [root / one for one in names]
    return [
        one.path if one and not one.dropped else other if other.exists() else one.path if one else None
        for one, other in zip(resolved, below, strict=True)
    ]


def _label_folder(image: Path) -> Path:
    """labels/x of images/x/1.png: the last folder of that name is the other one; else the image's own."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i].casefold() == "images":
            name = "Labels" if parts[i].istitle() else "LABELS" if parts[i].isupper() else "labels"
            other = Path(*parts[:i], name, *parts[i + 1 : -1])
            return other if other.is_dir() else image.parent
    return image.parent


class _Labels:
    """The label files of images."""

    def __init__(self) -> None:
        self.names: dict[Path, dict[str, str]] = {}
        self.beside: dict[Path, Path] = {}

    def of(self, image: Path) -> Path | None:
        """The label file of an image, its ending in any case, if there is one; it may be a broken link."""
        folder = self.beside.get(image.parent)
        if folder is None:
            folder = self.beside[image.parent] = _label_folder(image)
        if folder not in self.names:
            texts = [name for name in sorted(os.listdir(folder)) if name[-4:].casefold() == ".txt"]
            self.names[folder] = {name[:-4]: name for name in texts}  # of 1.TXT and 1.txt, the latter
        name = self.names[folder].get(image.stem)
        return folder / name if name else None


def _images(place: Path, root: Path, left_out: LeftOut) -> Iterator[tuple[str, Path | None]]:
    """What errors call each image in a folder, or in the list that a text file is, and its file."""
    if place.is_dir():
        yield from ((_inside(path, root), path) for path in image_files(place, left_out))
        return
    lines = [(i, line.strip()) for i, line in enumerate(read_text(place).splitlines(), 1) if line.strip()]
    for (i, name), one in zip(lines, resolve_all([name for _, name in lines], [place.parent, root]), strict=True):
        yield f"{name} ({place.name} line {i})", one.path if one else None


def _inside(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _has_labels(place: Path) -> bool:
    if place.is_file():
        return place.suffix.casefold() == ".txt"
    return place.is_dir() and any_below(_label_folder(place / "x.png"), _is_label)


def _is_label(path: Path) -> bool:
    return path.suffix.casefold() == ".txt" and path.name not in NAMES


def _read(file: Path, root: Path, places: Sequence[Path], faults: Faults) -> Content:
    """What some folders of images and the label files beside them hold."""
    config = _config(file)
    classes = _classes(file, config)
    gathered = Gathered([{"id": number_, "name": name} for number_, name in classes.items()])
    numbers, points = set(classes), "kpt_shape" in config
    labels, used, visited = _Labels(), {}, set()  # type: tuple[_Labels, dict[Path, Path], set[Path]]
    unlabelled, left_out = [], LeftOut()
    for where, image in (pair for place in places for pair in _images(place, root, left_out)):
        if image is None:
            faults.add(f"image {where}: no such file")
            continue
        if image in visited:
            continue
        visited.add(image)
        label = labels.of(image)
        if label and (other := used.setdefault(label, image)) != image:
            faults.add(f"image {where}: {_inside(label, root)} is the label file of {other.name}, too; rename one")
            continue
        try:
            size = upright_size(image)
            lines = read_text(label).splitlines() if label else []
        except ValueError as error:
            faults.add(f"image {where}: {str(error).removeprefix(f'{image}: ')}")
            continue
        gathered.image(image, _inside(image, root), size)
        if label:
            _add_objects(gathered, _inside(label, root), lines, size, numbers, points, faults)
        else:
            unlabelled.append(image)
    if unlabelled and len(unlabelled) == len(gathered.images):
        first = unlabelled[0]
        raise ValueError(
            f"{file}: none of {len(unlabelled):,} images has a label file; of {_inside(first, root)} it would be "
            f"{_inside(_label_folder(first) / first.stem, root)}.txt"
        )
    return gathered.content(_notes(unlabelled, len(visited), places, used), unreadable_images(left_out))


def _add_objects(
    gathered: Gathered, label: str, lines: Sequence[str], size: tuple[int, int], numbers: set[int], points: bool,
    faults: Faults,
) -> None:  # fmt: skip
    """The objects of the last image, in px.  label: what errors call its label file."""
    for i, words in enumerate(lines, 1):
        if not words.strip():
            continue
        try:
            one = _object(words.split(), numbers, points)
        except ValueError as error:
            faults.add(f"{label} line {i}: {error}")
            continue
        one["bbox"] = [value * size[k % 2] for k, value in enumerate(one["bbox"])]
        one["segmentation"] = [[value * size[k % 2] for k, value in enumerate(p)] for p in one["segmentation"]]
        gathered.annotation(f"{label} line {i}", one)


def _notes(unlabelled: Sequence[Path], images: int, places: Sequence[Path], used: Container[Path]) -> list[str]:
    """Lines about images without a label file and label files without an image."""
    notes = []
    if unlabelled:
        notes.append(
            f"{len(unlabelled):,} of {images:,} images have no label file and are taken for images without objects, "
            f"{unlabelled[0].name} for one"
        )
    beside = {_label_folder(place / "x.png") for place in places if place.is_dir()}
    lone = [path for folder in beside for path in files_below(folder, ".txt") if path not in used and _is_label(path)]
    if lone:
        notes.append(f"{len(lone)} label files have no usable image and are left out, {lone[0].name} for one")
    return notes


def _classes(file: Path, config: dict[Any, Any]) -> dict[int, str]:
    """Names by number."""
    names, remedy = config["names"], "write names: [cat, dog], or names: {0: cat, 1: dog}"
    pairs = list(names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else [])
    if not pairs:
        raise ValueError(f"{file}: names is {shown(names)}, expected a list of classes; {remedy}")
    classes: dict[int, str] = {}
    for key, name in pairs:
        try:
            classes[integer(key)] = text(name)
        except Wrong as error:
            why = ": YAML reads yes, no, on and off as true and false" if isinstance(name, bool) else ""
            mend = f"put it in quotes{why}" if isinstance(name, (bool, float)) else remedy
            raise ValueError(f"{file}: class {shown(key)} is {shown(name)}, expected {error}; {mend}") from None
    count = config.get("nc", len(classes))
    if str(count) not in (str(len(classes)), str(max(classes) + 1)):
        raise ValueError(f"{file}: nc is {shown(count)}, but names has {len(classes)}; correct the wrong one")
    return classes


def _object(words: Sequence[str], numbers: set[int], points: bool) -> dict[str, Any]:
    """One line as category, box and polygons in shares of the image.  points: keypoints follow the box."""
    try:
        values = [number(word) for word in words]
        category = integer(words[0])
    except Wrong as error:
        raise ValueError(f"{shown(' '.join(words))}, expected numbers ({error})") from None
    if category not in numbers:
        raise ValueError(f"class {category}, expected one of {', '.join(map(str, sorted(numbers)[:8]))}")
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
