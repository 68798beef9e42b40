"""hfds/NAME_OR_PATH: Hugging Face datasets with a column of images and one of labels.

Opened with the package `datasets` itself rather than timm's reader of the same prefix, which cannot say
which splits there are and wants the names of the columns.  The images stay in the Arrow files, mapped
into memory, so that any of them can be read at any time by any process.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from secvit.extras import needs
from secvit.fields import Wrong, read_text, shown, text
from secvit.images.classes import class_names
from secvit.images.files import LeftOut, image_names
from secvit.images.labelled import Images, Source, number_labels
from secvit.images.names import Names
from secvit.images.read import read_image
from secvit.splits import SPLITS, check_like, is_joint, joint_is_train, split_of

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LABELS = ("label", "labels", "class")


def hfds_sources(name: str) -> dict[str, Source]:
    """The splits of a data set on the Hugging Face Hub or in a folder."""
    with needs(f"hfds/{name}", "datasets"):
        import datasets
    saved = os.path.isfile(os.path.join(name, "state.json"))
    try:
        available = ["train"] if saved else datasets.get_dataset_split_names(name)
    except Exception as error:  # of several packages: not found, not reachable, damaged, which configuration?
        raise ValueError(
            f"hfds/{name} cannot be opened: {error}; give hfds/ and a name on the Hub or a folder"
        ) from None
    if os.path.isdir(name):
        _check_parquet(name)
        _tell_unlisted(name)
    words: dict[str, str] = {}
    joint = next((word for word in available if is_joint(word)), None)
    if joint and joint_is_train(joint, {split for word in available if (split := split_of(word))}, f"hfds/{name}"):
        words["train"] = joint
    for word in available:
        split = split_of(word)
        if split and split in words:
            raise ValueError(f"hfds/{name}: {word} is a second {split}; keep one of them ({words[split]}, {word})")
        if split:
            words[split] = word
    if "train" not in words:
        raise ValueError(f"hfds/{name}: no split train, only {', '.join(available)}; save it under that name")
    check_like({word: word for word in available}, words, f"hfds/{name}")
    if unused := [word for word in available if word not in words.values()]:
        logger.warning("hfds/%s: splits that are not used: %s", name, ", ".join(unused))
    return {
        split: Source(partial(_read, name, words[split], split), partial(_classes, name, words[split]))
        for split in SPLITS
        if split in words
    }


def _check_parquet(folder: str) -> None:
    """A ValueError if files of a folder name the classes of one column in another way: `datasets` takes the first's."""
    import pyarrow.parquet

    first: dict[str, tuple[str, list[str]]] = {}
    for file in sorted(map(str, Path(folder).rglob("*.parquet"))):
        try:
            metadata = json.loads((pyarrow.parquet.read_schema(file).metadata or {}).get(b"huggingface", b"{}"))
            features = metadata.get("info", {}).get("features", {})
            named = {column: list(kind["names"]) for column, kind in features.items() if "names" in kind}
        except (OSError, ValueError, TypeError, AttributeError, pyarrow.ArrowException):
            continue  # `datasets` says what is wrong with it
        for column, names in named.items():
            other, before = first.setdefault(column, (file, names))
            if names != before:
                raise ValueError(
                    f"{file}: the classes of {column!r} are {shown(names)}, but {shown(before)} in {other}; export "
                    "both with the same list"
                )


def _tell_unlisted(folder: str) -> None:
    """Warn of images beside a metadata.csv or metadata.jsonl that does not name them: `datasets` leaves them out."""
    for place in sorted(path for path in Path(folder).rglob("metadata.*") if path.suffix in (".csv", ".jsonl")):
        try:
            content = io.StringIO(read_text(place), newline="")
            rows = csv.DictReader(content) if place.suffix == ".csv" else map(json.loads, content)
            listed = {os.path.normpath(place.parent / row["file_name"]) for row in rows}
        except (ValueError, KeyError, TypeError, csv.Error):
            continue  # `datasets` says what is wrong with it
        left_out = LeftOut()
        there = {os.path.normpath(image) for image in image_names(place.parent)}
        left_out.add(f"not named in {place.name}", len(there - listed))
        left_out.tell(f"hfds/{place.parent}", len(there & listed), "images")


def _open(name: str, split: str) -> tuple[Dataset, str, str]:
    """A split with its images left encoded, and the names of its columns of images and of labels."""
    import datasets

    try:
        if os.path.isfile(os.path.join(name, "state.json")):  # written by Dataset.save_to_disk
            rows = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise ValueError(f"hfds/{name} cannot be opened: {split}: {error}") from None
    images = [c for c, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    classes = [c for c, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = [c for c in LABELS if c in rows.features] or classes
    for kind, columns in (("images", images), ("labels", labels)):
        if len(columns) != 1:
            raise ValueError(
                f"hfds/{name}: {len(columns)} columns of {kind} among {', '.join(rows.features)}; expected one of "
                "the type datasets.Image, and one called label or of the type datasets.ClassLabel"
            )
    return rows.cast_column(images[0], datasets.Image(decode=False)), images[0], labels[0]


def _classes(name: str, split: str) -> tuple[str, ...]:
    rows, _, column = _open(name, split)
    names = getattr(rows.features[column], "names", None)
    return tuple(names) if names else class_names(_label(v, f"hfds/{name}/{split}") for v in rows[column][:])


def _label(value: Any, where: str) -> str:
    """A label that is no ClassLabel, as text."""
    try:
        return text(value)
    except Wrong:
        raise ValueError(
            f"{where}: label {value!r}; expected a class number or a name; a split without labels cannot be used"
        ) from None


def _read(name: str, split: str, ours: str, classes: tuple[str, ...] | None) -> Images:
    rows, image, column = _open(name, split)
    if not len(rows):
        raise ValueError(f"hfds/{name}, {split}: no rows")
    root, values = f"hfds/{name}/{split}", rows[column][:]
    names = Names.of(f"{root}[{i}]" for i in range(len(rows)))
    read = partial(_image, rows, image)
    own = getattr(rows.features[column], "names", None)
    if not own:
        labels = [_label(value, names[i]) for i, value in enumerate(values)]
        all_classes, numbers = number_labels(labels, classes, names.__getitem__)
        return Images(ours, all_classes, numbers, None, names, read=read, root=root)
    outside = [i for i, v in enumerate(values) if v is None or not 0 <= v < len(own)]
    if outside:
        i = outside[0]
        raise ValueError(
            f"{names[i]}: label {values[i]}, outside 0..{len(own) - 1} ({len(outside)} such rows of {len(rows)}); a "
            "split without labels cannot be used"
        )
    return Images(ours, tuple(own), torch.tensor(values), None, names, read=read, root=root)


def _image(rows: Dataset, column: str, name: str) -> Image.Image:
    """The image of the row that a name ends with, as in "hfds/NAME/train[17]"."""
    entry: dict[str, Any] | None = rows[int(name[name.rindex("[") + 1 : -1])][column]
    if not entry or not (entry["bytes"] or entry["path"]):
        raise ValueError(f"{name}: no image in this row; remove it")
    return read_image(entry["bytes"] or entry["path"], name)
