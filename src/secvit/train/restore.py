"""A run goes on from a checkpoint: only where data, recipe and optimizer still fit, and then to the bit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secvit.fields import read_yaml
from secvit.train import checkpoint as checkpoints
from secvit.train.config import changes
from secvit.train.facts import difference
from secvit.train.resume import adapt_optimizer
from secvit.train.run import Run, State, of_model
from secvit.weights import load_weights, misfit

logger = logging.getLogger(__name__)
BEGINS = ("init", "pretrained")  # entries of a recipe that say what a run begins with, which a resumed one does not
ABOUT = {"secvit", "task", "recipe", "input"}  # entries of config.yaml that older versions did not write
LEARNING = {  # entries of a recipe that only further steps can use
    *("optim", "schedule", "augment"),
    *(f"loop.{name}" for name in ("batch_size", "seed", "precision", "clip_grad", "ema_decay", "repeats")),
}


def restore(run: Run, folder: Path, anew: bool) -> None:
    state = checkpoints.load_state(folder)
    _check_same_data(run, folder, state)
    _check_same_recipe(run, folder, finished=state["step"] >= run.total)
    load_weights(run.model, folder / "model.safetensors")
    if run.ema:
        averaged = folder / "ema.safetensors"
        load_weights(run.ema.model, averaged if averaged.exists() else folder / "model.safetensors")
    beside = {k: v for k, v in run.task.state_dict().items() if run.model is not run.task and not of_model(k)}
    if report := misfit(state["task"], beside):
        raise ValueError(f"{folder} does not fit {type(run.task).__name__}: {report}; give another --output")
    run.task.load_state_dict(state["task"], strict=False)
    _restore_optimizer(run, folder, state)
    kept = asdict(State())
    run.state = State(**{key: state.get(key, kept[key]) for key in kept})
    _restore_score(run, folder)
    run.saved = run.state.step
    if anew:
        run.origin = [state.get("run"), run.state.step]
    else:
        run.id, run.origin = state.get("run") or run.id, state.get("origin")
    if run.main:
        logger.info("resuming %s at step %d of %d", folder, run.state.step, run.total)


def _check_same_data(run: Run, folder: Path, state: Mapping[str, Any]) -> None:
    """Otherwise the weights' classes would get other names, and the rest of the run another order."""
    if "data" not in state:
        if run.main:
            logger.warning("%s is of an earlier version: whether its data were the same is not known", folder)
    elif differs := difference(state["data"], run.facts):
        raise ValueError(
            f"{folder} was trained on other data: {differs}. Give another --output to train on the data as they "
            "are now, or give the data that the run began with"
        )


def _check_same_recipe(run: Run, folder: Path, finished: bool) -> None:
    """Say what the recipe changed since; refuse what would be written down and not used."""
    try:
        old = read_yaml(folder / "config.yaml")
        changed = changes(old, {key: value for key, value in run.config.items() if key in old or key not in ABOUT})
    except ValueError as error:
        logger.warning("%s; its recipe is not compared", error)
        return
    if not (run.ema and run.ema.warmup):  # null is what false was in earlier versions
        changed = [change for change in changed if change != "loop.ema_warmup was False, is None"]
    # of a recipe that was given as an object and not by a name
    changed = [change for change in changed if not change.startswith("recipe was , is")]
    for change in changed:
        entry, _, values = change.partition(" was ")
        if entry.rpartition(".")[2] in BEGINS and not values.endswith((" is None", " is False", " is ")):
            raise ValueError(f"{folder}: {change}, but a resumed run keeps its weights; give another --output")
        if finished and (entry.partition(".")[0] in LEARNING or entry in LEARNING):
            raise ValueError(
                f"{folder}: the run is finished, and {change} would not be used; give more --loop.steps or "
                "--loop.epochs, or another --output"
            )
    if changed and run.main:
        logger.warning("resuming with another recipe than before: %s", ", ".join(changed))


def _restore_optimizer(run: Run, folder: Path, state: Mapping[str, Any]) -> None:
    """What the optimizer remembers, under the options of today's recipe."""
    remedy = "give the recipe that the run began with, or another --output"
    try:
        fresh = run.optimizer.state_dict()
        adapted = adapt_optimizer(state["optimizer"], state.get("learns"), run.learns, fresh)
        run.optimizer.load_state_dict(adapted)
        if run.update.scaler.is_enabled() and not state["scaler"]:
            raise ValueError("it has no loss scale, which precision=fp16 needs")
        run.update.scaler.load_state_dict(state["scaler"])
    except ValueError as error:
        raise ValueError(f"{folder} cannot be resumed with this recipe: {error}; {remedy}") from None
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"{folder}: its optimizer's state cannot be read ({type(error).__name__}: {error}); {remedy}"
        ) from error


def _restore_score(run: Run, folder: Path) -> None:
    """What the evaluation of these weights changed, if it came to its end."""
    try:
        score = checkpoints.load_score(folder)
    except ValueError as error:
        logger.warning("%s; scoring step %d again", error, run.state.step)
        return
    if score.get("step") == run.state.step:
        for key in ("evaluated", "best", "best_step", "seconds"):
            setattr(run.state, key, score[key])
