"""COCO-format folders: found, checked before the first step, read as boxes and masks."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import SanitizeBoundingBoxes
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from secvit.images import read_image, seeded, upright_size
from secvit.train.sampler import mix
from secvit.train.shares import is_first

NAMED = 20  # broken entries that an error names
SANITIZE = SanitizeBoundingBoxes()  # boxes that a crop left nothing of, with their labels and masks
EDGE = 2.0  # pixels that a polygon may lie outside its image: annotators round
LAYOUTS = (
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
    "{split}/_annotations.coco.json",
)


@dataclass(frozen=True)
class Coco:
    """One split.  images: COCO's entries; objects: its annotations by image id; labels count from 0.

    classes, category_ids: name and id of each label, by rising id.  dropped: what was left out as broken.
    """

    file: Path
    folder: Path
    images: list[dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    dropped: list[str] = field(default_factory=list)

    def path(self, i: int) -> Path:
        return self.folder / self.images[i]["file_name"]

    def target(self, i: int, masks: bool = True) -> dict[str, Tensor]:
        """Boxes (n, 4) as corners in pixels, labels (n), masks (n, H, W) of what is no crowd."""
        entry = self.images[i]
        size, label = (entry["height"], entry["width"]), {c: n for n, c in enumerate(self.category_ids)}
        found = [o for o in self.objects[entry["id"]] if not o.get("iscrowd")]
        boxes = torch.tensor([o["bbox"] for o in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(0, size[1])
        boxes[:, 1::2].clamp_(0, size[0])
        target: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([label[o["category_id"]] for o in found], dtype=torch.long),
        }
        if masks:
            drawn = [decode(o["segmentation"], *size) for o in found]
            pixels = np.stack(drawn) if drawn else np.zeros((0, *size), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(pixels))
        return target


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons or run lengths as pixels.  -> (H, W) of 0 and 1"""
    return np.ascontiguousarray(rle.decode(encode(segmentation, height, width)))


def encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons or run lengths, compressed or not, as one compressed mask."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def find(root: str | Path, split: str) -> tuple[Path, Path]:
    """The JSON and the image folder of a split: COCO's own layout, without the year, or Roboflow's."""
    root = Path(root)
    for layout, name in itertools.product(LAYOUTS, (split, "valid") if split == "val" else (split,)):
        file = root / layout.format(split=name)
        if file.is_file():
            folder = file.parent if file.parent.name == name else root / file.stem.removeprefix("instances_")
            if not folder.is_dir():
                raise ValueError(f"{file} is there, but not its folder of images {folder}")
            return file, folder
    tried = ", ".join(layout.format(split=split) for layout in LAYOUTS)
    raise ValueError(f"{root}: no {split} split in COCO's format; looked for {tried}")


