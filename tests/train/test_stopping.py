"""How a run is stopped, what it says then, and its exit code."""

import json
import logging
import os
import re
import signal
import threading
import time

import pytest

from secvit import runs
from secvit.cli import main
from secvit.progress import Progress, brief, busy, duration, reading
from secvit.train import latest
from tests import fresh
from tests.train.launch import ROOT
from tests.train.small import Data, loop, run

DIGITS = ["train", "classification.digits", "--tiny", "--model.name", "test_resnet", "--model.args", "{}"]
DIGITS += ["--loop.device", "cpu"]


def begin(folder, *words):
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return fresh.start(["-m", "secvit.cli", *DIGITS, "--output", str(folder), *words], env=paths)


def until(process, pattern):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_saves_says_so_at_once_and_has_its_own_exit_code(tmp_path, number, code, word):
    process = begin(tmp_path, "--loop.steps", "100000", "--loop.log_every", "100000")
    until(process, "step 1 of")
    process.send_signal(number)
    out = process.communicate(timeout=100)[0]
    assert process.returncode == code, out
    assert "stopping after this step" in out and "Traceback" not in out and "no such log" not in out
    step = int(re.search(rf"{word} at step (\d+), which is saved", out)[1])
    assert latest(tmp_path).name == f"step_{step:08d}" and not (tmp_path / "run.lock").exists()
    assert json.loads((tmp_path / "result.json").read_text())["stopped"] == word


def test_ctrl_c_before_the_first_step_is_130_without_a_traceback(tmp_path):
    process = begin(tmp_path)
    until(process, "digits")
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 130 and "Traceback" not in out, out


def test_ctrl_c_twice_stops_at_once_without_a_traceback(tmp_path):
    process = begin(tmp_path, "--loop.steps", "100000", "--loop.batch_size", "1024", "--loop.parts", "64")
    until(process, "steps of 1024")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    until(process, "stopping after")
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in out, out


def test_the_time_limit_is_not_success(tmp_path, capsys):
    assert main([*DIGITS, "--output", str(tmp_path), "--loop.time_limit_minutes", "1e-9"]) == 75
    assert "time limit at step 1, which is saved; the same command goes on" in capsys.readouterr().out
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0


def test_a_log_that_is_gone_costs_the_curves_alone(tmp_path, capsys):
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0
    (tmp_path / "log.csv").unlink()
    assert main([*DIGITS, "--output", str(tmp_path)]) == 0
    assert "no curves were drawn" in capsys.readouterr().err


# -- scoring after saving ------------------------------------------------------------------------


def test_an_evaluation_that_fails_does_not_cost_the_epoch_and_is_made_up_for(tmp_path):
    def fail(model):
        raise RuntimeError("no evaluator")

    def score(model):
        return {"top1": float(sum(p.sum() for p in model.parameters()))}

    for settings in (loop(evaluate_every=7), loop(evaluate_every=5, save_every=100)):
        output, whole = tmp_path / str(settings.evaluate_every), tmp_path / f"whole {settings.evaluate_every}"
        with pytest.raises(RuntimeError, match="no evaluator"):
            run(output, settings, evaluate=fail, best="top1")
        assert latest(output).name == f"step_{settings.evaluate_every:08d}"
        _, result = run(output, settings, evaluate=score, best="top1")
        _, unbroken = run(whole, settings, evaluate=score, best="top1")
        assert (result.best, result.best_step, result.metrics) == (unbroken.best, unbroken.best_step, unbroken.metrics)
        steps = [
            [line.split(",")[0] for line in (folder / "eval.csv").read_text().splitlines()]
            for folder in (output, whole)
        ]
        assert steps[0] == steps[1]


def test_a_score_that_was_taken_is_not_taken_again(tmp_path):
    calls = []
    settings = loop(steps=20, save_every=5, evaluate_every=5, keep_last=9)

    class Cut(Data):
        left = 8 * 12

        def __getitem__(self, key):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("power cut")
            return super().__getitem__(key)

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, settings, data=Cut(), evaluate=lambda model: calls.append(1) or {"top1": 0.5}, best="top1")
    assert len(calls) == 2 and latest(tmp_path).name == "step_00000010"
    _, result = run(tmp_path, settings, evaluate=lambda model: calls.append(1) or {"top1": 0.4}, best="top1")
    assert len(calls) == 4 and (result.best, result.best_step) == (0.5, 5)


