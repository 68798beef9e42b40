import csv
import shutil
import signal
import threading
import time

import pytest
import torch

from secvit.train import latest
from secvit.train.checkpoint import complete
from tests.train.small import Data, Net, Task, loop, run


class StopAt(Data):
    """Data that raises while a given number of batches has been given: the process dies there."""

    def __init__(self, key_count: int) -> None:
        super().__init__()
        self.left = key_count

    def __getitem__(self, key):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("power cut")
        return super().__getitem__(key)


def rows(path, drop=("seconds", "samples_per_second", "data_wait", "memory_mb")):
    with open(path) as file:
        return [{k: v for k, v in r.items() if k not in drop} for r in csv.DictReader(file)]


def score(model):
    return {"top1": float(sum(p.sum() for p in model.parameters()))}


def assert_equal_runs(one, other, out, out_other):
    for (task, result), (task2, result2) in [(one, other)]:
        for (name, a), b in zip(task.state_dict().items(), task2.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        for (name, a), b in zip(result.model.state_dict().items(), result2.model.state_dict().values(), strict=True):
            assert torch.equal(a, b), f"ema {name}"
    assert rows(out / "log.csv") == rows(out_other / "log.csv")


@pytest.mark.parametrize("changes", [{}, {"parts": 2}, {"workers": 1, "repeats": 3}])
def test_resumed_run_equals_unbroken_run_to_the_bit(tmp_path, changes):
    """Killed at step 10 of 20, in the middle of the second epoch of 6 steps, last saved at 7."""
    whole = run(tmp_path / "whole", loop(**{**changes, "workers": 0}))
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "broken", loop(**{**changes, "workers": 0}), data=StopAt(8 * 10 + 3))
    assert latest(tmp_path / "broken").name == "step_00000007"
    resumed = run(tmp_path / "broken", loop(**changes))
    assert_equal_runs(whole, resumed, tmp_path / "whole", tmp_path / "broken")


def test_evaluations_are_the_same_after_a_resume(tmp_path):
    settings = loop(evaluate_every=5)
    run(tmp_path / "whole", settings, evaluate=score, best="top1")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "broken", settings, data=StopAt(8 * 13), evaluate=score, best="top1")
    _, result = run(tmp_path / "broken", settings, evaluate=score, best="top1")
    assert rows(tmp_path / "whole/eval.csv") == rows(tmp_path / "broken/eval.csv")
    assert [r["step"] for r in rows(tmp_path / "broken/eval.csv")] == ["5", "10", "15", "20"]
    again = run(tmp_path / "broken", settings, evaluate=score, best="top1")[1]
    assert again.metrics == result.metrics and len(rows(tmp_path / "broken/eval.csv")) == 4


def test_time_limit_saves_and_the_next_run_goes_on(tmp_path):
    whole = run(tmp_path / "whole")
    stopped = run(tmp_path / "broken", loop(time_limit_minutes=1e-9))[1]
    assert stopped.stopped == "time limit" and stopped.step == 1
    resumed = run(tmp_path / "broken")
    assert_equal_runs(whole, resumed, tmp_path / "whole", tmp_path / "broken")


def test_interrupt_saves_the_finished_step(tmp_path):
    class Slow(Data):
        def __getitem__(self, key):
            time.sleep(0.002)
            return super().__getitem__(key)

    main, before = threading.main_thread().ident, signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    try:
        result = run(tmp_path, loop(steps=2000), data=Slow())[1]
    finally:
        timer.join()
    assert result.stopped == "interrupted"
    assert latest(tmp_path).name == f"step_{result.step:08d}"
    assert signal.getsignal(signal.SIGINT) is before


def test_keeps_the_last_and_the_best_checkpoint(tmp_path):
    scores = iter([3.0, 9.0, 1.0, 1.0, 1.0])
    result = run(
        tmp_path,
        loop(save_every=4, evaluate_every=4, keep_last=1),
        evaluate=lambda m: {"top1": next(scores)},
        best="top1",
    )[1]
    assert [p.name for p in complete(tmp_path)] == ["step_00000008", "step_00000020"]
    assert (result.best, result.best_step) == (9.0, 8)


def test_never_refuses_a_folder_with_a_run(tmp_path):
    run(tmp_path, loop(steps=2))
    with pytest.raises(ValueError, match="already holds a run"):
        run(tmp_path, loop(steps=2), resume="never")


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_result_without_checkpoints_is_not_overwritten(tmp_path, resume):
    (tmp_path / "model.safetensors").write_bytes(b"kept")
    run(tmp_path, loop(steps=1))  # weights alone are no run
    (tmp_path / "result.json").write_text("{}")
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="already holds a run .*checkpoints are gone.*give another --output"):
        run(tmp_path, loop(steps=2), resume=resume)
    assert (tmp_path / "model.safetensors").read_bytes() == b"kept" and not (tmp_path / "checkpoints").exists()


def test_resume_from_a_path_starts_there(tmp_path):
    whole = run(tmp_path / "whole", loop(keep_last=9))
    first = tmp_path / "whole/checkpoints/step_00000007"
    other = run(tmp_path / "other", loop(keep_last=9), resume=str(first))
    for a, b in zip(whole[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_resuming_another_network_names_the_difference(tmp_path):
    run(tmp_path, loop(steps=2))
    net = Net()
    net.b = torch.nn.Linear(16, 5)
    with pytest.raises(ValueError, match=r"2 of another shape \(b.weight \(3, 16\) instead of \(5, 16\)"):
        run(tmp_path, task=Task(net))
