"""A split of a detection data set in memory: images by number, and their objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from secvit.detection.masks import decode
from secvit.detection.objects import ByNumber, Objects, Rows, frozen
from secvit.images import read_image
from secvit.images.classes import match_classes
from secvit.images.names import Names


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
        """An upright RGB image; a ValueError that names a broken one."""
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

    def with_classes(self, classes: Sequence[str], category_ids: Sequence[int | str], expected_name: str) -> Coco:
        """The same objects with other labels for their classes, by name; a ValueError if one is not among them."""
        place = match_classes(classes, self.classes, expected_name, str(self.file))
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
