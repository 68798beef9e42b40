"""One front door to what was trained, whatever its task: `secvit.runs.open(RUN)`, and `train`, which makes runs.

A run is the folder of `secvit train`, one of its checkpoints, or the name of weights that come along
(secvit_nano.cifar10).  Its config.yaml says what it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import timm
from torch import nn

from secvit import recipes
from secvit.models.convert import check_name
from secvit.models.saved import check_one_name, config_beside, has_weights, load_model, saved_config
from secvit.registry import Registry
from secvit.runs.pushing import HUB, push
from secvit.runs.trained import Made, Trained
from secvit.train.folder import weights_in
from secvit.train.job import Job

__all__ = ["Made", "Trained", "kind_of", "network", "open", "prepare", "push", "register_task", "task_of", "train"]

OURS = {
    "classification": "secvit.runs.classifier:Classifier",
    "detection": "secvit.runs.detector:Detector",
    "segmentation": "secvit.runs.segmenter:Segmenter",
    "simmim": "secvit.runs.masked:Masked",
    "vlm": "secvit.runs.llava:Llava",
    "answers": "secvit.runs.llava:Answers",
}
KINDS: Registry[Any] = Registry("task", "secvit.runs.register_task", OURS)
PREPARED: dict[str, Callable[..., Job]] = {}
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".jsonl")


def open(
    run: str | os.PathLike[str], *, model: str | None = None, device: str | None = None, **options: Any
) -> Trained:
    """What was trained, ready to predict, evaluate and be drawn.

    run: the folder of a run or of one of its checkpoints, a weight file, or a name of weights that come along.
    model: name of the network, for a weight file without a config.yaml beside it.  Of a run it may not say another.
    device: cpu, cuda, ...; the GPU if there is one.
    options: how it looks at images, other than in training: size=..., window=...; see the task's class.
    """
    where = _weights(run)
    kind: Any = _kind(_task(where, model))  # each with options of its own
    return kind(where, model=model, device=device, **options)


def network(run: str | os.PathLike[str], model: str | None = None) -> nn.Module:
    """The network of a run, or the backbone in it; of a name without weights, one with random weights of seed 0."""
    if not Path(run).exists() and timm.is_model(str(run)) and not has_weights(str(run)):
        check_one_name(str(run), model)
        return load_model(str(run))
    return open(run, model=model).clustered()


def task_of(run: str | os.PathLike[str], model: str | None = None) -> str:
    """The task of a run: classification, detection, segmentation, simmim or vlm; a ValueError for what is no run."""
    return _task(_weights(run, quiet=True), model)


def kind_of(run: str | os.PathLike[str], model: str | None = None) -> type[Trained]:
    """The class that `open` makes of a run."""
    return _kind(task_of(run, model))


def is_run(word: str) -> bool:
    """Whether a word of a command line names weights, not a photo or a folder of photos."""
    path = Path(word)
    if path.is_dir():
        return any(
            (path / name).exists() for name in ("config.yaml", "checkpoints", "model.safetensors", "config.json")
        )
    if path.suffix.lower() in WEIGHTS or path.exists():
        return path.suffix.lower() in WEIGHTS
    return timm.is_model(word)


def train(
    recipe: Any,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    resume: str = "auto",
    name: str = "",
) -> dict[str, Any]:
    """Train by a recipe of any task, and return what result.json says.

    recipe: a name, "classification.folder", or what such a function returned, changed or not.
    data, output: what the task's own `train` takes.  resume: "auto", "never", or a checkpoint.
    name: of a changed recipe, for config.yaml.
    """
    if isinstance(recipe, str):
        recipe, name = recipes.find(recipe)(), recipe
    return prepare(recipe, data, output, resume, name).run(Path(output), resume)


def prepare(
    recipe: Any, data: str | os.PathLike[str], output: str | os.PathLike[str], resume: str = "auto", name: str = ""
) -> Job:
    """What `train` would run: data and network are there and fit, and nothing is trained yet."""
    task = recipes.task_of(recipe)
    work = PREPARED[task] if task in PREPARED else import_module(f"secvit.{task}.training").prepare
    job = work(recipe, str(data), Path(output), resume)
    job.about = {"recipe": name, **job.about}
    return job


def register_task(name: str, recipe: type[Any], prepare: Callable[..., Job], opened: type[Trained]) -> None:
    """A task of your own beside classification, detection, ..., in this process (docs/extending.md).

    recipe: the dataclass of its recipes, with at least `loop: Loop` and `schedule: Schedule`; "loop.steps" and all
        its other entries become options of `secvit train`.
    prepare: of (recipe, data, output, resume); what it trains, as a `secvit.train.Job` whose `about` says "task": name.
    opened: what `secvit.runs.open` makes of its runs, derived from `secvit.runs.Trained`.
    """
    if not (isinstance(recipe, type) and is_dataclass(recipe)):
        raise ValueError(f"register_task({name!r}): the recipe is {recipe!r}; give a dataclass")
    if missing := [entry for entry in ("loop", "schedule") if entry not in recipe.__dataclass_fields__]:
        raise ValueError(f"register_task({name!r}): {recipe.__name__} has no {' and no '.join(missing)}; add it")
    if not (isinstance(opened, type) and issubclass(opened, Trained)):
        raise ValueError(f"register_task({name!r}): runs open as {opened!r}; give a class derived from Trained")
    KINDS.add(name, opened)
    recipes.TASKS.add(name, recipe)
    PREPARED[name] = prepare


def options_of(task: str, method: str) -> set[str]:
    """What a task's method, and opening its runs, take as options; nothing where a package for it is missing."""
    try:
        kind = _kind(task)
    except ImportError:
        return set()
    return {*signature(kind.__init__).parameters, *signature(getattr(kind, method)).parameters}


def _weights(run: str | os.PathLike[str], quiet: bool = False) -> Path | str:
    """A path, or the newest checkpoint of a run that did not come to its end; names as they are."""
    path = Path(run)
    if not path.exists():
        if HUB.fullmatch(str(run)) and not path.parent.is_dir():
            return str(run)
        try:
            check_name(str(run))
        except ValueError as error:
            raise ValueError(f"{run}: no such folder or file, and {error}") from None
        return str(run)
    return weights_in(path, quiet) if path.is_dir() else path


def _task(where: Path | str, model: str | None) -> str:
    if isinstance(where, str):
        if HUB.fullmatch(where):
            return "vlm"
        if not has_weights(where):
            raise ValueError(f"no weights come with {where}; give a run, or secvit_nano.clothing10")
        return "classification"
    if where.suffix == ".jsonl":
        return "answers"
    config = saved_config(where)
    if (task := config.get("task")) is not None:
        if task not in KINDS:
            raise ValueError(
                f"{config_beside(where)}: task is {task!r}, expected one of {', '.join(KINDS)}; one of your own has to "
                "be added first, by secvit.runs.register_task"
            )
        return str(task)
    if not config and where.is_dir() and (where / "config.json").exists():
        return "vlm"
    return _untold_task(config)


def _untold_task(config: Mapping[str, Any]) -> str:
    """The task of a run of a version that did not write it."""
    model = config.get("model") or {}
    for entry, task in (("detector", "detection"), ("head", "segmentation"), ("connector", "vlm")):
        if entry in model:
            return task
    return "simmim" if "masking" in config else "classification"


def _kind(task: str) -> type[Trained]:
    kind: Any = KINDS.named(task)
    if not isinstance(kind, str):
        return kind
    module, _, name = kind.partition(":")
    return getattr(import_module(module), name)