def load(root: str | Path, split: str, masks: bool = True, drop_broken: bool = False) -> Coco:
    """A split, checked: a ValueError names the file and each broken entry, or, with drop_broken, they are left out."""
    file, folder = find(root, split)
    try:
        known = json.loads(file.read_text())
        images, annotations, categories = (known[key] for key in ("images", "annotations", "categories"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a readable COCO file ({type(error).__name__}: {error})") from None
    if not images or not categories:
        raise ValueError(f"{file}: no {'images' if categories else 'categories'}")
    categories = sorted(categories, key=lambda category: category["id"])
    ids = tuple(category["id"] for category in categories)
    problems: list[str] = []
    kept = []
    for entry in tqdm(images, desc=f"checking {file.stem}", disable=not is_first() or None, leave=False):
        if problem := wrong_with_image(entry, folder):
            problems.append(f"image {entry.get('id')}: {problem}")
        else:
            kept.append(entry)
    by_id = {entry["id"]: entry for entry in kept}
    if len(by_id) < len(kept):
        raise ValueError(f"{file}: two images have the same id")
    broken = {entry.get("id") for entry in images} - set(by_id)
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in annotations:
        if one.get("image_id") in broken:
            continue
        if problem := wrong_with(one, by_id, set(ids), masks):
            problems.append(f"annotation {one.get('id')}: {problem}")
        else:
            objects[one["image_id"]].append(one)
    if problems and not drop_broken:
        named = "\n  ".join(problems[:NAMED])
        more = f"\n  and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise ValueError(f"{file}:\n  {named}{more}\nRepair them, or leave them out with drop_broken")
    return Coco(file, folder, kept, objects, tuple(c["name"] for c in categories), ids, problems)


def wrong_with_image(entry: dict[str, Any], folder: Path) -> str:
    """Why an image cannot be used, "" if it can; its header is read, its pixels are not."""
    if lacking := {"id", "file_name", "width", "height"} - set(entry):
        return f"entry without {', '.join(sorted(lacking))}"
    path = folder / entry["file_name"]
    if not path.is_file():
        return f"no file {entry['file_name']} in {folder}"
    try:
        size = upright_size(path)
    except ValueError as error:
        return str(error)
    said = (entry["width"], entry["height"])
    return "" if size == said else f"{path} is {size[0]}x{size[1]} px upright, the entry says {said[0]}x{said[1]}"


def wrong_with(one: dict[str, Any], images: dict[int, dict[str, Any]], categories: set[int], masks: bool) -> str:
    """Why an annotation cannot be used, "" if it can."""
    if one.get("image_id") not in images:
        return f"unknown image_id {one.get('image_id')}"
    image = images[one["image_id"]]
    where = f"of {image['file_name']}"
    if one.get("category_id") not in categories:
        return f"{where} has unknown category_id {one.get('category_id')}"
    box = one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(np.isfinite(box)):
        return f"{where} has no box of four numbers: {box}"
    if box[2] <= 0 or box[3] <= 0:
        return f"{where} has an empty box {box}"
    if box[0] >= image["width"] or box[1] >= image["height"] or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return f"{where} has a box {box} outside its {image['width']}x{image['height']} px"
    return wrong_mask(one.get("segmentation"), image, where) if masks else ""


def wrong_mask(segmentation: Any, image: dict[str, Any], where: str) -> str:
    height, width = image["height"], image["width"]
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", [])) != [height, width]:
            return f"{where} has a mask of size {segmentation.get('size')} on an image of {[height, width]}"
        return ""
    if not isinstance(segmentation, list) or not segmentation:
        return f"{where} has no mask"
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            return f"{where} has a polygon of {len(polygon) / 2:g} points"
        points = np.asarray(polygon, dtype=float).reshape(-1, 2)
        if (points < -EDGE).any() or (points > np.array([width, height]) + EDGE).any():
            return f"{where} has a mask outside its {width}x{height} px"
    return ""


class TrainView:
    """Batches {"images": list of (3, H, W) in 0..1, "targets": list of dicts} by sampler keys.

    Images without objects are left out.  Flips and `transform` depend on (seed, key) alone; sizes are the
    detector's own business.  transform: of torchvision's v2, on (image, target).
    """

    def __init__(
        self, coco: Coco, masks: bool, flip: float = 0.5, seed: int = 0, transform: Callable[..., Any] | None = None
    ) -> None:
        self.coco, self.masks, self.flip, self.seed, self.transform = coco, masks, flip, seed, transform
        crowd_only = [all(o.get("iscrowd") for o in coco.objects[entry["id"]]) for entry in coco.images]
        self.index = [i for i, empty in enumerate(crowd_only) if not empty]
        if not self.index:
            raise ValueError(f"{coco.file}: no image has an object to learn from")

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[int]) -> dict[str, list[Any]]:
        pairs = [self.pair(key) for key in keys]
        return {"images": [image for image, _ in pairs], "targets": [target for _, target in pairs]}

    def pair(self, key: int) -> tuple[Tensor, dict[str, Tensor]]:
        i = self.index[key % len(self)]
        image = tv_tensors.Image(tv.pil_to_tensor(read_image(self.coco.path(i))))
        target = self.coco.target(i, self.masks)
        with seeded(mix(self.seed, key)):
            if torch.rand(()) < self.flip:
                image, target = (
                    tv.horizontal_flip(image),
                    {k: tv.horizontal_flip(v) if k != "labels" else v for k, v in target.items()},
                )
            if self.transform is not None:
                image, target = SANITIZE(*self.transform(image, target))
        plain = {k: v.as_subclass(Tensor) for k, v in target.items()}
        return tv.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor), plain

    @staticmethod
    def collate(batch: Any) -> Any:
        return batch
