"""What `secvit bench` measures, as it stands in its JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from secvit.measure.rounds import Ratio, Seconds


@dataclass
class ModelRow:
    """One network.  vs_base, vs_literal: its speed over that of the base, and of its literal twin, if it has one.

    macs: of one image.  of_matrix_rate: its multiply-accumulates a second over those of a matrix product, in inference;
    of_onednn_rate: over those of a matrix product by oneDNN, in float32.
    """

    name: str
    vs_base: Ratio
    vs_literal: Ratio | None
    macs: int
    of_matrix_rate: float | None
    of_onednn_rate: float | None = None

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> ModelRow:
        ratios = (Ratio(**entries[name]) if name in entries else None for name in ("vs_base", "vs_literal"))
        base, literal = ratios
        assert base is not None
        rates = (entries.get("of_matrix_rate"), entries.get("of_onednn_rate"))
        return cls(entries["name"], base, literal, entries["macs"], *rates)


@dataclass
class ModelSpeeds:
    """Networks in one mode, "inference" or "training", and dtype.

    base: the network that others are compared with.  quiet: whether its two times agree well enough to quote ratios.
    skipped: why a network was not timed.  differences: of a network and its twin, see `speed.check_twin`.
    """

    mode: str
    dtype: str
    compiled: bool
    batch_size: int
    image_size: int
    base: str
    quiet: bool
    skipped: dict[str, str]
    differences: dict[str, dict[str, float]]
    rows: list[ModelRow]
    seconds: Seconds

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> ModelSpeeds:
        return cls(**{**entries, "rows": [ModelRow.read(row) for row in entries["rows"]]})

    def written(self) -> dict[str, Any]:
        rows = [_without_none(asdict(row), "vs_literal", "of_matrix_rate", "of_onednn_rate") for row in self.rows]
        return {**asdict(self), "rows": rows}


@dataclass
class PartShares:
    """Share of each part in a forward pass of a network, for images of `size`, (height, width) in px."""

    name: str
    size: tuple[int, int]
    batch_size: int
    cluster_size: int | None
    shares: dict[str, float]

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> PartShares:
        height, width = entries["size"]
        return cls(**{**entries, "size": (height, width)})

    def written(self) -> dict[str, Any]:
        return {**asdict(self), "size": list(self.size)}


@dataclass
class LengthTimes:
    """Ways to group `length` tokens, or to attend among them.

    times_sec: time of each as a multiple of SEC's.  num_clusters: of the clustering alone.
    peak_bytes: of the attentions, where memory was measured.
    """

    length: int
    quiet: bool
    times_sec: dict[str, Ratio]
    seconds: Seconds
    num_clusters: int | None = None
    peak_bytes: dict[str, int | None] | None = None

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> LengthTimes:
        times = {name: Ratio(**ratio) for name, ratio in entries["times_sec"].items()}
        return cls(**{**entries, "times_sec": times})

    def written(self) -> dict[str, Any]:
        entries = {"num_clusters": self.num_clusters, **asdict(self)}
        return _without_none(entries, "num_clusters", "peak_bytes")


@dataclass
class BenchResult:
    """What `bench.run` returns.  `written` and `read` are each other's inverse.

    made: the entries that every result has, see `results.head`.  load_before, load_after: the machine's load average.
    operation, attention: the clustering and the attention alone, for each number of tokens.
    """

    made: dict[str, Any]
    load_before: float
    clock: str
    notes: list[str] = field(default_factory=list)
    models: list[ModelSpeeds] = field(default_factory=list)
    parts: list[PartShares] = field(default_factory=list)
    operation: list[LengthTimes] = field(default_factory=list)
    attention: list[LengthTimes] = field(default_factory=list)
    load_after: float = 0.0

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> BenchResult:
        """Of a JSON file's entries."""
        own = ("load_before", "clock", "notes", "load_after")
        tables = ("models", "parts", "operation", "attention")
        return cls(
            {name: value for name, value in entries.items() if name not in (*own, *tables)},
            **{name: entries[name] for name in own},
            models=[ModelSpeeds.read(one) for one in entries["models"]],
            parts=[PartShares.read(one) for one in entries["parts"]],
            operation=[LengthTimes.read(one) for one in entries["operation"]],
            attention=[LengthTimes.read(one) for one in entries["attention"]],
        )

    def written(self) -> dict[str, Any]:
        """The entries of a JSON file."""
        return {
            **self.made,
            "load_before": self.load_before, "clock": self.clock, "notes": self.notes,
            "models": [one.written() for one in self.models], "parts": [one.written() for one in self.parts],
            "operation": [one.written() for one in self.operation],
            "attention": [one.written() for one in self.attention], "load_after": self.load_after,
        }  # fmt: skip


def _without_none(entries: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if value is not None or name not in names}
