"""A split of a detection data set, checked before the first step."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from secvit.detection.coco import (
    Annotations,
    ImageList,
    all_crowd,
    image_ids,
    read_annotations,
    read_categories,
    read_images,
    where,
    without_supercategory,
)
from secvit.detection.layouts import find, has_images, splits
from secvit.detection.masks import decode, encode
from secvit.detection.objects import Objects, ends, frozen
from secvit.detection.shapes import check_boxes, check_masks, read_masks
from secvit.detection.source import Content
from secvit.detection.split import Coco
from secvit.detection.split_log import SplitLog
from secvit.detection.view import TrainView
from secvit.fields import Faults
from secvit.images.classes import check_names
from secvit.images.names import Names
from secvit.progress import reading

__all__ = ["Coco", "TrainView", "decode", "encode", "find", "load", "splits"]


@reading
def load(
    root: str | Path,
    split: str,
    masks: bool = True,
    drop_broken: bool = False,
    *,
    divide: bool = False,
    learn: bool | None = None,
) -> Coco:
    """A split, checked from end to end: one ValueError names the file and its broken entries.

    masks: read them, if the file has any.  drop_broken: leave broken entries out of what is learned from.
    divide: hold val out of a train split that stands alone, as of an undivided set.
    learn: whether objects are there to be learned, else they are the truth of a score; None: those of "train" are.
        Of what is learned, objects without area are left out; a truth is never dropped.
    """
    with _many_small_objects():
        return _load(Path(root), split, masks, drop_broken, divide, split == "train" if learn is None else learn)


@contextlib.contextmanager
def _many_small_objects() -> Iterator[None]:
    """No search for cycles among the millions of objects that a JSON becomes, and their memory back to the system."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        with contextlib.suppress(OSError, AttributeError, TypeError):  # other libraries than glibc have no such call
            ctypes.CDLL(None).malloc_trim(0)


def _load(root: Path, split: str, masks: bool, drop_broken: bool, divide: bool, learn: bool) -> Coco:
    source = find(root, split, divide)
    if not source.folders and not has_images(root):
        raise ValueError(f"{source.file} is there, but not its folder of images {root / split}")
    places = tuple(dict.fromkeys([*source.folders, root, source.file.parent]))
    fatal, broken, log = Faults(source.file), Faults(source.file), SplitLog(split, source)
    content = source.read(broken)
    if not content.images or not content.categories:
        lacking = f"no {'images' if content.categories else 'categories'}; add some"
        lacking += "".join(f"; {count} {reason}" for reason, count in content.left_out if count)
        if broken:
            broken.messages.insert(0, lacking)
            broken.check("Repair them")
        raise ValueError(f"{source.file}: {lacking}")
    entries, heading = without_supercategory(content)
    categories = read_categories(entries, fatal)
    image_list = read_images(content, source, places, fatal, broken)
    brushed = content.where is None and all_crowd(content.annotations)  # of Pascal VOC, all may be difficult
    single = brushed and (split == "train" or bool(source.part) or _train_is_all_crowd(root))
    annotations = read_annotations(content, categories, image_list, broken, masks, single)
    table, dropped = _table(content, image_list, annotations, fatal, broken, learn, log)
    if fatal or (broken and not (drop_broken and learn)):
        both = Faults(source.file)
        both.messages = [*fatal, *broken]
        both.check(_remedy(both, learn and not fatal))
    if heading:
        log.warning("class %r has no object and only heads the others; it is left out", heading)
    check_names(categories.names, source.file)
    log.counts(content, categories, image_list, annotations, table, broken, dropped, learn, single)
    here = os.getcwd()
    folder = os.path.join(here, places[0], "")
    paths = (os.path.join(here, path) for path in map(str, image_list.paths))
    annotated = {image_list.place.get(id) for id in image_ids(content)}
    return Coco(
        split,
        source.file,
        Path(folder),
        Names.of(image_list.names),
        Names.of(path.removeprefix(folder) for path in paths),
        frozen(np.array(image_list.sizes, np.int64).reshape(-1, 2)),
        table,
        categories.names,
        categories.ids,
        tuple(image_list.ids)
        if any(isinstance(id, str) for id in image_list.ids)
        else frozen(image_list.ids, np.int64),
        frozen([i not in annotated for i in range(len(image_list.names))], bool),
        [*broken, *dropped],
    )


def _train_is_all_crowd(root: Path) -> bool:
    """Whether train, if there is one, has nothing but crowds: another split may have no other objects by chance."""
    names = splits(root)
    source = find(root, "train") if "train" in names else None
    return source is None or all_crowd(source.read(Faults(source.file)).annotations)


def _remedy(faults: Faults, may_drop: bool) -> str:
    unmasked = any(fault.endswith("has no mask") for fault in faults)
    return (
        ("Repair them, or leave them out with drop_broken" if may_drop else "Repair them")
        + ("; boxes alone are learned with --model.args '{\"masks\": false}'" if unmasked else "")
    )  # fmt: skip


def _table(
    content: Content,
    image_list: ImageList,
    annotations: Annotations,
    fatal: Faults,
    broken: Faults,
    learn: bool,
    log: SplitLog,
) -> tuple[Objects, list[str]]:
    """The usable annotations by image, held against their images, and which of no area were left out."""
    images = np.array(annotations.images, np.int64)
    widths, heights = np.array(image_list.sizes, np.int64).reshape(-1, 2)[images].T
    boxes, stated_areas = (
        np.array(annotations.boxes, np.float64).reshape(-1, 4),
        np.array(annotations.areas, np.float64),
    )
    geometry = check_boxes(boxes, heights, widths, stated_areas)
    faults, empty, areas, masks = dict(geometry.faults), geometry.empty, boxes[:, 2] * boxes[:, 3], None
    if geometry.of_all:
        fatal.add(geometry.of_all)
    log.some("boxes end outside their image and are cut there", content, annotations, geometry.beyond)
    if any(annotations.segmentations):
        shapes = read_masks(annotations.segmentations, heights, widths, np.isnan(stated_areas))
        elsewhere, differ = check_masks(boxes, shapes)
        missing = np.flatnonzero(~shapes.present)
        faults = {int(i): "has no mask" for i in missing} | elsewhere | shapes.faults | faults
        empty = empty | (shapes.areas == 0)
        areas = np.where(np.isnan(shapes.areas), areas, shapes.areas)
        masks = shapes.masks
        log.some("boxes do not lie around their masks", content, annotations, differ)
    for i, fault in sorted(faults.items()):
        broken.add(f"{where(content, annotations.numbers[i])}: of {image_list.names[images[i]]} {fault}")
    usable = np.ones(len(images), bool)
    usable[list(faults)] = False
    dropped = []
    for i in np.flatnonzero(empty & usable).tolist():
        name = image_list.names[images[i]]
        dropped.append(f"{where(content, annotations.numbers[i])}: of {name} has no area, box {boxes[i].tolist()}")
    log.no_area(dropped, learn)
    if learn:
        usable &= ~empty
    order = np.flatnonzero(usable)
    order = order[np.argsort(images[order], kind="stable")]
    if masks is not None and not np.array_equal(order, np.arange(len(images))):
        masks = masks.take(order)
    table = Objects(
        frozen(boxes[order]),
        frozen(np.array(annotations.labels, np.int64)[order]),
        frozen(np.array(annotations.crowd, bool)[order]),
        frozen(np.where(np.isnan(stated_areas), areas, stated_areas)[order]),
        frozen(ends(np.bincount(images[order], minlength=len(image_list.names)))),
        masks,
    )
    return table, dropped if learn else []
