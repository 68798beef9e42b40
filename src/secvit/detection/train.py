"""From a recipe and a COCO-format folder to a scored detector."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secvit.detection import models
from secvit.detection.config import Model, Recipe
from secvit.detection.data import TrainView, find, load
from secvit.detection.evaluate import average_precision, detect
from secvit.detection.task import DetectionTask
from secvit.train import checkpoint as files
from secvit.train.engine import fit
from secvit.train.optim import create_optimizer
from secvit.train.result import write_result
from secvit.weights import few, read_weights

logger = logging.getLogger(__name__)
BODY = "backbone.body."


def train(
    recipe: Recipe,
    data: str | Path,
    output: str | Path = "runs/detection",
    resume: str = "auto",
    transform: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Train by a recipe, score on "val" by COCO's AP, and return what result.json says.

    data: a folder in COCO's format, see `secvit.detection.data.find`.  transform: of torchvision's v2, on (image,
    target), after the flip.  `output` then holds model.safetensors, result.json, config.yaml, log.csv,
    eval.csv and checkpoints/.
    """
    output = Path(output)
    files.check_writable(output)
    masks = recipe.model.detector != "retinanet" and recipe.model.args.get("masks", True)
    find(data, "val")
    train_split, val_split = (load(data, split, masks, recipe.drop_broken) for split in ("train", "val"))
    if train_split.classes != val_split.classes:
        raise ValueError(f"{train_split.file} and {val_split.file} do not have the same categories")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = create(recipe.model, len(train_split.classes))
    task = DetectionTask(model, recipe.model.norm_eval)
    dataset = TrainView(train_split, masks, recipe.flip, recipe.loop.seed, transform)
    device = "cpu" if recipe.loop.device == "cpu" or not torch.accelerator.is_available() else None

    def score(network: nn.Module) -> dict[str, float]:
        results = detect(network, val_split, device=device or next(network.parameters()).device)
        found: dict[str, float] = {}
        for kind in ("box", "mask")[: 1 + masks]:
            figures = average_precision(val_split, results, kind, recipe.max_dets)
            found |= {f"{kind}_{name}": value for name, value in figures.items() if name != "per_class"}
        return found

    config = {"data": str(data), "classes": train_split.classes, **asdict(recipe)}
    done = fit(
        task,
        create_optimizer(task, recipe.optim),
        dataset,
        recipe.loop,
        recipe.schedule,
        output,
        evaluate=score,
        best="mask_AP" if masks else "box_AP",
        config=config,
        resume=resume,
    )
    own = {
        "summary": summary(done.metrics),
        "model": recipe.model.detector,
        "backbone": recipe.model.backbone,
        "data": str(data),
        "split": "val",
        **done.metrics,
        "best": done.best,
        "best_step": done.best_step,
        "images": {"train": len(dataset), "val": len(val_split.images)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "dropped": [*train_split.dropped, *val_split.dropped],
    }
    return write_result(output, done, config, own, asdict(recipe))


def create(chosen: Model, classes: int) -> nn.Module:
    """The detector at step 0."""
    make = getattr(models, chosen.detector)
    options = {"min_size": chosen.min_size, "max_size": chosen.max_size, **chosen.args}
    model = make(chosen.backbone, classes, backbone_args=dict(chosen.backbone_args), **options)
    if chosen.init:
        new = start_from(model, chosen.init, chosen.backbone)
        logger.info("starting from %s; new: %s", chosen.init, few(new) or "nothing")
    return model


def start_from(model: nn.Module, source: str | Path, backbone: str) -> list[str]:
    """Load a classifier's weights into the backbone, or all of a detector's that fit; names of what stays new.

    Of a detector with other classes the predictors stay new.
    """
    state, wanted = read_weights(source), model.state_dict()
    if not any(key.startswith(BODY) for key in state):
        # timm's feature networks write stages_0 for the stages.0 of a classifier
        state = {BODY + name: value for key, value in state.items() for name in (key, key.replace(".", "_", 1))}
    fitting = {key: state[key] for key in wanted if key in state and state[key].shape == wanted[key].shape}
    new = [key for key in wanted if key not in fitting]
    if missing := [key.removeprefix(BODY) for key in new if key.startswith(BODY)]:
        raise ValueError(f"{source} does not fit {backbone}: it lacks {few(missing)}")
    model.load_state_dict(fitting, strict=False)
    return new


def summary(metrics: Mapping[str, float]) -> str:
    """One line about an evaluation; "" if there was none."""
    if not metrics:
        return ""
    parts = [
        f"{kind} AP {100 * metrics[f'{kind}_AP']:.1f}, AP50 {100 * metrics[f'{kind}_AP50']:.1f}"
        for kind in ("box", "mask")
        if f"{kind}_AP" in metrics
    ]
    return "val " + "; ".join(parts)
