import pytest
import torch
from torch import nn

from secvit.train.sharding import blocks, gathered
from tests.train.launch import launch
from tests.train.small import Data, Net, Task, loop, run


class Nested(Net):
    """Blocks in a list in a list."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU())  # noqa: E731
        self.stages = nn.ModuleList([nn.Sequential(block(), block()), block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = x + stage(x)
        return super().forward(x)


class OneBad(Data):
    """A sample that only one of the processes sees."""

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        if key == 3:
            sample["x"] = torch.full((6,), float("nan"))
        return sample


def test_blocks_are_entries_with_parts_inner_ones_first():
    net = Nested()
    assert blocks(net) == [net.stages[1], net.stages[0][1], net.stages[0][0], net.stages[0]]
    assert blocks(Net()) == []


def test_whole_leaves_what_is_whole():
    value = {"a": [torch.ones(2), 3], "b": "name"}
    assert (
        gathered(value)["a"][0] is value["a"][0] and gathered(value)["a"][1:] == [3] and gathered(value)["b"] == "name"
    )


def train(output: str, **changes: object) -> int:
    torch.manual_seed(0)
    return run(output, loop(steps=8, save_every=6, clip_grad=1.0, **changes), task=Task(Nested()), data=OneBad())[
        1
    ].nonfinite


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
@pytest.mark.parametrize("sharding", ("ddp", "fsdp"))
@pytest.mark.slow
def test_all_processes_skip_a_bad_step_and_the_first_names_where_it_began(tmp_path, sharding):
    """Under bfloat16, saved at once; then a copy of the run where only one process finds the checkpoint."""
    code = (
        "import logging, os\n"
        "from tests.train.test_sharding import train\n"
        "logging.basicConfig(format='process ' + os.environ['RANK'] + ': %(message)s')\n"
        f"changes = dict(sharding={sharding!r}, precision='bf16', device='auto')\n"
        f"assert train({str(tmp_path / 'run')!r}, **changes) == 1\n"
        f"elsewhere = os.path.join({str(tmp_path)!r}, 'run' if os.environ['RANK'] == '0' else 'elsewhere')\n"
        "try:\n"
        "    train(elsewhere, **changes)\n"
        "except ValueError as error:\n"
        "    assert 'checkpoints of steps [8, 0]; give an output folder that all machines share' in str(error)\n"
        "else:\n"
        "    raise AssertionError('went on from different steps')\n"
    )
    done = launch(tmp_path, code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("non-finite loss or gradient, first in the batch itself; step skipped") == 1
    assert "process 0: step 5: non-finite" in done.stderr
