"""Runs code, or the command, on several processes, under torchrun or as it would begin them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from secvit.cli import main
from secvit.files import read_csv
from tests import fresh

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


def launch(folder: Path, code: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """`code` in a file, on so many gloo processes of one thread each."""
    (folder / "go.py").write_text(code + LEAVE)
    return together([str(folder / "go.py")], processes)


def together(words: list[str], processes: int = 2, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """`python WORDS` so many times, as torchrun does, which stops the others when one fails; what all of them wrote.

    The exit code is that of the first that failed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    place |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    env = [{**os.environ, **place, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    with ExitStack() as stack:
        programs = [stack.enter_context(fresh.Running(words, env=one)) for one in env]
        deadline = time.monotonic() + timeout
        while None in (codes := [program.poll() for program in programs]) and not any(codes):
            assert time.monotonic() < deadline, [program.written() for program in programs]
            time.sleep(0.02)
        if failed := [code for code in codes if code]:
            time.sleep(1)  # the others may fail by themselves
        out, err = zip(*(program.finish() for program in programs))
    return subprocess.CompletedProcess(words, failed[0] if failed else 0, "".join(out), "".join(err))


def train_on_one_and_on_two(
    folder: Path, words: list[str], launcher: tuple[str, ...] = (), **tolerance: float
) -> tuple[list[dict[str, Any]], str]:
    """`secvit WORDS` on one process and on two, whose losses are the same; what result.json says, and what two print.

    launcher: the module that begins them and its arguments; without, they begin as `together`.
    """
    assert main([*words, "--output", str(folder / "one"), "--loop.device", "cpu"]) == 0
    command = ["-m", "secvit.cli", *words, "--output", str(folder / "two")]
    if launcher:
        command = [sys.executable, "-m", *launcher, *command]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    else:
        done = together(command)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([float(row["loss"]) for row in read_csv(folder / n / "log.csv")[1]] for n in ("one", "two"))
    assert two == pytest.approx(one, **tolerance)
    return [json.loads((folder / n / "result.json").read_text()) for n in ("one", "two")], done.stdout
