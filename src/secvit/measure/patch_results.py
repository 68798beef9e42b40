"""What `secvit patch-report` measures, as it stands in its JSON file: a number of each size, mode and network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from secvit.measure.macs import Macs
from secvit.measure.rounds import Speeds

BASES = ("original", "patched")


@dataclass
class Agreement:
    """How near features are to the original's: cosines, a number a photo.

    clusters: M.  tokens: the mean over the patch tokens of a photo.  pooled: of [cls], or of what the model pools.
    """

    clusters: int
    tokens: list[float]
    pooled: list[float]

    @property
    def means(self) -> dict[str, float]:
        return {"tokens": fmean(self.tokens), "pooled": fmean(self.pooled)}


@dataclass
class SizeResult:
    """All of one image size.

    size: px.  tokens: L, without the prefix.
    macs, speeds, peak: by network, "original", "patched", "default" (`secvit.patch` without a choice), "unfused";
        speeds also of "window" and "random", the patched model with another partition.
    cosine: of patched to original features, of the "tokens" and the "pooled" ones, the mean over photos.
    peak: bytes in each mode; None where the process was killed.
    parts: share of each part of a patched forward pass.
    agreement: photo by photo, of "patched" and of the others that have more than one cluster.
    """

    size: int
    tokens: int
    prefix_tokens: int
    clusters: int
    macs: dict[str, Macs]
    cosine: dict[str, float]
    peak: dict[str, dict[str, int | None]]
    inference: Speeds
    parts: dict[str, float]
    training: Speeds | None = None
    agreement: dict[str, Agreement] | None = None

    def speeds(self, mode: str) -> Speeds:
        """mode: "inference", or "training" where that was measured."""
        chosen = self.training if mode == "training" else self.inference
        assert chosen is not None
        return chosen

    def memory_ratio(self, mode: str) -> float | None:
        """Peak of the patched model over that of the original; None where a process was killed."""
        original, patched = (self.peak[mode][name] for name in BASES)
        return patched / original if original and patched else None

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> SizeResult:
        macs = {
            name: Macs(**{part: count for part, count in counts.items() if part != "total"})
            for name, counts in entries["macs"].items()
        }
        modes = {mode: Speeds.read(entries[mode]) for mode in ("inference", "training") if mode in entries}
        result = cls(**{**entries, "macs": macs, **modes})
        if result.agreement is not None:
            result.agreement = {name: Agreement(**one) for name, one in entries["agreement"].items()}
        return result

    def written(self) -> dict[str, Any]:
        entries = asdict(self)
        entries["macs"] = {name: {**vars(count), "total": count.total} for name, count in self.macs.items()}
        for name in ("training", "agreement"):
            if entries[name] is None:
                del entries[name]
        return entries


@dataclass
class BreakEven:
    """size: px from which on the patched model is the faster one, None where there is none.  sentence: in words."""

    size: float | None
    sentence: str


@dataclass
class PatchReport:
    """What `patch_report` returns.  `written` and `read` are each other's inverse.

    made: the entries that every result has, see `results.head`; recipe among them.
    weights: "random" or "given".  load_before, load_after: the machine's load average.
    break_even: by mode, "inference" and, where it was measured, "training".
    """

    made: dict[str, Any]
    model: str
    weights: str
    clock: str
    load_before: float
    load_after: float = 0.0
    notes: list[str] = field(default_factory=list)
    sizes: list[SizeResult] = field(default_factory=list)
    break_even: dict[str, BreakEven] = field(default_factory=dict)

    @property
    def recipe(self) -> dict[str, Any]:
        return self.made["recipe"]

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> PatchReport:
        """Of a JSON file's entries."""
        own = ("model", "weights", "clock", "load_before", "load_after", "notes")
        return cls(
            {name: value for name, value in entries.items() if name not in (*own, "sizes", "break_even")},
            **{name: entries[name] for name in own},
            sizes=[SizeResult.read(size) for size in entries["sizes"]],
            break_even={mode: BreakEven(**even) for mode, even in entries["break_even"].items()},
        )

    def written(self) -> dict[str, Any]:
        """The entries of a JSON file."""
        return {
            **self.made,
            "model": self.model, "load_before": self.load_before, "clock": self.clock, "weights": self.weights,
            "notes": self.notes, "sizes": [size.written() for size in self.sizes],
            "break_even": {mode: vars(even) for mode, even in self.break_even.items()}, "load_after": self.load_after,
        }  # fmt: skip


def break_even(sizes: Sequence[int], speeds: Sequence[float]) -> float | None:
    """The size from which on the ratio of speeds stays above 1, between measured sizes by log-log interpolation.

    None where it is above 1 at all sizes, or not at the last.
    """
    slower = [i for i, speed in enumerate(speeds) if speed <= 1]
    if not slower or slower[-1] == len(sizes) - 1:
        return None
    i = slower[-1]
    below, above = math.log(speeds[i]), math.log(speeds[i + 1])
    return sizes[i] * (sizes[i + 1] / sizes[i]) ** (-below / (above - below))


def break_even_of(results: Sequence[SizeResult], mode: str) -> BreakEven:
    """The break-even size of what was measured, in words too."""
    # with one cluster it is the same model, and its ratio is noise
    clustered = [result for result in results if result.clusters > 1]
    sizes = [result.size for result in clustered]
    speeds = [result.speeds(mode).speeds["patched"].median for result in clustered]
    even = break_even(sizes, speeds)
    faster = [size for size, speed in zip(sizes, speeds) if speed > 1]
    if not clustered:
        sentence = "one cluster holds all tokens at every size measured, so the patched model is the original"
    elif even is not None:
        sentence = f"faster from about {round(even, -1):.0f} px on"
    elif not faster:
        sentence = f"not faster at any size measured: leave this model as it is at {_and(sizes)} px"
    elif len(faster) == len(sizes):
        sentence = f"faster at all sizes measured ({_and(sizes)} px)"
    else:
        sentence = f"faster only at {_and(faster)} px, and not at {sizes[-1]} px: there is no size from which on it is"
    noisy = [result.size for result in clustered if not result.speeds(mode).quiet]
    if noisy:
        sentence += f" (too noisy to quote at {_and(noisy)} px)"
    return BreakEven(even, sentence)


def _and(sizes: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, sizes[:-1])), str(sizes[-1])]))