# -- signs of life -------------------------------------------------------------------------------


def test_lines_come_by_time_with_the_time_left(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("secvit.progress.time.monotonic", lambda: now[0])
    progress = Progress(0, 100, silent=False)
    with caplog.at_level(logging.INFO):
        for step in range(1, 101):
            now[0] += 4.0 if step > 1 else 60.0
            progress.step(step, {"loss": float(step), "loss_box": 1.0, "grad_norm": 2.0}, 0.1, 0)
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "step 1 of 100: loss 1, lr 0.1; 1 h 39 min left"
    assert lines[1] == "step 4 of 100: loss 3, lr 0.1; 6 min left"
    assert [int(line.split()[1]) for line in lines] == [1, 4, *range(12, 101, 8)]
    assert lines[-1] == "step 100 of 100: loss 96.5, lr 0.1"


def test_what_takes_long_says_so_and_for_how_long(caplog, monkeypatch):
    monkeypatch.setattr("secvit.progress.FIRST", 0.2)
    monkeypatch.setattr("secvit.progress.EVERY", 0.1)

    @reading
    def load(data, split, much=0):
        time.sleep(much)
        return split

    with caplog.at_level(logging.INFO):
        assert load("pets", "val") == "val" and caplog.text == ""
        load("pets", "train", much=0.35)
        with busy("scoring", silent=True):
            time.sleep(0.3)
        with pytest.raises(ValueError, match="broken"), busy("scoring"):
            raise ValueError("broken")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) in (1, 2) and set(lines) == {"reading pets, train: 0 s so far"}
    assert not [thread for thread in threading.enumerate() if thread.name == "busy"]


def test_figures_of_parts_come_last():
    numbers = {"AP": 0.5, "AP_small_masks": 0.1, "AP50": 0.7, "AP_of_parts": 0.2}
    assert brief(numbers, "AP50") == "AP50 0.7, AP 0.5, AP_small_masks 0.1, AP_of_parts 0.2"


def test_figures_that_say_minus_one_are_left_out_and_the_best_comes_first():
    numbers = {"box_AP": 0.25, "box_AP_small": -1.0, "mask_AP": 0.125, "images": 4}
    assert brief(numbers, "mask_AP") == "mask_AP 0.125, box_AP 0.25, images 4"


@pytest.mark.parametrize(
    ("seconds", "said"), [(40, "40 s"), (720, "12 min"), (12000, "3 h 20 min"), (187200, "2 d 4 h")]
)
def test_durations_are_in_a_readers_unit(seconds, said):
    assert duration(seconds) == said


def test_counts_and_steps_are_said_before_the_first_step(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, loop(), classes=("a", "b"))
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "50 training samples of 2 classes; 20 steps of 8, 6 an epoch, on cpu"


@pytest.mark.parametrize(
    ("words", "epochs", "steps"),
    [
        (["--loop.steps", "40"], None, 40),
        (["--loop.steps=40"], None, 40),
        (["--loop.epochs", "3"], 3, None),
        (["--loop.steps", "40", "--loop.epochs", "3"], 3, None),
        (["--loop.epochs", "3", "--loop.steps", "40"], None, 40),
        (["--loop.steps", "40", "--loop.epochs", "null"], None, 40),
        (["--config", "steps.yaml"], None, 7),
        (["--config", "steps.yaml", "--loop.epochs", "3"], 3, None),
    ],
)
def test_the_later_of_epochs_and_steps_counts(tmp_path, monkeypatch, words, epochs, steps):
    (tmp_path / "steps.yaml").write_text("loop: {steps: 7}")
    monkeypatch.chdir(tmp_path)
    got = []
    done = {"stopped": "time limit", "steps": 1}
    monkeypatch.setattr(runs, "train", lambda recipe, *_, **__: got.append(recipe.loop) or done)
    assert main(["train", "classification.digits", *words]) == 75
    assert (got[0].epochs, got[0].steps) == (epochs, steps)
