"""From a recipe and a COCO-format folder to a scored detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secvit.detection.config import Recipe
from secvit.detection.data import TrainView, find, load
from secvit.detection.evaluate import average_precision, detect
from secvit.detection.saved import create
from secvit.detection.task import DetectionTask
from secvit.train import checkpoint as files
from secvit.train.engine import fit
from secvit.train.optim import create_optimizer
from secvit.train.result import write_result


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
    if (train_split.classes, train_split.category_ids) != (val_split.classes, val_split.category_ids):
        raise ValueError(f"{train_split.file} and {val_split.file} do not have the same categories")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model = create(recipe.model, len(train_split.classes))
    task = DetectionTask(model, recipe.model.norm_eval)
    dataset = TrainView(train_split, masks, recipe.flip, recipe.loop.seed, transform)

    def score(network: nn.Module) -> dict[str, float]:
        results = detect(network, val_split)
        found: dict[str, float] = {}
        for kind in ("box", "mask")[: 1 + masks]:
            figures = average_precision(val_split, results, kind, recipe.max_dets)
            found |= {f"{kind}_{name}": value for name, value in figures.items() if name != "per_class"}
        return found

    about = {"classes": train_split.classes, "category_ids": train_split.category_ids}
    config = {"data": str(data), **about, **asdict(recipe)}
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
