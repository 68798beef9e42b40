"""From a recipe and a folder of pictures and masks to a scored network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from secvit.images import check_overlap, skipped_in
from secvit.models.features import start_from
from secvit.models.saved import has_weights
from secvit.segmentation.config import Model, Recipe
from secvit.segmentation.data import EvalView, TrainView, load, splits
from secvit.segmentation.evaluate import evaluate, report, scores
from secvit.segmentation.models import Segmenter
from secvit.segmentation.predict import create
from secvit.segmentation.task import SegmentationTask
from secvit.train import checkpoint as files
from secvit.train.engine import fit
from secvit.train.optim import create_optimizer
from secvit.train.result import write_result
from secvit.weights import few

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe, data: str | Path, output: str | Path = "runs/segmentation", resume: str = "auto"
) -> dict[str, Any]:
    """Train by a recipe, score on "val" (or "test" if there is none), and return what result.json says.

    data: a folder of pictures and masks, docs/segmentation.md.  `output` then holds model.safetensors,
    result.json with the IoU of each class and the matrix of pixels, config.yaml, log.csv, eval.csv and
    checkpoints/.
    """
    output = Path(output)
    files.check_writable(output)
    held_out = "test" if {"val", "test"} & set(splits(data)) == {"test"} else "val"
    pictures, others = load(data, "train"), load(data, held_out)
    if pictures.classes != others.classes:
        raise ValueError(f"{data}: train has {len(pictures.classes)} classes, {held_out} {len(others.classes)}")
    check_overlap(pictures.images, others.images)
    model = start(recipe, len(pictures.classes))
    on_gpus = recipe.loop.device != "cpu" and torch.cuda.is_available()
    if recipe.sync_norm and on_gpus:
        model = convert_sync_batchnorm(model)
    dataset = TrainView(pictures, recipe.augment, *model.backbone.normalization(), recipe.loop.seed)
    view = EvalView(others)
    latest: dict[str, Tensor] = {}

    def score(network: nn.Module) -> dict[str, float]:
        latest["confusion"] = evaluate(network, view, recipe.look, recipe.loop.workers)  # type: ignore[arg-type]
        return {name: value for name, value in scores(latest["confusion"]).items() if name != "per_class"}

    config = {"data": str(data), "classes": pictures.classes, "palette": pictures.palette, **asdict(recipe)}
    done = fit(
        SegmentationTask(model, recipe.auxiliary),
        create_optimizer(model, recipe.optim),
        dataset,
        recipe.loop,
        recipe.schedule,
        output,
        evaluate=score,
        best="miou",
        config=config,
        resume=resume,
    )
    own = {
        "summary": summary(done.metrics, held_out, len(others)),
        "model": recipe.model.head,
        "backbone": recipe.model.backbone,
        "data": str(data),
        "split": held_out,
        **(report(latest["confusion"], pictures.classes, view) if latest else {}),
        "best_miou": done.best,
        "best_step": done.best_step,
        "images": {"train": len(pictures), held_out: len(others)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "skipped": skipped_in(dataset, view),
    }
    return write_result(output, done, config, own, asdict(recipe))


def start(recipe: Recipe, classes: int) -> Segmenter:
    """The network at step 0: weights that the seed decides, and those that the recipe starts from."""
    chosen: Model = recipe.model
    if chosen.init and chosen.weights == "timm":
        raise ValueError(f'weights="timm" and init={chosen.init}; give one of them')
    pretrained = not chosen.init and (
        chosen.weights == "timm" or (chosen.weights == "shipped" and has_weights(chosen.backbone))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = create(chosen, classes, pretrained)
    if chosen.init:
        new = start_from(model, chosen.init)
        logger.info("starting from %s; new: %s", chosen.init, few(new) or "nothing")
    elif not pretrained:
        logger.info("%s begins with random weights; --model.init gives others", chosen.backbone)
    return model


def summary(metrics: Mapping[str, float], split: str, pictures: int) -> str:
    """One line about an evaluation; "" if there was none."""
    if not metrics:
        return ""
    miou, pixels = (100 * metrics[name] for name in ("miou", "pixel_accuracy"))
    return f"{split} mIoU {miou:.2f} %, pixel accuracy {pixels:.2f} % of {pictures} images"
