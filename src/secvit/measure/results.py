"""What every benchmark's result has: what it was made with, on which machine; its JSON file, and its tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from secvit.files import write_atomically
from secvit.measure.rounds import Ratio
from secvit.ops.road import road_line
from secvit.provenance import cpu_name, hardware, provenance

# prefixes of variables that change speed
MATTERS = ("MALLOC_", "OMP_", "MKL_", "KMP_", "DNNL_", "ONEDNN_", "ATEN_", "SECVIT_CPU_")


def head(kind: str, recipe: Mapping[str, Any], threads: int, device: str = "cpu") -> dict[str, Any]:
    """The first entries of a result: kind, recipe, versions, commit, time, hardware, variables that change speed.

    road: on a CPU, the library that multiplies, and why (`secvit.ops.road`).
    """
    on_gpu = torch.device(device).type == "cuda"
    return {
        "kind": kind,
        "recipe": dict(recipe),
        **provenance(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware() if on_gpu else cpu(threads),
        **({} if on_gpu else {"road": road_line()}),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(MATTERS)},
    }


def cpu(threads: int) -> str:
    """The processor and how much of it is used; no name of the machine."""
    return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {threads} of {os.cpu_count()} threads"


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """So many threads of torch while entered."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_result(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a result as JSON."""
    write_atomically(Path(path), (json.dumps(result, indent=1) + "\n").encode())


# -- as Markdown -------------------------------------------------------------------------------


def made_with(result: Mapping[str, Any]) -> str:
    """Hardware, versions, commit and day in one line."""
    versions = result["versions"]
    names = ", ".join(f"{name} {versions[name]}" for name in ("secvit", "torch", "timm") if name in versions)
    return f"{result['hardware']}; {names}; commit {result['commit'] or 'unknown'}; {result['date'][:10]}."


def environment_lines(result: Mapping[str, Any]) -> list[str]:
    """The variables that change speed, where some are set, and the library that multiplies, where it is noted."""
    environment = ", ".join(f"{name}={value}" for name, value in result["environment"].items())
    lines = [f"Environment: {environment}."] if environment else []
    return [*lines, f"{result['road']}."] if "road" in result else lines


def shown_ratio(ratio: Mapping[str, float] | Ratio) -> str:
    """The median, and the least and greatest of the rounds: "1.25 (1.20 .. 1.31)"."""
    ratio = ratio if isinstance(ratio, Ratio) else Ratio(**ratio)
    low, middle, high = (
        f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in (ratio.low, ratio.median, ratio.high)
    )
    return f"{middle} ({low} .. {high})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, columns aligned."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
