"""Many processes: the same numbers however a step is shared, sharded weights, exact sums, death and resuming."""

import csv
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secvit.train import latest
from tests import fresh
from tests.conftest import slow_but
from tests.train.launch import launch
from tests.train.small import Data, Net, Task, loop, run

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU"),
]
STEPS = 12


class Quiet(Net):
    """Without batch norm and dropout, so that the number of parts does not matter."""

    def __init__(self) -> None:
        super().__init__()
        del self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


class Noisy(Net):
    """No bias before the batch norm: its gradient is rounding noise, which Adam would blow up."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(6, 16, bias=False)


class Stack(torch.nn.Module):
    """Blocks in a list, as sharding looks for, and a convolution whose gradients come channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)])
        self.norm = torch.nn.BatchNorm1d(6)  # before the kernels: behind them, a kernel's size would have no gradient
        self.conv = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.drop = torch.nn.Dropout(0.3)
        self.b = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).relu()
        image = self.norm(x)[:, :, None, None].expand(-1, -1, 4, 4).contiguous(memory_format=torch.channels_last)
        return self.b(self.drop(self.conv(image).mean((2, 3))))


MODELS = {"quiet": Quiet, "noisy": Noisy, "stack": Stack}


def train(output: str | Path, model: str, **changes: object) -> None:
    torch.manual_seed(0)
    settings = {"steps": STEPS, "log_every": 1, "device": "auto", "clip_grad": 0.5, **changes}
    run(output, loop(**settings), task=Task(MODELS[model]()))


def on_processes(folder: Path, output: Path, model: str, processes: int = 2, **changes: object):
    code = f"from tests.train.test_processes import train; train({str(output)!r}, {model!r}, **{changes!r})"
    return launch(folder, code, processes)


def losses(output: Path, column: str = "loss") -> list[float]:
    with open(output / "log.csv") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path) -> None:
    """float32 sums in another order, 12 Adam steps"""
    assert losses(other) == pytest.approx(losses(one), abs=1e-6)
    assert losses(other, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)
    for file in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(latest(path) / file) for path in (one, other))
        for name in a:
            torch.testing.assert_close(b[name], a[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_batch_of_four_is_two_by_two_is_one_by_two_by_two(tmp_path):
    train(tmp_path / "one", "quiet", batch_size=4)
    train(tmp_path / "accumulated", "quiet", batch_size=4, parts=2)
    done = on_processes(tmp_path, tmp_path / "two", "quiet", batch_size=4)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "one", tmp_path / "accumulated")
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("model", slow_but(("stack",), ("noisy", "stack")))
def test_parts_are_the_same_whoever_computes_them(tmp_path, model):
    """Batch norm with its statistics, dropout and every other random number included.

    Four samples in a part: two would leave batch norm no gradient but rounding noise, which Adam blows up.
    """
    train(tmp_path / "one", model, batch_size=16, parts=4)
    done = on_processes(tmp_path, tmp_path / "two", model, batch_size=16, parts=4)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert "Warning" not in done.stderr


def test_sharded_weights_give_the_same_run_and_the_same_checkpoints(tmp_path):
    train(tmp_path / "one", "stack", parts=2)
    done = on_processes(tmp_path, tmp_path / "fsdp", "stack", sharding="fsdp")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "one", tmp_path / "fsdp")
    one, other = (torch.load(latest(tmp_path / n) / "state.pt", weights_only=True) for n in ("one", "fsdp"))
    for i, state in one["optimizer"]["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(other["optimizer"]["state"][i][key], value, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_sharded_and_back(tmp_path):
    train(tmp_path / "whole", "stack", parts=2)
    train(tmp_path / "mixed", "stack", parts=2, time_limit_minutes=1e-9)  # one step
    done = on_processes(tmp_path, tmp_path / "mixed", "stack", sharding="fsdp", time_limit_minutes=1e-9)
    assert done.returncode == 0, done.stderr[-2000:]
    assert latest(tmp_path / "mixed").name == "step_00000002"
    train(tmp_path / "mixed", "stack", parts=2)
    assert_same_run(tmp_path / "whole", tmp_path / "mixed")


class Dies(Data):
    """Data that one process cannot read at some moment, or that kills it there."""

    def __init__(self, how: str, left: int) -> None:
        super().__init__()
        self.how, self.left = how, left

    def __getitem__(self, key):
        self.left -= 1
        if os.environ.get("RANK", "1") == "1" and self.left < 0:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the disk of process 1 is gone")
        return super().__getitem__(key)


@pytest.mark.parametrize("how", slow_but(("kill",), ("raise", "kill")))
def test_a_dead_process_ends_the_others_and_the_run_goes_on(tmp_path, how):
    train(tmp_path / "whole", "noisy", parts=2)
    code = (
        "import torch\n"
        "from tests.train.test_processes import Dies, Noisy, Task, loop, run\n"
        "torch.manual_seed(0)\n"
        f"settings = loop(steps={STEPS}, log_every=1, device='auto', clip_grad=0.5)\n"
        f"run({str(tmp_path / 'broken')!r}, settings, task=Task(Noisy()), data=Dies({how!r}, 4 * 9))\n"
    )
    done = launch(tmp_path, code)
    assert done.returncode != 0
    assert "the disk of process 1 is gone" in done.stderr if how == "raise" else done.returncode == -signal.SIGKILL
    assert latest(tmp_path / "broken").name == "step_00000007"
    done = on_processes(tmp_path, tmp_path / "broken", "noisy")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_killed_at_a_random_step_goes_on_to_the_bit(tmp_path):
    """One process, kill -9, float32."""
    train(tmp_path / "whole", "noisy")
    left = random.SystemRandom().randrange(8 * 7, 8 * STEPS)  # from the first checkpoint on
    code = (
        "import torch; from tests.train.test_processes import *; torch.manual_seed(0); "
        f"settings = loop(steps={STEPS}, log_every=1, clip_grad=0.5); "
        f"run({str(tmp_path / 'broken')!r}, settings, task=Task(Noisy()), data=Dies('kill', {left}))"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = fresh.run(["-c", code], env=paths, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    train(tmp_path / "broken", "noisy")
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole"), f"killed after {left} samples"
    for file in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(latest(tmp_path / n) / file) for n in ("whole", "broken"))
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_shares_hold_each_index_once_and_sums_are_exact(tmp_path):
    """Three processes and seven indices; eight processes would leave one of them without any."""
    code = (
        "import torch, torch.distributed as dist, sys\n"
        "from secvit.processes import share, sum_over_processes\n"
        "dist.init_process_group('gloo')\n"
        "for count in (0, 1, 2, 7):\n"
        "    found = torch.zeros(8)\n"
        "    for i in share(count):\n"
        "        found[i] += 1\n"
        "    total = sum_over_processes(found)\n"
        "    assert total.tolist() == [1.0] * count + [0.0] * (8 - count), total\n"
    )
    done = launch(tmp_path, code, processes=3)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_all_processes_at_once(tmp_path):
    from secvit.train.lock import Lock

    lock = Lock(tmp_path)
    lock.take()
    try:
        done = on_processes(tmp_path, tmp_path, "quiet")
    finally:
        lock.release()
    assert done.returncode != 0 and done.stderr.count("ValueError: ") == 2, done.stderr[-2000:]
    assert f"{tmp_path}: another run is writing there (process {os.getpid()} on " in done.stderr
    assert not (tmp_path / "checkpoints").exists()
