"""mIoU, per-class IoU, pixel and mean accuracy of a split, from one matrix of counted pixels."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secvit.processes import sum_over_processes
from secvit.segmentation.config import Look
from secvit.segmentation.data import EvalView, load
from secvit.segmentation.models import Segmenter
from secvit.segmentation.prediction import label_picture, load_trained


def confusion(target: np.ndarray, labels: np.ndarray, classes: int) -> Tensor:
    """Pixels of each class (rows) that were given each label (columns), (classes, classes) whole numbers.

    target: classes (H, W), of which those not in 0..classes-1 are not counted.
    """
    counted = target < classes
    pairs = target[counted].astype(np.int64) * classes + labels[counted]
    return torch.from_numpy(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))


def scores(matrix: Tensor) -> dict[str, Any]:
    """miou, pixel_accuracy and mean_accuracy in 0..1, and per_class: IoU of each class in order.

    A class that neither occurs nor is predicted has no IoU (NaN) and is left out of the mean; one that occurs
    nowhere is left out of the mean accuracy.  Where nothing is left, a score is NaN.
    """
    counts = matrix.double()
    hits, true, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    iou = hits / (true + predicted - hits)
    return {
        "miou": float(iou.nanmean()),
        "pixel_accuracy": float(hits.sum() / counts.sum()),
        "mean_accuracy": float((hits / true).nanmean()),
        "per_class": iou.tolist(),
    }


def evaluate(model: Segmenter, view: EvalView, look: Look | None = None, workers: int = 0) -> Tensor:
    """The matrix of a split's pixels; of many processes each looks at a share, and all return that of all."""
    classes = len(view.split.classes)
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    model.eval()
    for batch in view.batches(1, workers):
        for image, target in zip(batch["image"], batch["target"], strict=True):
            matrix += confusion(target, label_picture(model, image, look), classes)
    return sum_over_processes(matrix).long()


def evaluate_checkpoint(
    weights: str | os.PathLike[str], data: str | os.PathLike[str], split: str = "val", device: str | None = None,
    **look: Any,
) -> dict[str, Any]:  # fmt: skip
    """Score what `secvit train segmentation...` left on a split.

    data: a folder with the run's classes, which are compared by name.  look: other than the run's own,
    {"scales": (0.75, 1.0, 1.25), "flip": True}.  "confusion" in the result is the matrix of pixels, a list of rows.
    """
    trained = load_trained(weights, device, **look)
    return score(trained.model, trained.classes, trained.look, data, split, f"the run {weights}")


def score(
    model: Segmenter, classes: tuple[str, ...], look: Look, data: str | os.PathLike[str], split: str,
    expected_name: str, workers: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`evaluate_checkpoint` of a loaded network.  expected_name: the run."""
    view = EvalView(load(os.fspath(data), split).in_order_of(classes, expected_name))
    return report(evaluate(model, view, look, workers), classes, view)


def report(matrix: Tensor, classes: tuple[str, ...], view: EvalView) -> dict[str, Any]:
    """The scores with classes by name, None for NaN, the matrix, and how many images were counted."""
    figures = scores(matrix)
    per_class = {name: None if math.isnan(v) else v for name, v in zip(classes, figures.pop("per_class"), strict=True)}
    counted = {"images": len(view) - len(view.skipped), "skipped": len(view.skipped)}
    return {**figures, **counted, "per_class": per_class, "confusion": matrix.tolist()}
