"""Numbers of a run: CSV files that stay right across resumes, and TensorBoard events if wanted."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secvit.weights import write_atomically

Row = Mapping[str, float | int]


class Log:
    """log.csv (training) and eval.csv (evaluations) of an output folder, one row at a time.

    Rows after step `start` belong to a run that was cut off behind its last checkpoint: they are
    dropped, and will be written again.
    """

    def __init__(self, output: Path, start: int, tensorboard: bool = False) -> None:
        self.output = output
        self.columns: dict[str, list[str]] = {}
        self.events = _event_writer(output) if tensorboard else None
        for path in (output / "log.csv", output / "eval.csv"):
            if path.exists():
                columns, rows = read_csv(path)
                kept = [r for r in rows if r["step"].isdigit() and int(r["step"]) <= start]
                self._rewrite(path.name, columns, kept)

    def write(self, name: str, row: Row) -> None:
        path, columns = self.output / name, self.columns.get(name)
        if columns is None:
            self._rewrite(name, list(row), [row])
        elif missing := [c for c in row if c not in columns]:
            self._rewrite(name, [*columns, *missing], [*read_csv(path)[1], row])
        else:
            with open(path, "a", newline="") as file:
                csv.DictWriter(file, columns).writerow(row)
        if self.events:
            for key in row:
                if key != "step":
                    self.events.add_scalar(f"{Path(name).stem}/{key}", row[key], row["step"])

    def close(self) -> None:
        if self.events:
            self.events.close()

    def _rewrite(self, name: str, columns: list[str], rows: list[Any]) -> None:
        self.columns[name] = columns
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.output / name, text.getvalue().encode())


class NoLog(Log):
    """The log of the processes that write nothing."""

    def __init__(self) -> None:
        self.events = None

    def write(self, name: str, row: Row) -> None:
        pass


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows; a row cut off by a kill is left out."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values() and None not in row]
        return list(reader.fieldnames or []), rows


def _event_writer(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("tensorboard=True needs: pip install tensorboard") from None
    return SummaryWriter(str(output / "tensorboard"))
