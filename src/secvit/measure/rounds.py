"""The protocol of every speed comparison here: all candidates in one process, round after round.

Each round times every candidate once, starting with another one each time; a ratio is taken within a
round, so that whatever slows the machine down meets both sides of it.  One candidate is there twice:
the ratio of its two times, which is 1 but for noise, says how much the others can be trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

Clock = Callable[[], float]
Seconds = dict[str, list[float]]
NULL = " (again)"
NULL_TOLERANCE = 0.03


def clock_for(threads: int, device: str = "cpu") -> Clock:
    """Processor time of this process for one thread, which other load hardly moves; else wall clock.

    With more threads processor time would count their waiting for each other; of a GPU it is what has come out.
    """
    if torch.device(device).type == "cuda":
        return _gpu_clock
    return time.process_time if threads == 1 else time.perf_counter


def clock_name(threads: int, device: str = "cpu") -> str:
    """What results call the clock of `clock_for`."""
    return "processor time" if clock_for(threads, device) is time.process_time else "wall clock"


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    base: str,
    rounds: int = 7,
    clock: Clock = time.perf_counter,
    min_seconds: float = 0.02,
    title: str | None = None,
) -> Seconds:
    """Seconds a call of each candidate, one entry a round; `base` also appears a second time as the null pair.

    min_seconds: a candidate quicker than this is called several times in a row, as the warm-up round decides.
    title: of the progress bar; None for none.
    """
    if base not in candidates:
        raise ValueError(f"base {base!r} is not timed; choose one of {', '.join(candidates)}")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; choose rounds >= 1")
    calls = {**candidates, base + NULL: candidates[base]}
    names = list(calls)
    with tqdm(total=(rounds + 1) * len(names), desc=title, disable=title is None, leave=False) as bar:
        repeats = {}
        for name in names:
            calls[name]()  # the very first call pays for allocation, tables, algorithm choice
            start = clock()
            calls[name]()
            repeats[name] = max(1, round(min_seconds / max(clock() - start, 1e-6)))
            bar.update()
        repeats[base + NULL] = repeats[base]
        seconds: Seconds = {name: [] for name in names}
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                call, number = calls[name], repeats[name]
                start = clock()
                for _ in range(number):
                    call()
                seconds[name].append((clock() - start) / number)
                bar.update()
    return seconds


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the base: the median over rounds, and the least and greatest of them."""

    median: float
    low: float
    high: float


def speed_ratio(seconds: Seconds, name: str, base: str) -> Ratio:
    """Speed of `name` over speed of `base`, both of the same round."""
    ratios = [b / max(t, 1e-12) for b, t in zip(seconds[base], seconds[name])]
    return Ratio(median(ratios), min(ratios), max(ratios))


def is_quiet(seconds: Seconds, base: str) -> bool:
    """Whether the null pair agrees with 1 well enough for the ratios to be quoted."""
    return abs(speed_ratio(seconds, base + NULL, base).median - 1) <= NULL_TOLERANCE


@dataclass
class Speeds:
    """Speeds of candidates over that of a base.

    null: the ratio of the null pair.  quiet: whether that is near enough to 1 for the others to be quoted.
    seconds: a call's, one entry a round.
    """

    speeds: dict[str, Ratio]
    null: Ratio
    quiet: bool
    seconds: Seconds

    @classmethod
    def of(cls, seconds: Seconds, names: Iterable[str], base: str, again: str) -> Speeds:
        """again: the candidate that was timed twice."""
        ratios = {name: speed_ratio(seconds, name, base) for name in names}
        return cls(ratios, speed_ratio(seconds, again + NULL, again), is_quiet(seconds, again), seconds)

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> Speeds:
        """Of a JSON file's entries."""
        ratios = {name: Ratio(**ratio) for name, ratio in entries["speeds"].items()}
        return cls(ratios, Ratio(**entries["null"]), entries["quiet"], entries["seconds"])
