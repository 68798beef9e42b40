"""A split of a detection data set, checked before the first step, and what training sees of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from secvit.detection.augment import SANITIZE, cut
from secvit.detection.coco import (
    Annotations,
    Categories,
    Pictures,
    all_crowd,
    image_ids,
    read_annotations,
    read_categories,
    read_pictures,
    renumbered,
    where,
    without_supercategory,
)
from secvit.detection.layouts import find, has_images, splits
from secvit.detection.masks import decode, encode
from secvit.detection.objects import ByNumber, Objects, Rows, ends, frozen
from secvit.detection.shapes import check_boxes, check_masks, read_masks
from secvit.detection.source import Content, Source
from secvit.fields import Faults, few
from secvit.images import View, read_image, seeded
from secvit.images.classes import check_names, match_classes
from secvit.images.files import LeftOut
from secvit.images.names import Names
from secvit.processes import is_first
from secvit.progress import reading
from secvit.train.sampler import mix

__all__ = ["Coco", "TrainView", "decode", "encode", "find", "load", "splits"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coco:
    """One split.  Images have the numbers 1..n, categories 1..k, whatever ids the file has; labels count from 0.

    classes, category_ids: name and the file's own id of each label, by rising id.  image_ids: the file's own.
    folder: of most images, absolute; paths: files in it, or absolute.
    dropped: what was left out, and why.  blank (n): images without annotations.
    """

    name: str
    file: Path
    folder: Path
    file_names: Names
    paths: Names
    sizes: np.ndarray
    table: Objects
    classes: tuple[str, ...]
    category_ids: tuple[int | str, ...]
    image_ids: np.ndarray | tuple[int | str, ...]
    blank: np.ndarray
    dropped: list[str] = field(default_factory=list)
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def images(self) -> Rows[dict[str, Any]]:
        """COCO's entry of each image: id, file_name, width, height."""
        return Rows(len(self), self._entry)

    @property
    def objects(self) -> Mapping[int, list[dict[str, Any]]]:
        """COCO's annotations by number of the image, made when asked for."""
        return ByNumber(Rows(len(self), self._annotations))

    @property
    def names(self) -> Rows[str]:
        """The file of each image."""
        return Rows(len(self), lambda i: str(self.path(i)))

    @property
    def has_masks(self) -> bool:
        return self.table.masks is not None

    def path(self, i: int) -> Path:
        return self.folder / self.paths[i]

    def image(self, i: int) -> Image.Image:
        """An upright RGB picture; a ValueError that names a broken one."""
        return read_image(self.path(i))

    def target(self, i: int, masks: bool = True) -> dict[str, Tensor]:
        """Boxes (n, 4) as corners in px, labels (n), masks (n, H, W) of what is no crowd."""
        width, height = self.sizes[i].tolist()
        some = self.table.of(i)
        kept = ~self.table.crowd[some]
        boxes = torch.tensor(self.table.boxes[some][kept], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        target: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor(self.table.labels[some][kept], dtype=torch.long),
        }
        if masks and self.table.masks is not None:
            pixels = np.zeros((len(boxes), height, width), np.uint8)
            for k, one in enumerate(np.arange(some.start, some.stop)[kept]):
                pixels[k] = decode(self.table.masks.segmentation(one, height, width), height, width)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(pixels))
        return target

    def with_classes(self, classes: Sequence[str], category_ids: Sequence[int | str], known_from: str) -> Coco:
        """The same objects with other labels for their classes, by name; a ValueError if one is not among them."""
        place = match_classes(classes, self.classes, known_from, str(self.file))
        labels = frozen(np.array([*place, 0])[self.table.labels], np.int32)
        table = replace(self.table, labels=labels)
        return replace(self, classes=tuple(classes), category_ids=tuple(category_ids), table=table)

    def _entry(self, i: int) -> dict[str, Any]:
        width, height = self.sizes[i].tolist()
        return {"id": i + 1, "file_name": self.file_names[i], "width": width, "height": height}

    def _annotations(self, i: int) -> list[dict[str, Any]]:
        width, height = self.sizes[i].tolist()
        table, some = self.table, self.table.of(i)
        return [
            {
                "id": k + 1,
                "image_id": i + 1,
                "category_id": int(table.labels[k]) + 1,
                "bbox": table.boxes[k].tolist(),
                "area": float(table.areas[k]),
                "iscrowd": int(table.crowd[k]),
                "segmentation": [] if table.masks is None else table.masks.segmentation(k, height, width),
            }
            for k in range(some.start, some.stop)
        ]


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
    fatal, broken, say = Faults(source.file), Faults(source.file), _Say(split, source)
    content = source.read(broken)
    if not content.images or not content.categories:
        lacking = f"no {'images' if content.categories else 'categories'}; add some"
        lacking += "".join(f"; {count} {reason}" for reason, count in content.left_out if count)
        if broken:
            broken.found.insert(0, lacking)
            broken.check("Repair them")
        raise ValueError(f"{source.file}: {lacking}")
    entries, heading = without_supercategory(content)
    categories = read_categories(entries, fatal)
    pictures = read_pictures(content, source, places, fatal, broken)
    brushed = content.where is None and all_crowd(content.annotations)  # of Pascal VOC, all may be difficult
    single = brushed and (split == "train" or bool(source.part) or _train_is_all_crowd(root))
    annotations = read_annotations(content, categories, pictures, broken, masks, single)
    table, dropped = _table(content, pictures, annotations, fatal, broken, learn, say)
    if fatal or (broken and not (drop_broken and learn)):
        both = Faults(source.file)
        both.found = [*fatal, *broken]
        both.check(_remedy(both, learn and not fatal))
    if heading:
        say.warning("class %r has no object and only heads the others; it is left out", heading)
    check_names(categories.names, source.file)
    say.counts(content, categories, pictures, annotations, table, broken, dropped, learn, single)
    here = os.getcwd()
    folder = os.path.join(here, places[0], "")
    paths = (os.path.join(here, path) for path in map(str, pictures.paths))
    annotated = {pictures.place.get(id) for id in image_ids(content)}
    return Coco(
        split,
        source.file,
        Path(folder),
        Names.of(pictures.names),
        Names.of(path.removeprefix(folder) for path in paths),
        frozen(np.array(pictures.sizes, np.int64).reshape(-1, 2)),
        table,
        categories.names,
        categories.ids,
        tuple(pictures.ids) if any(isinstance(id, str) for id in pictures.ids) else frozen(pictures.ids, np.int64),
        frozen([i not in annotated for i in range(len(pictures.names))], bool),
        [*broken, *dropped],
    )


