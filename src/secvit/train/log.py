"""Numbers of a run: CSV files that stay right across resumes, and TensorBoard events if wanted."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from secvit.extras import needs
from secvit.files import read_csv, write_atomically

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
Row = Mapping[str, float | int]


class Log:
    """log.csv (training) and eval.csv (evaluations) of an output folder, one row at a time.

    Rows after step `start` belong to a run that was cut off behind its last checkpoint: they are
    dropped, and will be written again; so are those of eval.csv after step `scored`.  The last row of log.csv up to
    `start` is that of step `logged`, 0 for none.

    The files are products of the run: whatever has become of them, the run goes on, and a warning says so.
    """

    def __init__(
        self,
        output: Path,
        start: int,
        scored: int,
        logged: int,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.output = output
        self.columns: dict[str, list[str]] = {}
        self.failed: set[str] = set()
        self.trackers = [TRACKERS[name](output, config or {}) for name in trackers]
        for name, last, written in (("log.csv", start, logged), ("eval.csv", scored, scored)):
            if not (output / name).exists():
                if written:
                    logger.warning("%s: missing; its rows up to step %d are lost", output / name, written)
                continue
            columns, rows = self._read(name)
            if columns:
                self._try(name, self._rewrite, name, columns, [row for row in rows if _step(row) <= last])

    def write(self, name: str, row: Row) -> None:
        self._try(name, self._append, name, row)
        numbers = {f"{Path(name).stem}/{key}": value for key, value in row.items() if key != "step"}
        for tracker in self.trackers:
            tracker.write(numbers, int(row["step"]))

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        for name in self.columns:
            with contextlib.suppress(OSError), open(self.output / name, "rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()

    def _append(self, name: str, row: Row) -> None:
        path, columns = self.output / name, self.columns.get(name)
        if columns is None:
            self._rewrite(name, list(row), [row])
        elif not path.exists():
            if name not in self.failed:  # else it was never written
                logger.warning("%s: gone; begun anew", path)
            self._rewrite(name, columns, [row])
        elif missing := [c for c in row if c not in columns]:
            self._rewrite(name, [*columns, *missing], [*self._read(name)[1], row])
        else:
            with open(path, "a", newline="") as file:
                csv.DictWriter(file, columns, restval="").writerow(row)

    def _read(self, name: str) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and rows; nothing, and the file renamed, if it is no log any more."""
        path = self.output / name
        try:
            columns, rows = read_csv(path)
            if "step" in columns:
                return columns, rows
            reason = "no column 'step'"
        except (OSError, ValueError, csv.Error) as error:
            reason = str(error)
        aside = path.with_name(f"{path.stem}.unreadable{path.suffix}")
        logger.warning("%s: cannot be read (%s); kept as %s, and begun anew", path, reason, aside.name)
        with contextlib.suppress(OSError):
            os.replace(path, aside)
        return [], []

    def _rewrite(self, name: str, columns: list[str], rows: list[Any]) -> None:
        self.columns[name] = columns
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomically(self.output / name, text.getvalue().encode())

    def _try(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except OSError as error:
            if name not in self.failed:
                logger.warning("%s: cannot be written (%s); the run goes on without it", self.output / name, error)
            self.failed.add(name)


class NoLog(Log):
    """The log of the processes that write nothing."""

    def __init__(self) -> None:
        self.trackers = []

    def write(self, name: str, row: Row) -> None:
        pass

    def sync(self) -> None:
        pass


def _step(row: Mapping[str, str]) -> float:
    """The step of a row; later than any if it has none."""
    return int(row["step"]) if row["step"].isdecimal() else math.inf


def memory_mb() -> int:
    """The most memory in use so far: of the accelerator if there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() >> 20
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10


class TensorBoard:
    """Event files in OUTPUT/tensorboard."""

    def __init__(self, output: Path, config: Mapping[str, Any]) -> None:
        with needs("--loop.trackers [tensorboard]", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(str(output / "tensorboard"))

    def write(self, numbers: Row, step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project "secvit"; resuming an output folder resumes its run.  WANDB_MODE=offline needs no login."""

    def __init__(self, output: Path, config: Mapping[str, Any]) -> None:
        with needs("--loop.trackers [wandb]", "wandb"):
            import wandb
        name = hashlib.sha1(str(output.resolve()).encode()).hexdigest()[:12]
        self.run = wandb.init(
            project="secvit", name=output.name, id=name, resume="allow", dir=str(output), config=dict(config)
        )

    def write(self, numbers: Row, step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], TensorBoard | WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
