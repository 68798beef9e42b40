"""From a recipe and a COCO-format folder to a scored detector."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secvit.detection.config import Recipe
from secvit.detection.data import Coco, find, load, splits
from secvit.detection.evaluate import average_precision, detect
from secvit.detection.saved import create
from secvit.detection.task import DetectionTask
from secvit.detection.view import TrainView
from secvit.files import check_writable
from secvit.images import skipped_in
from secvit.images.classes import match_classes
from secvit.images.names import Names
from secvit.models.saved import saved_config
from secvit.train.job import Job
from secvit.train.norms import synchronised
from secvit.train.optim import create_optimizer
from secvit.train.result import Result

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    data: str | Path,
    output: str | Path = "runs/detection",
    resume: str = "auto",
    transform: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Train by a recipe, score on "val" by COCO's AP, and return what result.json says.

    data: a folder in COCO's, YOLO's or Pascal VOC's format, see `secvit.detection.data.load`; scored on "test" where
    there is no "val".  Where no object has a mask, boxes alone are learned.  transform: of torchvision's v2, on
    (image, target), after the flip.  `output` then holds model.safetensors, result.json, config.yaml, log.csv,
    eval.csv and checkpoints/.
    """
    output = Path(output)
    return prepare(recipe, data, output, resume, transform).run(output, resume)


def prepare(
    recipe: Recipe, data: str | Path, output: Path, resume: str = "auto", transform: Callable[..., Any] | None = None
) -> Job:
    """What a recipe and a folder of annotated images make of the loop."""
    check_writable(output)
    masks = recipe.model.detector != "retinanet" and recipe.model.args.get("masks", True)
    scored = "val" if "val" in (names := splits(data)) or "test" not in names else "test"
    find(data, scored, divide=True)
    train_split = load(data, "train", masks, recipe.drop_broken, divide=True)
    val_split = load(data, scored, masks, divide=True)
    check_overlap(train_split, val_split)
    if masks and not (train_split.has_masks and val_split.has_masks):
        lacking = " and ".join(split.name for split in (train_split, val_split) if not split.has_masks)
        logger.warning("no object of %s has a mask: boxes alone are learned (masks: false)", lacking)
        recipe = replace(recipe, model=replace(recipe.model, args={**recipe.model.args, "masks": False}))
        masks = False
    val_split = val_split.with_classes(train_split.classes, train_split.category_ids, str(train_split.file))
    if resume != "never":
        check_classes(output, train_split)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = create(recipe.model, len(train_split.classes))
    if recipe.sync_norm:
        model = synchronised(model, recipe.loop)
    task = DetectionTask(model, recipe.model.norm_eval)
    dataset = TrainView(train_split, masks, recipe.flip, recipe.loop.seed, transform, recipe.background, recipe.crop)

    parameters = sum(p.numel() for p in model.parameters())
    about = {"task": "detection", "data": os.path.abspath(data), "classes": train_split.classes}
    return Job(
        task=task,
        optimizer=create_optimizer(task, recipe.optim),
        dataset=dataset,
        recipe=recipe,
        about={**about, "category_ids": train_split.category_ids},
        report=functools.partial(_report, recipe, data, scored, dataset, val_split, parameters),
        evaluate=functools.partial(_score, val_split, masks, recipe.max_dets),
        best="mask_AP" if masks else "box_AP",
        classes=train_split.classes,
        names=Names.of(str(train_split.path(i)) for i in dataset.index),
    )


def _score(split: Coco, masks: bool, max_dets: int, network: nn.Module) -> dict[str, float]:
    """COCO's figures of boxes and, if there are any, of masks."""
    results = detect(network, split)
    scores: dict[str, float] = {}
    for kind in ("box", "mask")[: 1 + masks]:
        figures = average_precision(split, results, kind, max_dets)
        scores |= {f"{kind}_{name}": value for name, value in figures.items() if name != "per_class"}
    return scores


def _report(
    recipe: Recipe, data: str | Path, scored: str, dataset: TrainView, val_split: Coco, parameters: int, done: Result
) -> dict[str, Any]:
    """What result.json says.  scored: the split that val_split is."""
    return {
        "summary": summary(done.metrics, scored),
        "model": recipe.model.detector,
        "backbone": recipe.model.backbone,
        "data": os.path.abspath(data),
        "split": scored,
        **done.metrics,
        "best": done.best,
        "best_step": done.best_step,
        "images": {"train": len(dataset), "val": len(val_split.images)},
        "parameters": parameters,
        "dropped": dataset.coco.dropped,
        "skipped": skipped_in(dataset),
    }


def check_overlap(train: Coco, held_out: Coco) -> list[str]:
    """Warn of held-out images that are in train as well, compared by path, and return their files."""
    train_files = set(map(os.path.realpath, train.names))
    twice = [name for name in held_out.names if os.path.realpath(name) in train_files]
    if twice:
        logger.warning(
            "%d of %d images of %s are in %s as well, so the score will be too good: %s%s",
            *(len(twice), len(held_out), held_out.name, train.name, ", ".join(twice[:3])),
            ", ..." if len(twice) > 3 else "",
        )
    return twice


def check_classes(output: Path, data: Coco) -> None:
    """A run that is resumed learned the classes of the data, in their order; else a ValueError."""
    run_classes = saved_config(output).get("classes")
    if run_classes:
        place = match_classes(run_classes, data.classes, f"the run {output}", str(data.file), all_of_them=True)
        if place != list(range(len(place))):
            raise ValueError(f"{data.file} has the classes of the run {output} in another order; give another output")


def summary(metrics: Mapping[str, float], split: str = "val") -> str:
    """One line about an evaluation; "" if there was none."""
    if not metrics:
        return ""
    parts = [
        f"{kind} AP {100 * metrics[f'{kind}_AP']:.1f}, AP50 {100 * metrics[f'{kind}_AP50']:.1f}"
        for kind in ("box", "mask")
        if f"{kind}_AP" in metrics
    ]
    return f"{split} " + "; ".join(parts)
