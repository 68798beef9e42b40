"""COCO's box and mask AP, all twelve figures and per class, with faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from torch import nn
from tqdm import tqdm

from secvit.detection.data import Coco, encode, load
from secvit.detection.predict import as_results, predict
from secvit.detection.saved import load_detector
from secvit.images import read_image
from secvit.models.saved import saved_config
from secvit.train.shares import is_first, of_all_processes, share
from secvit.weights import few

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

    Of many processes each looks at a share of the images, and all return what all found.
    """
    mine = share(len(coco.images))
    found: list[dict[str, Any]] = []
    title = f"evaluating {coco.file.stem}"
    for start in tqdm(range(0, len(mine), batch_size), desc=title, disable=not is_first() or None, leave=False):
        some = mine[start : start + batch_size]
        images = [read_image(coco.path(i)) for i in some]
        for i, out in zip(some, predict(model, images, score=0.0), strict=True):
            found += as_results(out, coco.images[i]["id"], coco.category_ids)
    return sorted(of_all_processes(found), key=lambda one: (one["image_id"], -one["score"]))


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

    weights, min_size, device: as in `load_detector`.  data: a folder in COCO's format with the categories that the
    detector learned.  max_dets: detections of an image that count; else as in the run.
    """
    max_dets = max_dets or saved_config(weights).get("max_dets", 100)
    model, categories = load_detector(weights, min_size, device)
    kinds = ("box", "mask")[: 1 + has_masks(model)]
    coco = load(data, split, "mask" in kinds)
    if dict(zip(coco.category_ids, coco.classes)) != categories:
        learned = few([*categories.values()])
        raise ValueError(f"{coco.file} has other categories than {weights}: {few(coco.classes)}, not {learned}")
    results = detect(model, coco, batch_size)
    found: dict[str, Any] = {"images": len(coco.images)}
    for kind in kinds:
        found |= {f"{kind}_{name}": value for name, value in average_precision(coco, results, kind, max_dets).items()}
    return found


def has_masks(model: nn.Module) -> bool:
    return hasattr(model, "roi_heads") and model.roi_heads.has_mask()


def average_precision(
    coco: Coco, results: Sequence[dict[str, Any]], kind: str = "box", max_dets: int = 100
) -> dict[str, Any]:
    """COCO's twelve figures in 0..1 by name, and "per_class": AP by class name.  -1 where there is nothing to find.

    kind: "box" or "mask".  max_dets: detections of an image that count, the best ones.
    """
    shown = [{key: value for key, value in one.items() if kind == "mask" or key != "segmentation"} for one in results]
    if not shown:
        return {**dict.fromkeys(FIGURES, 0.0), "per_class": dict.fromkeys(coco.classes, 0.0)}
    truth = COCO(ground_truth(coco))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(truth, truth.loadRes(shown), KINDS[kind])
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
    """The checked split as a COCO dict, with areas where they are missing."""
    annotations = []
    for entry in coco.images:
        for number, one in enumerate(coco.objects[entry["id"]]):
            area = one.get("area")
            if area is None and one.get("segmentation"):
                area = float(rle.area(encode(one["segmentation"], entry["height"], entry["width"])))
            if area is None:
                area = one["bbox"][2] * one["bbox"][3]
            annotations.append({"iscrowd": 0, "id": number, **one, "area": area})
    categories = [{"id": c, "name": n} for c, n in zip(coco.category_ids, coco.classes)]
    return {"info": {}, "images": coco.images, "annotations": annotations, "categories": categories}
