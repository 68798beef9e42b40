"""Whether two variants differ, from their scores with the same seeds: Student's t over the paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

FEWEST = 3  # seeds below which no claim is made: of two, the interval is 13 times as wide as their spread
CONFIDENCE = 0.95
CLOSE = "too close to tell apart"


@dataclass(frozen=True)
class Difference:
    """A variant's scores minus another's, by seed.

    mean: of the differences.  low, high: the interval of the mean over all seeds there could be; None without a claim.
    verdict: "better", "worse", "too close to tell apart", or why no claim is made.
    """

    mean: float
    low: float | None
    high: float | None
    verdict: str


def difference(differences: Sequence[float], higher: bool, comparisons: int = 1) -> Difference:
    """What paired differences tell.

    higher: whether a higher score is the better one.
    comparisons: how many are made with the same data; the intervals of all of them hold together with 95 %
        (Bonferroni: each has an error of 5 % divided by their number).
    """
    mean, count = fmean(differences), len(differences)
    if count < FEWEST:
        return Difference(mean, None, None, f"no claim: {count} seed{'s' * (count > 1)}, at least {FEWEST} are needed")
    spread = stdev(differences)
    if spread <= 1e-12 * max(map(abs, differences)):
        same = f"no claim: the same difference with all {count} seeds, so that its spread is not known"
        return Difference(mean, None, None, same if mean else CLOSE)
    half = quantile(1 - (1 - CONFIDENCE) / comparisons, count - 1) * spread / math.sqrt(count)
    if abs(mean) <= half:
        return Difference(mean, mean - half, mean + half, CLOSE)
    return Difference(mean, mean - half, mean + half, "better" if (mean > 0) == higher else "worse")


def quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| < t) = confidence, for Student's T of so many degrees of freedom (a whole number)."""
    low, high = 0.0, 1.0
    while coverage(high, freedom) < confidence:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if coverage(middle, freedom) < confidence else (low, middle)
    return high


def coverage(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's T: the finite series for whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 4)."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
