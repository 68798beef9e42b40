"""Runs a function of a test module on several processes, as a user would: under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(folder: Path, code: str, processes: int = 2, timeout: int = 150) -> subprocess.CompletedProcess[str]:
    """`code` in a file, on so many gloo processes of one thread each."""
    (folder / "go.py").write_text(code)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *command, str(folder / "go.py")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
