import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secvit.train import latest
from tests.train.small import Net, loop, run

ROOT = Path(__file__).parents[2]


class Quiet(Net):
    """Without batch norm and dropout, so that the number of processes does not matter."""

    def __init__(self) -> None:
        super().__init__()
        del self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


class Task(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Quiet()

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = self.model(batch["x"])
        return {"loss": torch.nn.functional.cross_entropy(logits, batch["y"])}


def train(output: str | Path, accumulate: int) -> None:
    torch.manual_seed(0)
    run(output, loop(accumulate=accumulate, device="auto"), task=Task())


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes would share one GPU")
def test_two_processes_that_accumulate_equal_one(tmp_path):
    train(tmp_path / "one", 1)
    code = f"from tests.train.test_processes import train; train({str(tmp_path / 'two')!r}, 2)"
    (tmp_path / "go.py").write_text(code)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "go.py")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(latest(tmp_path / n) / "model.safetensors") for n in ("one", "two"))
    for name in one:  # float32 sums in another order over 20 Adam steps
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5)
