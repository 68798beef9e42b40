"""From a recipe and a place with images to a pre-trained backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from secvit.files import check_writable, write_atomically
from secvit.images import load_checked, skipped_in
from secvit.images.sources import place_of
from secvit.models.saved import create
from secvit.processes import is_first
from secvit.simmim.data import EvalView, TrainView
from secvit.simmim.recipes import Recipe
from secvit.simmim.scoring import AT_ONCE, draw_reconstructions, evaluate
from secvit.simmim.task import MaskedImageTask
from secvit.train.job import Job, save_weights
from secvit.train.optim import create_optimizer
from secvit.train.result import Result
from secvit.weights import misfit, read_weights, weight_bytes


def train(
    recipe: Recipe,
    data: str | Path = "digits",
    output: str | Path = "runs/simmim",
    resume: str = "auto",
) -> dict[str, Any]:
    """Pre-train by a recipe, measure on the held-out split, and return what result.json says.

    `output` then holds model.safetensors, the backbone without a classifier, reconstructions.png of
    held-out images (drawn anew at each evaluation), result.json, config.yaml, log.csv, eval.csv and
    checkpoints/.  Labels are not used.  The held-out split is "val", or "test" if there is none.
    """
    output = Path(output)
    return prepare(recipe, data, output).run(output, resume)


def prepare(recipe: Recipe, data: str | Path, output: Path, resume: str = "auto") -> Job:
    """What a recipe and a place with images make of the loop."""
    check_writable(output)
    if recipe.loop.ema_decay:
        raise ValueError(
            f"ema_decay={recipe.loop.ema_decay}: averaged weights would be measured with a decoder that is not "
            "averaged; choose ema_decay=0"
        )
    if recipe.loop.sharding == "fsdp":
        raise ValueError("sharding='fsdp': reconstructions are drawn by one process with whole weights; choose ddp")
    train_images, val_images, held_out = load_checked(data)
    place = place_of(data)
    task = create_seeded(recipe)
    cfg = timm.data.resolve_data_config(model=task.model)
    size, mean, std = recipe.model.image_size, cfg["mean"], cfg["std"]
    dataset = TrainView(train_images, recipe.augment, recipe.masking, size, mean, std, recipe.loop.seed)
    view = EvalView(val_images, recipe.masking, size, mean, std)

    def score(model: nn.Module) -> dict[str, float]:
        """The model is the task's own, since no weights are averaged."""
        if is_first():
            draw_reconstructions(task, view, output / "reconstructions.png")
        device = task.mask_token.device
        return evaluate(
            task, view, min(AT_ONCE, recipe.loop.batch_size), device, recipe.loop.workers, recipe.loop.precision
        )

    def report(done: Result) -> dict[str, Any]:
        return {
            "summary": summary(done.metrics, held_out),
            "model": recipe.model.name,
            "data": place,
            "split": held_out,
            **done.metrics,
            "images": {"train": len(train_images), held_out: len(val_images)},
            "parameters": sum(p.numel() for p in task.model.parameters()),
            "skipped": skipped_in(dataset, view),
        }

    return Job(
        task=task,
        optimizer=create_optimizer(task, recipe.optim),
        dataset=dataset,
        recipe=recipe,
        about={"task": "simmim", "data": place, "input": {"size": size, "mean": mean, "std": std}},
        report=report,
        evaluate=score,
        names=train_images.names,
        save=lambda done, output: save(done, task, output),
    )


DECODER = "decoder.safetensors"


def save(done: Result, task: MaskedImageTask, output: Path) -> None:
    """The backbone, and beside it what the task has more, so that a run can be measured and drawn again."""
    save_weights(done, output)
    beside = {key: value for key, value in task.state_dict().items() if not key.startswith("model.")}
    write_atomically(output / DECODER, weight_bytes(beside))


def load_task(run: str | os.PathLike[str], model: nn.Module) -> MaskedImageTask:
    """The task of a finished run around its backbone."""
    task = MaskedImageTask(model)
    beside = read_weights(Path(run) / DECODER)
    if report := misfit(beside, {k: v for k, v in task.state_dict().items() if not k.startswith("model.")}):
        raise ValueError(f"{run}: {DECODER} does not fit the network: {report}")
    task.load_state_dict(beside, strict=False)
    return task.eval()


def create_seeded(recipe: Recipe) -> MaskedImageTask:
    """The task around a network without classifier, with the initial weights that the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        return MaskedImageTask(create(recipe.model.name, 0, recipe.model.args))


def summary(metrics: Mapping[str, float], split: str) -> str:
    """One line about an evaluation: the loss beside its baseline; "" if there was none."""
    if not metrics:
        return ""
    return (
        f"{split} L1 {metrics['loss']:.4f} on hidden pixels of {metrics['images']} images "
        f"(mean visible colour {metrics['mean_baseline']:.4f})"
    )
