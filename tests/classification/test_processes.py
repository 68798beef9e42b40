"""A recipe on two processes: the command that a user types, its numbers, its one set of files."""

import pytest
import torch

from tests.train.launch import TORCHRUN, train_on_one_and_on_two

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
WORDS = ["train", "classification.digits", "--tiny", "--loop.parts", "2", "--loop.steps", "3", "--loop.log_every", "1"]


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(TORCHRUN, id="torchrun"),
        pytest.param(
            ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
            id="accelerate",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_same_command_gives_the_same_numbers_on_two_processes(tmp_path, launcher):
    results, printed = train_on_one_and_on_two(tmp_path, WORDS, launcher, abs=1e-5)  # float32 sums in another order
    keys = ("top1", "macro", "majority_floor", "images", "skipped")  # 269 images: 135 and 134 on the two
    assert {k: results[0][k] for k in keys} == {k: results[1][k] for k in keys}
    assert printed.count("val top-1") == 1 and (tmp_path / "two" / "curves.png").exists()
