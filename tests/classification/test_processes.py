"""A recipe on two processes: the command that a user types, its numbers, its one set of files."""

import json
import os
import subprocess
import sys

import pytest
import torch

from secvit.cli import main
from secvit.train.log import read_csv
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
WORDS = ["train", "classification.digits", "--tiny", "--loop.parts", "2", "--loop.steps", "3", "--loop.log_every", "1"]


def on_two_processes(launcher, output):
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "secvit.cli", *WORDS, "--output", str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_same_command_gives_the_same_numbers_on_two_processes(tmp_path, launcher):
    assert main([*WORDS, "--output", str(tmp_path / "one"), "--loop.device", "cpu"]) == 0
    done = on_two_processes(launcher, tmp_path / "two")
    one, two = (read_csv(tmp_path / n / "log.csv")[1] for n in ("one", "two"))
    # float32 sums in another order
    assert [float(r["loss"]) for r in two] == pytest.approx([float(r["loss"]) for r in one], abs=1e-5)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    keys = ("top1", "macro", "majority_floor", "images", "skipped")  # 269 images: 135 and 134 on the two
    assert {k: results[0][k] for k in keys} == {k: results[1][k] for k in keys}
    assert done.stdout.count("val top-1") == 1 and (tmp_path / "two" / "curves.png").exists()
