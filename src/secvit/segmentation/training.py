"""From a recipe and a folder of images and masks to a scored network."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secvit.fields import Entry, abridged
from secvit.files import check_writable
from secvit.images import check_overlap, skipped_in
from secvit.images.classes import match_classes
from secvit.models.features import start_from
from secvit.models.saved import has_weights, saved_config
from secvit.processes import join
from secvit.segmentation.config import Model, Recipe
from secvit.segmentation.data import EvalView, TrainView, load, splits
from secvit.segmentation.models import Segmenter
from secvit.segmentation.prediction import class_list, create
from secvit.segmentation.scoring import evaluate, report, scores
from secvit.segmentation.task import SegmentationTask
from secvit.train.checkpoint import latest
from secvit.train.folder import start_of
from secvit.train.job import Job
from secvit.train.norms import synchronised
from secvit.train.optim import create_optimizer
from secvit.train.result import Result
from secvit.weights import read_weights

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe, data: str | Path, output: str | Path = "runs/segmentation", resume: str = "auto"
) -> dict[str, Any]:
    """Train by a recipe, score on "val" (or "test" if there is none), and return what result.json says.

    data: a folder of images and masks, docs/segmentation.md.  `output` then holds model.safetensors,
    result.json with the IoU of each class and the matrix of pixels, config.yaml, log.csv, eval.csv and
    checkpoints/.
    """
    output = Path(output)
    return prepare(recipe, data, output, resume).run(output, resume)


def prepare(recipe: Recipe, data: str | Path, output: Path, resume: str = "auto") -> Job:
    """What a recipe and a folder of images and masks make of the loop."""
    check_writable(output)
    join(cpu=recipe.loop.device == "cpu")  # of many processes, each reads a share of the masks
    held_out = "test" if {"val", "test"} & set(splits(data)) == {"test"} else "val"
    train_data = load(data, "train")
    if last := latest(output) if resume == "auto" else None if resume == "never" else Path(resume):
        train_data = train_data.in_order_of(
            saved_classes(last) or train_data.classes, f"the run {last}, which is resumed,"
        )
    others = load(data, held_out, train_data)
    check_overlap(train_data.images, others.images)
    model = initial_model(recipe, len(train_data.classes), train_data.classes)
    if recipe.sync_norm:
        model = synchronised(model, recipe.loop)  # type: ignore[assignment]
    mean, std = model.backbone.normalization()
    dataset = TrainView(train_data, recipe.augment, mean, std, recipe.loop.seed)
    view = EvalView(others)
    newest: dict[str, Tensor] = {}

    def score(network: nn.Module) -> dict[str, float]:
        newest["confusion"] = evaluate(network, view, recipe.look, recipe.loop.workers)  # type: ignore[arg-type]
        return {name: value for name, value in scores(newest["confusion"]).items() if name != "per_class"}

    def result(done: Result) -> dict[str, Any]:
        return {
            "summary": summary(done.metrics, held_out, len(others)),
            "model": recipe.model.head,
            "backbone": recipe.model.backbone,
            "data": os.path.abspath(data),
            "split": held_out,
            **(report(newest["confusion"], train_data.classes, view) if newest else {}),
            "best_miou": done.best,
            "best_step": done.best_step,
            "images": {"train": len(train_data), held_out: len(others)},
            "parameters": sum(p.numel() for p in model.parameters()),
            "skipped": skipped_in(dataset, view),
        }

    labels = train_data.labels
    about = {"classes": labels.names, "values": labels.values, "palette": labels.palette}
    return Job(
        task=SegmentationTask(model, recipe.auxiliary),
        optimizer=create_optimizer(model, recipe.optim),
        dataset=dataset,
        recipe=recipe,
        about={"task": "segmentation", "data": os.path.abspath(data), **about, "input": {"mean": mean, "std": std}},
        report=result,
        evaluate=score,
        best="miou",
        classes=train_data.classes,
        names=train_data.images.names,
    )


def initial_model(recipe: Recipe, classes: int, names: Sequence[str] = ()) -> Segmenter:
    """The network at step 0: weights that the seed decides, and those that the recipe starts from.

    names: of the classes; predictors of a run that the recipe starts from are taken for those of the same name.
    """
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
        fresh = {key: value.clone() for key, value in model.state_dict().items() if key.startswith(PREDICTORS)}
        source = start_of(chosen.init)
        new = start_from(model, source)
        if names and (saved_names := saved_classes(source)):
            new += match_predictors(model, fresh, source, saved_names, names)
        logger.info("starting from %s; new: %s", source, abridged(new) or "nothing")
    elif not pretrained:
        logger.info("%s begins with random weights; --model.init gives others", chosen.backbone)
    return model


PREDICTORS = ("head.classify.", "auxiliary.1.")  # tensors with a row for each class


def match_predictors(
    model: Segmenter, fresh: Mapping[str, Tensor], source: str, saved_names: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Give each class the row that predicts the class of its name in a saved run, else its fresh one.

    Returns the classes that have none, for a log.
    """
    own = [i for i, name in enumerate(names) if name in set(saved_names)]
    theirs = match_classes(saved_names, [names[i] for i in own], source, "the data")
    saved = read_weights(source)
    state = {key: value.clone() for key, value in fresh.items()}
    for key, value in state.items():
        if key in saved and saved[key].shape == (len(saved_names), *value.shape[1:]):
            value[own] = saved[key][theirs].to(value)
    model.load_state_dict(state, strict=False)
    return [f"class {name!r}" for name in names if name not in set(saved_names)]


def saved_classes(weights: str | Path) -> list[str] | None:
    """The classes of the segmentation run that weights belong to; None if they belong to none."""
    config = saved_config(weights)
    if not isinstance(config.get("model"), dict) or "head" not in config["model"]:
        return None
    return Entry(f"{weights}: its config.yaml", config).get("classes", class_list)


def summary(metrics: Mapping[str, float], split: str, images: int) -> str:
    """One line about an evaluation; "" if there was none."""
    if not metrics:
        return ""
    miou, pixels = (100 * metrics[name] for name in ("miou", "pixel_accuracy"))
    return f"{split} mIoU {miou:.2f} %, pixel accuracy {pixels:.2f} % of {images} images"
