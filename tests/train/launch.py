"""Runs code, or the command, on several processes, as a user would: under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secvit.cli import main
from secvit.files import read_csv

ROOT = Path(__file__).parents[2]
# Processes leave together and at once: in torch 2.7 destroy_process_group hangs now and then, and a process that ends
# with its group alive is now and then aborted by newer versions.
LEAVE = """
import os, sys
import torch.distributed
sys.stdout.flush()
if torch.distributed.is_initialized():
    torch.distributed.barrier()
os._exit(0)
"""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launch(folder: Path, code: str, processes: int = 2, timeout: int = 150) -> subprocess.CompletedProcess[str]:
    """`code` in a file, on so many gloo processes of one thread each."""
    (folder / "go.py").write_text(code + LEAVE)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *command, str(folder / "go.py")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def train_on_one_and_on_two(
    folder: Path, words: list[str], launcher: tuple[str, ...] = TORCHRUN, **tolerance: float
) -> tuple[list[dict[str, Any]], str]:
    """`secvit WORDS` on one process and on two, whose losses are the same; what result.json says, and what two print."""
    assert main([*words, "--output", str(folder / "one"), "--loop.device", "cpu"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "secvit.cli", *words, "--output", str(folder / "two")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([float(row["loss"]) for row in read_csv(folder / n / "log.csv")[1]] for n in ("one", "two"))
    assert two == pytest.approx(one, **tolerance)
    return [json.loads((folder / n / "result.json").read_text()) for n in ("one", "two")], done.stdout
