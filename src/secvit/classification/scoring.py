"""Top-1, top-5 and per-class accuracy on a split that was not trained on."""

from __future__ import annotations

import logging
import os
from typing import Any

import timm
import torch
from torch import nn

from secvit.classification.data import EvalView
from secvit.images import Images, load_split
from secvit.models.saved import class_names_of, device_of, load_model
from secvit.train.shares import sum_over_processes

logger = logging.getLogger(__name__)


@torch.no_grad()  # not inference_mode: a network may keep tables for its next training step
def evaluate(
    model: nn.Module,
    dataset: EvalView,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> dict[str, float]:
    """Accuracies in 0..1: top1, top5 (from six classes on), macro (mean over classes), and the
    majority floor (always answering the most frequent class), with the number of images.

    Of many processes each scores a share of the images, and all return the numbers of all of them.
    """
    model = model.to(device).eval()
    classes = len(dataset.images.classes)
    hits, seen, top5 = torch.zeros(classes), torch.zeros(classes), torch.zeros(1)
    for batch in dataset.batches(batch_size, workers):
        target = batch["target"]
        logits = model(batch["image"].to(device)).float().cpu()
        if logits.shape[1] != classes:
            raise ValueError(
                f"the model has {logits.shape[1]} classes, the data {classes}; "
                f"create the model with num_classes={classes}"
            )
        hits += (logits.argmax(1) == target).float() @ torch.eye(classes)[target]
        seen += target.bincount(minlength=classes)
        if classes > 5:
            top5 += (logits.topk(5).indices == target[:, None]).any(1).sum()
    hits, seen, top5 = sum_over_processes(torch.cat([hits, seen, top5])).split([classes, classes, 1])
    count = int(seen.sum())
    result = {"top1": float(hits.sum()) / count}
    if classes > 5:
        result["top5"] = float(top5) / count
    present = seen > 0
    result["macro"] = float((hits[present] / seen[present]).mean())
    result["majority_floor"] = float(seen.max()) / count
    result["images"] = count
    result["skipped"] = len(dataset.skipped)
    return result


def evaluate_checkpoint(
    model: str,
    checkpoint: str | os.PathLike[str] | None,
    data: str | os.PathLike[str],
    split: str = "val",
    *,
    image_size: int | None = None,
    batch_size: int = 256,
    device: str | None = None,
) -> dict[str, Any]:
    """Score a saved model: a .safetensors or .pth file, a run's or a checkpoint's folder.

    Without a checkpoint, the weights that ship under the model's name.  Model arguments, image size
    and crop come from the config.yaml beside the weights if there is one, else from the model's own
    pretrained_cfg.  Classes are compared by name, and by their number where the weights have no names.
    """
    place = device_of(device)
    network = load_model(model, checkpoint)
    images = load_split(str(data), split, class_names_of(network))  # which a test split alone is read by
    images = as_known(images, network, f"the weights {checkpoint or model}", f"the data {data} ({split})")
    view = eval_view(images, network, image_size)
    scores = evaluate(network, view, batch_size, place)
    return {"model": model, "checkpoint": str(checkpoint or "shipped"), "data": str(data), "split": split, **scores}


def as_known(images: Images, model: nn.Module, known_from: str, given_from: str) -> Images:
    """The images with the class numbers of a model, by name; ValueError if they have classes that it lacks."""
    if names := class_names_of(model):
        return images.numbered_as(names, known_from, given_from)
    count = getattr(model, "num_classes", len(images.classes))
    if count != len(images.classes):
        raise ValueError(
            f"{given_from} and {known_from} have other classes: {len(images.classes)} and {count}; give weights that "
            "were trained on these classes"
        )
    logger.warning("%s come without names of classes, so only their number, %d, was compared", known_from, count)
    return images


def eval_view(images: Images, model: nn.Module, size: int | None = None, crop_pct: float | None = None) -> EvalView:
    """The evaluation's view of images, by the model's pretrained_cfg where nothing else is said."""
    cfg = timm.data.resolve_data_config(model=model)
    size = size or int(cfg["input_size"][-1])
    crop = crop_pct if crop_pct is not None else float(cfg["crop_pct"])
    return EvalView(images, size, cfg["mean"], cfg["std"], crop)
