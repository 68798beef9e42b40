"""What a run says while it works, where no bar can be drawn: by time, with the time that is left."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

logger = logging.getLogger(__name__)
FIRST, EVERY = 10.0, 30.0  # seconds from the first line to the second, and between later ones

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def busy(doing: str, silent: bool = False) -> Iterator[None]:
    """While entered, a line after ten seconds and then every thirty: what is being done, and for how long."""
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = FIRST
        while not over.wait(wait):
            logger.info("%s: %s so far", doing, duration(time.monotonic() - began))
            wait = EVERY

    teller = threading.Thread(target=tell, daemon=True, name="busy")
    if not silent:
        teller.start()
    try:
        yield
    finally:
        over.set()
        if not silent:
            teller.join()


def reading(load: Callable[P, R]) -> Callable[P, R]:
    """A function that reads the data named by its first argument, and says so while that takes long."""

    @functools.wraps(load)
    def reporting(*args: P.args, **options: P.kwargs) -> R:
        with busy(f"reading {', '.join(str(part) for part in args[:2] if isinstance(part, (str, os.PathLike)))}"):
            return load(*args, **options)

    return reporting


class Progress:
    """Lines about a run of `total` steps, from step `start` on."""

    def __init__(self, start: int, total: int, silent: bool) -> None:
        self.start, self.total, self.silent = start, total, silent
        self.began = self.last = time.monotonic()
        self.warm = 0.0  # seconds of the first step, which compiles and fills caches
        self.lines = 0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def step(self, step: int, numbers: Mapping[str, float], rate: float, nonfinite: int) -> None:
        """After a step: what the task returned, the learning rate, the steps skipped so far."""
        for key, value in numbers.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1
        now = time.monotonic()
        if step == self.start + 1:
            self.warm = now - self.began
        wait = 0.0 if self.lines == 0 else FIRST if self.lines == 1 else EVERY
        if self.silent or (now - self.last < wait and step < self.total):
            return
        means = {key: value / self.counts[key] for key, value in self.sums.items()}
        logger.info(
            "step %d of %d: %s%s",
            step,
            self.total,
            brief({**_chosen(means), "lr": rate, **({"skipped steps": nonfinite} if nonfinite else {})}),
            self._left(step, now),
        )
        self.last, self.lines, self.sums, self.counts = now, self.lines + 1, {}, {}

    def _left(self, step: int, now: float) -> str:
        """Evaluations and saving counted in; the first step counts only while there is no other."""
        done = step - self.start
        seconds = (now - self.began - self.warm) / (done - 1) if done > 1 else self.warm
        left = seconds * (self.total - step)
        return f"; {duration(left)} left" if step < self.total and left > 0 else ""


def duration(seconds: float) -> str:
    """In the unit a reader would use: "40 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def brief(numbers: Mapping[str, float], first: str = "", most: int = 6) -> str:
    """A few numbers for a line, `first` first and those of parts last; -1 stands for no number, and is left out."""
    scored = {key: value for key, value in numbers.items() if value != -1}
    chosen = sorted(scored, key=lambda key: (key != first, key.count("_") > 1))[:most]
    return ", ".join(f"{key} {scored[key]:.4g}" for key in chosen)


def _chosen(means: Mapping[str, float]) -> dict[str, float]:
    """The loss and what is no part of it."""
    return {k: v for k, v in means.items() if k == "loss" or not (k.startswith("loss") or k == "grad_norm")}


def table(scores: Mapping[str, Any]) -> str:
    """A line for each score, and for each class of those by class; lists are left out."""
    lines = []
    for key, value in scores.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name:20} {_figure(part)}" for name, part in value.items())]
        elif not isinstance(value, list):
            lines.append(f"{key:15} {_figure(value)}")
    return "".join(f"{line}\n" for line in lines)


def _figure(value: Any) -> str:
    """-1 is COCO's word for no number."""
    if value is None or value == -1:
        return "does not occur"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
