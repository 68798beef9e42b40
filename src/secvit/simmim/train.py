"""From a recipe and a place with images to a pre-trained backbone."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import PartialState
from torch import nn

from secvit.images import check_splits, load_split, splits
from secvit.models.saved import create
from secvit.simmim.data import EvalView, TrainView
from secvit.simmim.evaluate import draw_reconstructions, evaluate
from secvit.simmim.recipes import Recipe
from secvit.simmim.task import MaskedImageTask
from secvit.train import checkpoint as files
from secvit.train.engine import fit
from secvit.train.optim import create_optimizer
from secvit.train.provenance import provenance
from secvit.weights import weight_bytes, write_atomically

logger = logging.getLogger(__name__)


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
    output, began = Path(output), time.time()
    about = provenance()  # of the code that runs, not of later edits
    files.check_writable(output)
    if recipe.loop.ema_decay:
        raise ValueError(
            f"ema_decay={recipe.loop.ema_decay}: averaged weights would be measured with a decoder that is not "
            "averaged; choose ema_decay=0"
        )
    if recipe.loop.sharding == "fsdp":
        raise ValueError("sharding='fsdp': reconstructions are drawn by one process with whole weights; choose ddp")
    held_out = "val" if "val" in splits(data) else "test"
    train_images, val_images = load_split(data, "train"), load_split(data, held_out)
    check_splits(train_images, val_images)
    task = create_seeded(recipe)
    cfg = timm.data.resolve_data_config(model=task.model)
    size, mean, std = recipe.model.image_size, cfg["mean"], cfg["std"]
    dataset = TrainView(train_images, recipe.augment, recipe.masking, size, mean, std, recipe.loop.seed)
    view = EvalView(val_images, recipe.masking, size, mean, std)

    def score(model: nn.Module) -> dict[str, float]:
        """The model is the task's own, since no weights are averaged."""
        if PartialState().is_main_process:
            draw_reconstructions(task, view, output / "reconstructions.png")
        return evaluate(task, view, recipe.loop.batch_size, task.mask_token.device, recipe.loop.workers)

    config = {"data": str(data), **asdict(recipe)}
    done = fit(
        task,
        create_optimizer(task, recipe.optim),
        dataset,
        recipe.loop,
        recipe.schedule,
        output,
        evaluate=score,
        config=config,
        resume=resume,
    )
    dataset.gather_broken()
    skipped = [*dataset.skipped, *view.skipped]
    if skipped:
        logger.warning("%d broken images were skipped: %s", len(skipped), ", ".join(skipped[:5]))
    result = {
        "model": recipe.model.name,
        "data": str(data),
        "split": held_out,
        **done.metrics,
        "steps": done.step,
        "stopped": done.stopped,
        "images": {"train": len(train_images), held_out: len(val_images)},
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "skipped": skipped,
        "nonfinite_steps": done.nonfinite,
        "seconds": round(done.seconds, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        **about,
        "recipe": asdict(recipe),
    }
    result["summary"] = summary(result)
    if done.main:
        write_atomically(output / "model.safetensors", weight_bytes(done.model.state_dict()))
        write_atomically(output / "config.yaml", files.to_yaml(config))
        write_atomically(output / "result.json", json.dumps(result, indent=2).encode())
    return result


def create_seeded(recipe: Recipe) -> MaskedImageTask:
    """The task around a network without classifier, with the initial weights that the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        return MaskedImageTask(create(recipe.model.name, 0, recipe.model.args))


def summary(result: dict[str, Any]) -> str:
    """One line for a reader: the loss beside its baseline."""
    if "loss" not in result:  # stopped before the first evaluation
        return f"stopped at step {result['steps']}"
    return (
        f"{result['split']} L1 {result['loss']:.4f} on hidden pixels of {result['images'][result['split']]} images "
        f"(mean visible colour {result['mean_baseline']:.4f})"
    )