def _train_is_all_crowd(root: Path) -> bool:
    """Whether train, if there is one, has nothing but crowds: another split may have no other objects by chance."""
    known = splits(root)
    source = find(root, "train") if "train" in known else None
    return source is None or all_crowd(source.read(Faults(source.file)).annotations)


def _remedy(faults: Faults, may_drop: bool) -> str:
    unmasked = any(fault.endswith("has no mask") for fault in faults)
    return (
        ("Repair them, or leave them out with drop_broken" if may_drop else "Repair them")
        + ("; boxes alone are learned with --model.args '{\"masks\": false}'" if unmasked else "")
    )  # fmt: skip


def _table(
    content: Content, pictures: Pictures, found: Annotations, fatal: Faults, broken: Faults, learn: bool, say: _Say
) -> tuple[Objects, list[str]]:
    """The usable annotations by image, held against their images, and which of no area were left out."""
    images = np.array(found.images, np.int64)
    widths, heights = np.array(pictures.sizes, np.int64).reshape(-1, 2)[images].T
    boxes, given = np.array(found.boxes, np.float64).reshape(-1, 4), np.array(found.areas, np.float64)
    geometry = check_boxes(boxes, heights, widths, given)
    faults, empty, areas, masks = dict(geometry.faults), geometry.empty, boxes[:, 2] * boxes[:, 3], None
    if geometry.of_all:
        fatal.add(geometry.of_all)
    say.some("boxes end outside their image and are cut there", content, found, geometry.beyond)
    if any(found.segmentations):
        shapes = read_masks(found.segmentations, heights, widths, np.isnan(given))
        elsewhere, differ = check_masks(boxes, shapes)
        missing = np.flatnonzero(~shapes.present)
        faults = {int(i): "has no mask" for i in missing} | elsewhere | shapes.faults | faults
        empty = empty | (shapes.areas == 0)
        areas = np.where(np.isnan(shapes.areas), areas, shapes.areas)
        masks = shapes.masks
        say.some("boxes do not lie around their masks", content, found, differ)
    for i, fault in sorted(faults.items()):
        broken.add(f"{where(content, found.numbers[i])}: of {pictures.names[images[i]]} {fault}")
    usable = np.ones(len(images), bool)
    usable[list(faults)] = False
    dropped = []
    for i in np.flatnonzero(empty & usable).tolist():
        name = pictures.names[images[i]]
        dropped.append(f"{where(content, found.numbers[i])}: of {name} has no area, box {boxes[i].tolist()}")
    say.no_area(dropped, learn)
    if learn:
        usable &= ~empty
    order = np.flatnonzero(usable)
    order = order[np.argsort(images[order], kind="stable")]
    if masks is not None and not np.array_equal(order, np.arange(len(images))):
        masks = masks.take(order)
    table = Objects(
        frozen(boxes[order]),
        frozen(np.array(found.labels, np.int64)[order]),
        frozen(np.array(found.crowd, bool)[order]),
        frozen(np.where(np.isnan(given), areas, given)[order]),
        frozen(ends(np.bincount(images[order], minlength=len(pictures.names)))),
        masks,
    )
    return table, dropped if learn else []


