"""The paper's tables as data: what our numbers are held against.

Fan, Huang, Chen, He: *Semantic Equitable Clustering*, ICCV 2025.  The numbers are typed once, in tables.yaml.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from secvit.fields import read_yaml

FILE = Path(__file__).with_name("tables.yaml")
NOTHING = ("-", "not suit")  # what the paper prints in a cell without a number


@dataclass(frozen=True)
class Row:
    """A row of a table.

    table: "Table 1", of the supplement "Table S1".  heading: of the rows it stands among, or "".
    label: the first cells, which say what the row is.  cells: the others as printed, by column.
    """

    table: str
    heading: str
    label: tuple[str, ...]
    cells: dict[str, str]

    @property
    def name(self) -> str:
        return ", ".join(self.label)


@dataclass(frozen=True)
class Table:
    """A table: its name, its caption, the names of all of its columns, its rows."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@cache
def tables() -> dict[str, Table]:
    """All tables of the paper and its supplement, by name."""
    return {name: _table(name, written) for name, written in read_yaml(FILE).items()}


def number(cell: str) -> float | None:
    """The number in a cell, without the difference that may be marked beside it; None where there is none."""
    match = re.match(r"-?\d+(\.\d+)?", cell)
    return float(match[0]) if match else None


def marked(cell: str) -> float | None:
    """The difference that a cell marks in brackets, "80.5 (+0.7)" -> 0.7; None where there is none."""
    match = re.search(r"\(([+-]\d+(\.\d+)?)\)", cell)
    return float(match[1]) if match else None


def _table(name: str, written: dict) -> Table:
    columns, label = _cells(written["columns"]), written["label"]
    rows, heading = [], ""
    for cells in map(_cells, map(str, written["rows"])):
        if len(cells) == 1:
            heading = cells[0]
        else:
            rows.append(Row(name, heading, cells[:label], dict(zip(columns[label:], cells[label:], strict=True))))
    return Table(name, written["caption"], columns, tuple(rows))


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.split("|"))
