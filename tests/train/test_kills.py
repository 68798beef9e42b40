"""Runs that are killed at any moment go on to the bit, and leave nothing behind.  Slow: many processes."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from secvit.train import checkpoint as files
from secvit.train import latest
from tests.train.launch import ROOT
from tests.train.small import loop, run
from tests.train.test_resume import rows

KILLS = int(os.environ.get("SECVIT_KILLS", "10"))
SETTINGS = {"steps": 300, "save_every": 2, "evaluate_every": 6, "log_every": 1, "clip_grad": 0.5}
CODE = """
import sys, time
from tests.train.test_kills import go
go(sys.argv[1], int(sys.argv[2]))
"""


def score(model):
    return {"top1": float(sum(p.sum() for p in model.parameters()))}


def go(output, workers=0):
    print("begins", flush=True)
    return run(output, loop(workers=workers, **SETTINGS), evaluate=score, best="top1")[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_again_and_again_is_the_unbroken_one(tmp_path, workers):
    """SIGKILL at random, a few times before the first save of a process, else up to 0.3 seconds after it."""
    whole = go(tmp_path / "whole")
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    seed = random.SystemRandom().randrange(2**32)
    chance, kills, reached = random.Random(seed), 0, []
    while kills < KILLS:
        command = [sys.executable, "-c", CODE, str(tmp_path / "cut"), str(workers)]
        process = subprocess.Popen(command, env=paths, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        before, deadline = latest(tmp_path / "cut"), time.monotonic() + 60
        while chance.random() < 0.999 and process.poll() is None and latest(tmp_path / "cut") == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # until it saves, or by chance earlier
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        last = latest(tmp_path / "cut")
        reached.append(last.name if last else "none")
        if process.returncode == 0:
            break  # came to its end
    result = go(tmp_path / "cut", workers)
    about = f"seed {seed}, {kills} kills, newest checkpoints {reached}"
    print(about)
    assert (result.step, result.best, result.best_step) == (whole.step, whole.best, whole.best_step), about
    for name in ("log.csv", "eval.csv"):
        assert rows(tmp_path / "cut" / name) == rows(tmp_path / "whole" / name), about
    assert [p.name for p in files.complete(tmp_path / "cut")] == [p.name for p in files.complete(tmp_path / "whole")], (
        about
    )
    for file in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(latest(tmp_path / n) / file) for n in ("whole", "cut"))
        assert all(torch.equal(a[name], b[name]) for name in a), about
    found, wanted = ({p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")} for n in ("cut", "whole"))
    assert found == wanted, about
