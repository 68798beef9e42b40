"""What `secvit bench connector` works out and times, as it stands in its JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from secvit.measure.connector_work import Shape, Work
from secvit.measure.rounds import Speeds


@dataclass
class ModelWork:
    """A LLaVA's work and memory, a row for each number of image tokens, the most first."""

    shape: Shape
    rows: list[Work]

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> ModelWork:
        rows = [
            Work(**{**row, "step_bytes": {int(batch): count for batch, count in row["step_bytes"].items()}})
            for row in entries["rows"]
        ]
        return cls(Shape(**entries["shape"]), rows)

    def written(self) -> dict[str, Any]:
        rows = [
            {**asdict(row), "step_bytes": {str(batch): count for batch, count in row.step_bytes.items()}}
            for row in self.rows
        ]
        return {"shape": asdict(self.shape), "rows": rows}


@dataclass
class Times:
    """Speeds of a LLaVA for each number of image tokens, by part of an answer; those of `base` tokens are 1."""

    shape: Shape
    base: str
    dtype: str
    parts: dict[str, Speeds]
    clock: str

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> Times:
        parts = {part: Speeds.read(speeds) for part, speeds in entries["parts"].items()}
        return cls(**{**entries, "shape": Shape(**entries["shape"]), "parts": parts})


@dataclass
class ConnectorReport:
    """What `connector_report` returns.  `written` and `read` are each other's inverse.

    made: the entries that every result has, see `results.head`.  notes: what the connector cannot do.
    """

    made: dict[str, Any]
    models: list[ModelWork] = field(default_factory=list)
    timed: Times | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> ConnectorReport:
        """Of a JSON file's entries."""
        made = {name: value for name, value in entries.items() if name not in ("models", "timed", "notes")}
        timed = entries["timed"]
        models = [ModelWork.read(one) for one in entries["models"]]
        return cls(made, models, None if timed is None else Times.read(timed), entries["notes"])

    def written(self) -> dict[str, Any]:
        """The entries of a JSON file."""
        timed = None if self.timed is None else asdict(self.timed)
        return {
            **self.made, "models": [one.written() for one in self.models], "timed": timed, "notes": self.notes,
        }  # fmt: skip
