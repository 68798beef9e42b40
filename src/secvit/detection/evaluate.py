"""COCO's box and mask AP, all twelve figures and per class, with faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads
from tqdm import tqdm

from secvit.detection.data import Coco, load
from secvit.detection.prediction import as_results, predict
from secvit.detection.saved import load_detector
from secvit.images import View, skipped_in
from secvit.models.saved import saved_config
from secvit.processes import is_first, of_all_processes, share

FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
KINDS = {"box": "bbox", "mask": "segm"}


def detect(model: nn.Module, coco: Coco, batch_size: int = 1) -> list[dict[str, Any]]:
    """Detections of every image in COCO's result format, with masks where the model makes them.

    Images and categories have the split's own numbers; `with_file_ids` puts the file's in their place.  A broken
    image has no detections: its objects count as missed, and its name is in the log.
    Of many processes each looks at a share of the images, and all return what all found.
    """
    indices, numbers = share(len(coco)), range(1, len(coco.classes) + 1)
    view = View(coco, Image.Image.copy)  # type: ignore[arg-type]
    results: list[dict[str, Any]] = []
    title = f"evaluating {coco.file.stem}"
    for start in tqdm(range(0, len(indices), batch_size), desc=title, disable=not is_first() or None, leave=False):
        some = indices[start : start + batch_size]
        images = {i: image for i in some if (image := view.open(i)) is not None}
        for i, out in zip(images, predict(model, list(images.values()), score=0.0), strict=True):
            results += as_results(out, i + 1, numbers)
    skipped_in(view)
    return sorted(of_all_processes(results), key=lambda one: (one["image_id"], -one["score"]))


def with_file_ids(coco: Coco, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detections with the ids that the file has for images and categories, as its tools expect them."""

    def own(id: Any) -> int | str:
        return id if isinstance(id, str) else int(id)

    return [
        {
            **one,
            "image_id": own(coco.image_ids[one["image_id"] - 1]),
            "category_id": own(coco.category_ids[one["category_id"] - 1]),
        }
        for one in results
    ]


def evaluate_checkpoint(
    weights: str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "val",
    *,
    max_dets: int | None = None,
    batch_size: int = 1,
    min_size: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """COCO's figures of a trained detector on a split: box_AP, mask_AP50, ..., and box_per_class, mask_per_class.

    weights, min_size, device: as in `load_detector`.  data: a folder as in `secvit.detection.data.load`, with classes
    that the detector learned, by name.  max_dets: detections of an image that count; else as in the run.
    """
    max_dets = max_dets or saved_config(weights).get("max_dets", 100)
    model, categories = load_detector(weights, min_size, device)
    return score(model, categories, data, split, f"the run {os.fspath(weights)}", max_dets, batch_size)


def score(
    model: nn.Module,
    categories: Mapping[int | str, str],
    data: str | os.PathLike[str],
    split: str,
    expected_name: str,
    max_dets: int = 100,
    batch_size: int = 1,
) -> dict[str, Any]:
    """`evaluate_checkpoint` of a loaded detector.  categories: of `load_detector`.  expected_name: the run."""
    coco = load(os.fspath(data), split, has_masks(model), divide=True, learn=False)
    kinds = ("box", "mask")[: 1 + (has_masks(model) and coco.has_masks)]
    try:
        coco = coco.with_classes(tuple(categories.values()), tuple(categories), expected_name)
    except ValueError as error:
        raise ValueError(f"{coco.file} has other categories than {expected_name}: {error}") from None
    results = detect(model, coco, batch_size)
    figures: dict[str, Any] = {"images": len(coco.images)}
    for kind in kinds:
        figures |= {f"{kind}_{name}": value for name, value in average_precision(coco, results, kind, max_dets).items()}
    return figures


def has_masks(model: nn.Module) -> bool:
    """Whether a detector makes masks."""
    return isinstance(heads := getattr(model, "roi_heads", None), RoIHeads) and heads.has_mask()


def average_precision(
    coco: Coco, results: Sequence[dict[str, Any]], kind: str = "box", max_dets: int = 100
) -> dict[str, Any]:
    """COCO's twelve figures in 0..1 by name, and "per_class": AP by class name.  -1 where there is nothing to find.

    results: in COCO's format, with the numbers that `coco.images` and `coco.objects` have.
    kind: "box" or "mask".  max_dets: detections of an image that count, the best ones.
    """
    for one in results:
        if not (1 <= one["image_id"] <= len(coco) and 1 <= one["category_id"] <= len(coco.classes)):
            raise ValueError(
                f"a detection of image {one['image_id']} and category {one['category_id']}; {coco.file} has images "
                f"1 to {len(coco)} and categories 1 to {len(coco.classes)} here"
            )
    shown = [{key: value for key, value in one.items() if kind == "mask" or key != "segmentation"} for one in results]
    content = ground_truth(coco)
    truth = COCO(content)
    with contextlib.redirect_stdout(io.StringIO()):
        predictions = truth.loadRes(shown) if shown else COCO({**content, "annotations": []})
        evaluation = COCOeval_faster(truth, predictions, KINDS[kind])
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
    per_class = {
        name: float(values.mean()) if (values := precision[:, :, i][precision[:, :, i] > -1]).size else -1.0
        for i, name in enumerate(coco.classes)
    }
    return {**dict(zip(FIGURES, map(float, evaluation.stats[:12]))), "per_class": per_class}


def ground_truth(coco: Coco) -> dict[str, Any]:
    """The checked split as a COCO dict, by our own numbers from 1 on."""
    annotations = [one for some in coco.objects.values() for one in some]
    categories = [{"id": c, "name": name} for c, name in enumerate(coco.classes, 1)]
    return {"info": {}, "images": list(coco.images), "annotations": annotations, "categories": categories}