class _Say:
    """The log's lines about a split."""

    def __init__(self, split: str, source: Source) -> None:
        self.split, self.source = split, source

    def warning(self, line: str, *values: Any) -> None:
        if is_first():
            logger.warning(f"%s: {line}", self.split, *values)

    def some(self, what: str, content: Content, found: Annotations, which: np.ndarray) -> None:
        if which.any():
            example = where(content, found.numbers[int(np.argmax(which))])
            share = which.mean()
            self.warning("%d of %d " + what + " (%.1f %%), %s for one", which.sum(), len(which), 100 * share, example)

    def no_area(self, named: list[str], learn: bool) -> None:
        if named and not learn:
            self.warning("%d objects of no area stay in the score, where none can be found: %s", len(named), named[0])

    def counts(
        self, content: Content, categories: Categories, pictures: Pictures, found: Annotations, table: Objects,
        broken: Faults, dropped: list[str], learn: bool, single: bool,
    ) -> None:  # fmt: skip
        """Images, objects and classes, and what was left out."""
        if self.source.part and is_first():
            logger.info(
                "%s: no %s; %s is a fixed part of %d of %d images",
                *(self.source.file, "val split" if self.source.of else "splits given", self.split),
                *(len(pictures.names), len(content.images)),
            )
        for line in (*self.source.notes, *content.notes):
            self.warning("%s", line)
        if is_first():
            logger.info(
                "%s: %s images, %s objects of %d classes, %s of them crowds",
                *(self.split, f"{len(pictures.names):,}", f"{len(table):,}", len(categories.names)),
                f"{int(table.crowd.sum()):,}",
            )
        if pictures.shortened and is_first():
            logger.info(
                "%s: %d of %d images were found without the leading folders of their file_name, %s for one",
                *(self.split, len(pictures.shortened), len(pictures.names), pictures.shortened[0]),
            )
        left_images, left = LeftOut(), LeftOut()
        gone = sum(fault.startswith("image ") for fault in broken)
        left_images.add("broken", gone)
        for reason, count in content.left_out:
            left_images.add(reason, count)
        left.add("without area", len(dropped))
        left.add("broken", len(broken.found) - gone)
        left.add("of images left out", found.lost)
        for line in (left_images.line(self.split, len(pictures.names), "images"),
                     left.line(self.split, len(table), "objects")):  # fmt: skip
            if line:
                self.warning(line.removeprefix(f"{self.split}: "))
        if single:
            self.warning("every object is marked iscrowd, as a brush marks them; they are taken for single objects")
        if again := renumbered(content.annotations) if content.where is None else 0:
            self.warning("%d annotations have no id or one of another; they were numbered anew", again)
        if not learn and table.crowd.all():
            self.warning("no object to be found, so every figure of its score is -1")
        if learn:
            counts = np.bincount(table.labels, minlength=len(categories.names))
            if unused := [name for name, count in zip(categories.names, counts, strict=True) if not count]:
                self.warning("%d of %d classes have no object: %s", len(unused), len(counts), few(unused))


