import csv
import sys
import types

import pytest

from secvit.train.log import memory_mb
from tests.train.small import Data, loop, run


class FakeRun:
    def __init__(self, settings):
        self.settings, self.logged, self.finished = settings, [], False

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """What a wandb that is not there was told."""
    made = []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **settings: made.append(FakeRun(settings)) or made[-1]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return made


def test_weights_and_biases_gets_every_row_and_is_closed(tmp_path, runs):
    settings = loop(steps=8, evaluate_every=8, trackers=("wandb",))
    run(tmp_path, settings, evaluate=lambda model: {"top1": 0.5}, config={"lr": 1e-2})
    (only,) = runs
    assert only.settings["config"] == {"lr": 1e-2} and only.settings["dir"] == str(tmp_path)
    assert [step for step, _ in only.logged] == [4, 8, 8] and only.finished
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for (step, numbers), row in zip(only.logged[:2], rows, strict=True):
        assert {"step": step, **{k.removeprefix("log/"): v for k, v in numbers.items()}} == pytest.approx(
            {k: float(v) for k, v in row.items()}
        )
    assert only.logged[2][1]["eval/top1"] == 0.5


def test_a_resumed_run_is_the_same_run_of_weights_and_biases(tmp_path, runs):
    for steps in (4, 8):
        run(tmp_path / "a", loop(steps=steps, trackers=("wandb",)))
    run(tmp_path / "b", loop(steps=4, trackers=("wandb",)))
    first, second, other = (r.settings["id"] for r in runs)
    assert first == second != other and runs[0].settings["resume"] == "allow"


def test_trackers_are_closed_when_a_run_fails(tmp_path, runs):
    class Broken(Data):
        def __getitem__(self, key):
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, loop(trackers=("wandb",)), data=Broken())
    assert runs[0].finished


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_says_what_to_install_before_the_first_step(tmp_path, monkeypatch, name):
    for module in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        run(tmp_path, loop(trackers=(name,)))
    assert not (tmp_path / "log.csv").exists()


def test_memory_is_that_of_a_python_with_torch():
    assert 50 < memory_mb() < 1_000_000
