"""From what a task brings to a run's folder: the same beginning, loop and end for all tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secvit.files import write_atomically
from secvit.train.card import write_card
from secvit.train.checkpoint import to_yaml
from secvit.train.engine import Evaluate, fit
from secvit.train.result import Result
from secvit.weights import weight_bytes


def save_weights(done: Result, output: Path) -> None:
    """model.safetensors: the averaged weights where the recipe keeps them."""
    write_atomically(output / "model.safetensors", weight_bytes(done.model.state_dict()))


@dataclass(kw_only=True)
class Job:
    """What a task brings to a run.

    task, optimizer, dataset, evaluate, best, classes, names: as in `fit`.
    recipe: with `loop` and `schedule`.
    about: what config.yaml says of the run beside the recipe, so that `secvit.runs.open` can open it: "task",
        "data", "classes", ...
    report: what result.json says of the result: "summary", scores, counts.
    save: write the trained weights into the run's folder.
    """

    task: nn.Module
    optimizer: torch.optim.Optimizer
    dataset: Any
    recipe: Any
    about: dict[str, Any]
    report: Callable[[Result], Mapping[str, Any]]
    evaluate: Evaluate | None = None
    best: str = ""
    classes: Sequence[str] = ()
    names: Iterable[str] = ()
    save: Callable[[Result, Path], None] = save_weights

    def run(self, output: Path, resume: str = "auto") -> dict[str, Any]:
        """Train; write weights, config.yaml (from the first step on), README.md and result.json -> what that says."""
        config = {"secvit": version("secvit"), **self.about, **asdict(self.recipe)}
        done = fit(
            self.task,
            self.optimizer,
            self.dataset,
            self.recipe.loop,
            self.recipe.schedule,
            output,
            evaluate=self.evaluate,
            best=self.best,
            config=config,
            resume=resume,
            classes=self.classes,
            names=self.names,
        )
        result = {
            **self.report(done),
            "steps": done.step,
            "stopped": done.stopped,
            "nonfinite_steps": done.nonfinite,
            "seconds": round(done.seconds, 1),
            **done.about,
            "recipe": asdict(self.recipe),
        }
        if done.main:
            output.mkdir(parents=True, exist_ok=True)
            write_atomically(output / "config.yaml", to_yaml(config))
            self.save(done, output)
            write_card(output, config, result)
            write_atomically(output / "result.json", json.dumps(result, indent=2).encode())
        return result