class TrainView(View):
    """Batches {"images": list of (3, H, W) in 0..1, "targets": list of dicts} by sampler keys.

    Images without annotations are left out, or with `background` learned from as such; images with nothing but crowds
    are left out.  The next whole image stands in for a broken file.  Flips, crops and `transform` depend on (seed,
    key) alone; sizes are the detector's own business.  crop: part of the images that are cut (`augment.cut`).
    transform: of torchvision's v2, on (image, target).
    """

    def __init__(
        self,
        coco: Coco,
        masks: bool,
        flip: float = 0.5,
        seed: int = 0,
        transform: Callable[..., Any] | None = None,
        background: bool = False,
        crop: float = 0.0,
    ) -> None:
        super().__init__(coco, Image.Image.copy)  # type: ignore[arg-type]
        self.coco, self.masks, self.flip, self.seed, self.change = coco, masks, flip, seed, transform
        self.crop = crop
        starts = coco.table.starts
        learned = ends(~coco.table.crowd)
        usable = learned[starts[1:]] > learned[starts[:-1]]
        if not usable.any():
            raise ValueError(
                f"{coco.file}: no image has an object to learn from; add some that are neither crowds nor difficult"
            )
        left_out = LeftOut()
        left_out.add("with nothing but crowds or broken objects", int((~usable & ~coco.blank).sum()))
        if not background:
            left_out.add("without objects (learned from with background)", int(coco.blank.sum()))
        self.index = frozen(np.flatnonzero(usable | (coco.blank & background)))
        if (line := left_out.line(coco.name, len(self), "images")) and is_first():
            logger.warning(line)

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[int]) -> dict[str, list[Any]]:  # type: ignore[override]
        pairs = [self.pair(key) for key in keys]
        return {"images": [image for image, _ in pairs], "targets": [target for _, target in pairs]}

    def pair(self, key: int) -> tuple[Tensor, dict[str, Tensor]]:
        at = key % len(self)
        while (opened := self.open(i := int(self.index[at]))) is None:
            at = (at + 1) % len(self)
        image = tv_tensors.Image(tv.pil_to_tensor(opened))
        target = self.coco.target(i, self.masks)
        with seeded(mix(self.seed, key)):
            if torch.rand(()) < self.flip:
                image, target = (
                    tv.horizontal_flip(image),
                    {k: tv.horizontal_flip(v) if k != "labels" else v for k, v in target.items()},
                )
            if self.crop and torch.rand(()) < self.crop:
                image, target = cut(image, target)
            if self.change is not None:
                image, target = SANITIZE(*self.change(image, target))
        plain = {k: v.as_subclass(Tensor) for k, v in target.items()}
        return tv.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor), plain
