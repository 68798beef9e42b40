"""Top-1, top-5 and per-class accuracy on a split that was not trained on."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from secvit.classification.data import EvalView
from secvit.images import Images, Transform, load_split, middle
from secvit.models.saved import class_names_of, device_of, load_model, name_of
from secvit.precision import on_gpu_autocast
from secvit.processes import of_all_processes
from secvit.train.folder import start_of

logger = logging.getLogger(__name__)
AT_ONCE = 256  # images that a process scores at once, whatever the batch of a training step is


@dataclass(frozen=True)
class Answers:
    """What a network says of each image of a split.

    index, target, predicted (n): numbers of images and classes.  share, true_share (n): probabilities of the
    predicted and of the true class.  first_five (n): whether the true class is among the five likeliest.
    """

    index: Tensor
    target: Tensor
    predicted: Tensor
    share: Tensor
    true_share: Tensor
    first_five: Tensor

    def confusion(self, classes: int) -> Tensor:
        """Images of each class (rows) that were taken for each class (columns), (classes, classes)."""
        pairs = self.target * classes + self.predicted
        return pairs.bincount(minlength=classes**2).reshape(classes, classes)

    def most_wrong(self, count: int) -> list[int]:
        """Rows of the wrong answers, the surest first."""
        wrong = (self.predicted != self.target).nonzero().flatten()
        order = (self.share - self.true_share)[wrong].argsort(descending=True, stable=True)
        return wrong[order[:count]].tolist()


def evaluate(
    model: nn.Module,
    dataset: EvalView,
    batch_size: int = AT_ONCE,
    device: torch.device | str = "cpu",
    workers: int = 0,
    precision: str = "no",
) -> dict[str, float]:
    """Accuracies in 0..1: top1, top5 (from six classes on), macro (mean over classes), and the
    majority floor (always answering the most frequent class), with the number of images.

    precision: on a GPU, "bf16" and "fp16" look under autocast, as `Loop.precision` trains.
    Of many processes each scores a share of the images, and all return the numbers of all of them.
    """
    return figures(answers(model, dataset, batch_size, device, workers, precision), dataset)


@torch.no_grad()  # not inference_mode: a network may keep tables for its next training step
def answers(
    model: nn.Module, dataset: EvalView, batch_size: int = AT_ONCE, device: torch.device | str = "cpu",
    workers: int = 0, precision: str = "no",
) -> Answers:  # fmt: skip
    """What a model says of each image; of many processes each looks at a share, and all return what all said."""
    model = model.to(device).eval()
    classes = len(dataset.images.classes)
    rows: list[Tensor] = []
    for batch in dataset.batches(batch_size, workers):
        target = batch["target"]
        with on_gpu_autocast(device, precision):
            logits = model(batch["image"].to(device)).float().cpu()
        if logits.shape[1] != classes:
            raise ValueError(
                f"the model has {logits.shape[1]} classes, the data {classes}; "
                f"create the model with num_classes={classes}"
            )
        predicted, shares = logits.argmax(1), logits.double().softmax(1)
        five = (logits.topk(min(5, classes)).indices == target[:, None]).any(1)
        probabilities = [
            share.gather(1, which[:, None])[:, 0] for share, which in ((shares, predicted), (shares, target))
        ]
        columns = (batch["index"], target, predicted, *probabilities, five)
        rows.append(torch.stack([column.double() for column in columns], 1))
    gathered = of_all_processes([torch.cat(rows)] if rows else [])
    table = torch.cat(gathered) if gathered else torch.empty(0, 6, dtype=torch.float64)
    index, target, predicted, share, true_share, five = table[table[:, 0].argsort()].T
    return Answers(index.long(), target.long(), predicted.long(), share, true_share, five.bool())


def figures(outcome: Answers, dataset: EvalView) -> dict[str, float]:
    """The accuracies of `evaluate`."""
    classes, count = len(dataset.images.classes), len(outcome.index)
    right = outcome.predicted == outcome.target
    result = {"top1": float(right.double().mean())}
    if classes > 5:
        result["top5"] = float(outcome.first_five.double().mean())
    per_class = [value for value in accuracy_by_class(outcome, classes) if value is not None]
    result["macro"] = sum(per_class) / len(per_class)
    result["majority_floor"] = float(outcome.target.bincount().max()) / count
    result["images"] = count
    result["skipped"] = len(dataset.skipped)
    return result


def accuracy_by_class(outcome: Answers, classes: int) -> list[float | None]:
    """Share of each class's images that were taken for it; None where there is none."""
    counts = outcome.target.bincount(minlength=classes)
    hits = outcome.target[outcome.predicted == outcome.target].bincount(minlength=classes)
    return [hit / count if count else None for hit, count in zip(hits.tolist(), counts.tolist(), strict=True)]


def evaluate_checkpoint(
    model: str | None,
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
    network = load_model(model, None if checkpoint is None else start_of(checkpoint))
    view = split_view(network, data, split, f"the weights {checkpoint or model}", image_size)
    scores = evaluate(network, view, batch_size, place)
    about = {"model": name_of(checkpoint, model), "checkpoint": str(checkpoint or "shipped")}
    return {**about, "data": str(data), "split": split, **scores}


def split_view(
    network: nn.Module, data: str | os.PathLike[str], split: str, expected_name: str, size: int | None = None
) -> EvalView:
    """A split as a trained network sees it, with the class numbers of the network."""
    images = load_split(str(data), split, class_names_of(network))  # which a test split alone is read by
    images = numbered_as_model(images, network, expected_name, f"the data {data} ({split})")
    return eval_view(images, network, size)


def numbered_as_model(images: Images, model: nn.Module, expected_name: str, actual_name: str) -> Images:
    """The images with the class numbers of a model, by name; ValueError if they have classes that it lacks."""
    if names := class_names_of(model):
        return images.numbered_as(names, expected_name, actual_name)
    count = getattr(model, "num_classes", len(images.classes))
    if count != len(images.classes):
        raise ValueError(
            f"{actual_name} and {expected_name} have other classes: {len(images.classes)} and {count}; give weights "
            "that were trained on these classes"
        )
    logger.warning("%s come without names of classes, so only their number, %d, was compared", expected_name, count)
    return images


def eval_view(images: Images, model: nn.Module, size: int | None = None, crop_pct: float | None = None) -> EvalView:
    """The evaluation's view of images, by the model's pretrained_cfg where nothing else is said."""
    return EvalView(images, *seen_by(model, size, crop_pct))


def view_of(model: nn.Module, size: int | None = None) -> Transform:
    """How evaluation sees an image."""
    return middle(*seen_by(model, size))


def seen_by(model: nn.Module, size: int | None = None, crop_pct: float | None = None) -> tuple[int, Any, Any, float]:
    """Size in px, mean, deviation and the part that is kept, of a model's pretrained_cfg where not given."""
    cfg = timm.data.resolve_data_config(model=model)
    crop = float(cfg["crop_pct"]) if crop_pct is None else crop_pct
    return int(cfg["input_size"][-1]) if size is None else size, cfg["mean"], cfg["std"], crop
