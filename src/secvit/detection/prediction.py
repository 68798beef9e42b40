"""What a trained detector finds in images, as tensors and in COCO's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as tv

from secvit.images import to_rgb

SCORE = 0.5


@torch.no_grad()  # not inference_mode: a network may keep tables for its next training step
def predict(model: nn.Module, images: Sequence[Image.Image | Tensor], score: float = SCORE) -> list[dict[str, Tensor]]:
    """Objects in images of any sizes, the surest first: for each image a dict, on the CPU.

    images: PIL images, or tensors (3, H, W) in 0..1 or of bytes.  score: the least one kept; the detector itself
    leaves out what is below its box_score_thresh, 0.05.
    boxes (n, 4) are corners in px of the image, labels (n) count from 0, scores (n) lie in 0..1, masks (n, H, W) are
    true inside the object; RetinaNet has none.

    What is found in an image does not depend on the others: only those that get the same size, after the
    detector's scaling and padding, go through it together.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score={score}; choose 0 <= score <= 1")
    model.eval()
    alike: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        alike.setdefault(seen_size(model, image_size(image)), []).append(i)
    detections: dict[int, dict[str, Tensor]] = {}
    device = next(model.parameters()).device
    for some in alike.values():
        with masks_in_boxes(model):
            outputs = model([as_pixels(images[i]).to(device) for i in some])
        for i, out in zip(some, outputs, strict=True):
            detections[i] = finished(out, image_size(images[i]), score)
    return [detections[i] for i in range(len(images))]


def image_size(image: Image.Image | Tensor) -> tuple[int, int]:
    """Width and height in px; a ValueError for what is no RGB image."""
    if isinstance(image, Tensor):
        if image.dim() != 3 or len(image) != 3 or not image.numel():
            raise ValueError(f"an image of shape {tuple(image.shape)}; give (3, H, W)")
        return image.shape[2], image.shape[1]
    return image.size


def seen_size(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width that an image of (width, height) px has inside the detector, padding included."""
    transform: Any = model.transform
    scale = min(transform.min_size[-1] / min(size), transform.max_size / max(size))
    if min(size) * scale < 1:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} px is too thin to be seen at {transform.max_size} px; cut it"
        )
    seen, _ = transform.resize(torch.empty(3, size[1], size[0], device="meta"), None)
    step = transform.size_divisible
    return -seen.shape[1] // step * -step, -seen.shape[2] // step * -step


def as_pixels(image: Image.Image | Tensor) -> Tensor:
    """(3, H, W) in 0..1"""
    pixels = image if isinstance(image, Tensor) else tv.pil_to_tensor(to_rgb(image))
    return tv.to_dtype(pixels, torch.float32, scale=True)


@contextmanager
def masks_in_boxes(model: nn.Module) -> Iterator[None]:
    """Have the detector return masks as it makes them, 28 x 28 in the box, under "small".

    torchvision lays a hundred of them over the whole image at once: gigabytes for a photo of a camera.
    """

    def rename(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        detections, losses = output
        return [{"small" if name == "masks" else name: x for name, x in one.items()} for one in detections], losses

    heads = getattr(model, "roi_heads", None)
    hook = heads.register_forward_hook(rename) if heads is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def finished(out: dict[str, Tensor], size: tuple[int, int], score: float) -> dict[str, Tensor]:
    """The surest objects of one image, their masks laid over the image one by one."""
    out = {name: value.cpu() for name, value in out.items()}
    order = out["scores"].argsort(descending=True, stable=True)
    order = order[out["scores"][order] >= score]
    detections = {name: out[name][order] for name in ("boxes", "labels", "scores")}
    if "small" in out:
        detections["masks"] = torch.zeros(len(order), size[1], size[0], dtype=torch.bool)
        for mask, box, small in zip(detections["masks"], detections["boxes"], out["small"][order], strict=True):
            lay(mask, box, small)
    # scaled back from the size seen, they may end a rounding error outside
    detections["boxes"] = clip_boxes_to_image(detections["boxes"], (size[1], size[0]))
    return detections


def lay(mask: Tensor, box: Tensor, small: Tensor) -> None:
    """Paste one object's mask (1, 28, 28) into that of its image (H, W), by torchvision's rule, around its box only."""
    height, width = mask.shape
    margin = 2 + 0.05 * (box[2:] - box[:2])  # torchvision grows the box by 1/28 and rounds
    left, top = (box[:2] - margin).clamp_min(0).long().tolist()
    right, bottom = (box[2:] + margin).long().tolist()
    window = mask[top : min(bottom, height), left : min(right, width)]
    inside = box - box.new_tensor([left, top, left, top])
    window.copy_(paste_masks_in_image(small[None], inside[None], tuple(window.shape))[0, 0] > 0.5)


def as_results(
    detections: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int | str]
) -> list[dict[str, Any]]:
    """What `predict` found in one image in COCO's result format: boxes (x, y, w, h), masks as run lengths."""
    corners = detections["boxes"]
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    entries: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[int(label)], "bbox": box, "score": float(score)}
        for box, label, score in zip(boxes, detections["labels"], detections["scores"])
    ]
    for entry, mask in zip(entries, detections.get("masks", ())):
        entry["segmentation"] = rle.encode(np.asfortranarray(mask.byte().numpy()))
    return entries


def new_coco(categories: Mapping[int | str, str]) -> dict[str, Any]:
    """A COCO file without images.  categories: the learned file's own id and name of labels 0, 1, ..."""
    entries = [{"id": number, "name": name} for number, name in categories.items()]
    return {"info": {}, "images": [], "categories": entries, "annotations": []}


def add_image(coco: dict[str, Any], name: str, size: tuple[int, int], detections: Mapping[str, Tensor]) -> None:
    """Append an image of (width, height) px, and what `predict` found in it, to a COCO file.

    Annotations have a score, and masks as compressed run lengths ([] where there are none), so they are results, too:

        truth = pycocotools.coco.COCO("detections.json")
        results = truth.loadRes(truth.dataset["annotations"])
    """
    image_id = len(coco["images"]) + 1
    coco["images"].append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
    for entry in as_results(detections, image_id, [category["id"] for category in coco["categories"]]):
        mask, area = entry.get("segmentation", []), entry["bbox"][2] * entry["bbox"][3]
        if mask:
            area = float(rle.area(mask))
            mask = {**mask, "counts": mask["counts"].decode("ascii")}
        own = {"id": len(coco["annotations"]) + 1, "area": area, "iscrowd": 0, "segmentation": mask}
        coco["annotations"].append({**entry, **own})
