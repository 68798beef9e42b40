"""By which figure of result.json the runs of a task are compared, and which way it is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# of each task, the main figure: the first of these that all runs have
MAIN = {
    "classification": ("top1",),
    "detection": ("mask_AP", "box_AP"),
    "segmentation": ("miou",),
    "simmim": ("loss",),
    "vlm": ("loss",),
}
NAMES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "macro": "mean accuracy of the classes", "miou": "mIoU"}
SHARES = re.compile(r"top1|top5|macro|miou|pixel_accuracy|mean_accuracy|token_accuracy|exact|(box|mask)_A[PR]\w*")
FLOORS = {  # what needs no learning
    ("classification", "top1"): ("majority_floor", "always the most frequent class"),
    ("simmim", "loss"): ("mean_baseline", "the mean visible colour"),
}


@dataclass(frozen=True)
class Figure:
    """A figure of result.json.  A share is in 0..1 there, written in per cent, and better when higher."""

    name: str
    task: str

    @property
    def higher(self) -> bool:
        return bool(SHARES.fullmatch(self.name))

    @property
    def title(self) -> str:
        words = NAMES.get(self.name, self.name.replace("_", " "))
        return f"{words}, %" if self.higher else words

    def of(self, result: Mapping[str, Any]) -> float | None:
        """A run's score; None where there is none (COCO's -1, a NaN)."""
        value = result.get(self.name)
        usable = isinstance(value, int | float) and math.isfinite(value) and not (self.higher and value < 0)
        return float(value) if usable else None  # type: ignore[arg-type]

    def floor(self, result: Mapping[str, Any]) -> tuple[float, str] | None:
        """What needs no learning reaches, and what that is."""
        name, what = FLOORS.get((self.task, self.name), ("", ""))
        return (result[name], what) if name in result else None

    def shown(self, value: float | None, signed: bool = False) -> str:
        if value is None:
            return "none"
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.2f}" if self.higher else f"{value:{sign}.4f}"


def choose(task: str, results: Iterable[Mapping[str, Any]], wanted: str | None = None) -> Figure:
    """The figure `wanted`, or the task's main one; ValueError with the names there are, for one that is not there."""
    results = list(results)
    names = [
        name for name in results[0] if (SHARES.fullmatch(name) or name == "loss") and all(name in r for r in results)
    ]
    if wanted is None:
        wanted = next((name for name in MAIN.get(task, ()) if name in names), None)
        if wanted is None:
            raise ValueError(
                f"the runs of {task} have no {' or '.join(MAIN.get(task, ('score',)))} in result.json: they were not "
                f"scored; they have {', '.join(names) or 'no figure'}"
            )
    if wanted not in names:
        raise ValueError(f"--figure {wanted}: not in result.json of all runs; choose one of {', '.join(names)}")
    return Figure(wanted, task)
