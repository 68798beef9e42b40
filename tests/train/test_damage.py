"""What happens to an output folder while a run is away: damage, other runs, edits."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from secvit.files import read_csv
from secvit.train import Schedule, latest
from secvit.train import checkpoint as files
from secvit.train.lock import Lock
from tests.train import small
from tests.train.small import Net, Task, loop


def run(output, settings=None, **more):
    """At a constant learning rate: 14 steps are then the beginning of 20."""
    return small.run(output, settings, schedule=Schedule(kind="constant"), **more)


@pytest.fixture
def output(tmp_path):
    """A run with checkpoints of steps 7 and 14."""
    run(tmp_path / "run", loop(steps=14))
    return tmp_path / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 6 // 10] ^= 64
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path: path.unlink(),
    "of another step": lambda path: shutil.copy(path.parent.with_name("step_00000007") / path.name, path),
}


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, output, caplog, file, how):
    DAMAGES[how](latest(output) / file)
    with caplog.at_level(logging.WARNING):
        resumed, _ = run(output)
    told = next(
        r.getMessage()
        for r in caplog.records
        if "going on from the previous checkpoint, step_00000007" in r.getMessage()
    )
    assert f"step_00000014/{file}" in told
    whole, _ = run(tmp_path / "whole")
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert [p.name for p in files.complete(output)] == ["step_00000014", "step_00000020"]
    assert not any(files.fault(p) for p in files.complete(output))


def test_no_whole_checkpoint_is_an_error_that_names_the_files(output):
    for checkpoint in files.complete(output):
        flip(checkpoint / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"no checkpoint is whole: .*step_00000014/model.*step_00000007/model.*to begin anew"
    ):
        run(output)
    assert len(files.complete(output)) == 2


def test_a_damaged_checkpoint_named_by_hand_names_a_whole_one(output):
    flip(latest(output) / "state.pt")
    with pytest.raises(ValueError, match=r"state.pt is damaged.*go on from .*step_00000007"):
        run(output, resume=str(latest(output)))
    assert run(output, resume=str(files.complete(output)[0]))[1].step == 20


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
def test_checkpoints_without_a_manifest_load_if_nothing_is_cut_off(output, caplog, file):
    """Those of earlier versions."""
    for checkpoint in files.complete(output):
        (checkpoint / "manifest.json").unlink()
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        for key in ("run", "origin", "data", "learns"):
            del state[key]
        torch.save(state, checkpoint / "state.pt")
    assert files.newest_whole(output) == (latest(output), {})
    os.truncate(latest(output) / file, 1000)
    with caplog.at_level(logging.WARNING):
        assert run(output)[1].step == 20
    assert f"step_00000014/{file}" in caplog.text and "of an earlier version" in caplog.text


# -- other runs ---------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused_where_a_run_is(tmp_path, output):
    run(tmp_path / "other", loop(steps=7))
    for steps in (7, 20):
        run(tmp_path / "other", loop(steps=steps))
        with pytest.raises(ValueError, match=r"already holds another run .*give another --output"):
            run(output, resume=str(latest(tmp_path / "other")))


def test_a_run_that_began_with_anothers_checkpoint_goes_on_with_the_same_command(tmp_path, output):
    first = str(output / "checkpoints/step_00000007")
    run(tmp_path / "new", loop(steps=14), resume=first)
    went_on, _ = run(tmp_path / "new", loop(steps=20), resume=first)
    whole, _ = run(tmp_path / "whole")
    assert all(map(torch.equal, whole.state_dict().values(), went_on.state_dict().values()))
    runs = [files.manifest(p)["run"] for p in (latest(output), *files.complete(tmp_path / "new"))]
    assert runs[0] not in runs[1:] and len({*runs[1:]}) == 1


def test_a_later_checkpoint_of_the_same_run_may_come_from_elsewhere(tmp_path, output):
    shutil.copytree(output, tmp_path / "copy")
    run(tmp_path / "copy", loop(steps=18))
    assert run(output, resume=str(latest(tmp_path / "copy")))[1].step == 20


def test_the_folder_of_a_run_is_its_newest_checkpoint(tmp_path, output):
    assert run(tmp_path / "new", resume=str(output))[1].step == 20
    assert files.manifest(latest(tmp_path / "new"))["origin"][1] == 14


def test_a_live_run_is_refused_and_named(output):
    lock = Lock(output)
    lock.take()
    try:
        with pytest.raises(
            ValueError, match=rf"another run is writing there \(process {os.getpid()} on .*delete .*run.lock"
        ):
            run(output)
    finally:
        lock.release()
    assert run(output)[1].step == 20 and not (output / "run.lock").exists()


@pytest.mark.parametrize("holder", ["gone", "used again", "cut off"])
def test_the_lock_of_a_dead_run_is_taken_over(output, caplog, holder):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = Lock(output)
    lock.take()
    about = json.loads(lock.path.read_text())
    about["pid"], about["born"] = (dead.pid, "") if holder == "gone" else (os.getpid(), "another boot 1")
    lock.path.write_text("" if holder == "cut off" else json.dumps(about))
    os.utime(lock.path, (0, 0))
    lock.over.set()
    with caplog.at_level(logging.WARNING):
        assert run(output)[1].step == 20
    assert "taken over from" in caplog.text and not (output / "run.lock").exists()


@pytest.mark.parametrize("silent", [False, True])
def test_a_lock_of_another_host_counts_while_it_is_touched(output, silent):
    path = output / "run.lock"
    path.write_text(json.dumps({"pid": 1, "host": f"not {socket.gethostname()}", "started": "long ago", "token": "x"}))
    if silent:
        os.utime(path, (0, 0))
        assert run(output)[1].step == 20
    else:
        with pytest.raises(ValueError, match="process 1 on not .* since long ago"):
            run(output)


def test_a_run_whose_folder_was_taken_over_does_not_save_there(output):
    def steal(model):
        (output / "run.lock").write_text(json.dumps({"pid": 1, "host": "other", "token": "x"}))
        return {"top1": 0.5}

    with pytest.raises(ValueError, match="process 1 on other .* took this folder over"):
        run(output, loop(evaluate_every=16, save_every=18), evaluate=steal)
    assert latest(output).name == "step_00000014"


# -- files beside the checkpoints --------------------------------------------------------------


def unreadable(path):
    path.write_bytes(b"\xff\xfe step,loss\n\0")


EDITS = {
    "missing": lambda path: path.unlink(),
    "no log": lambda path: path.write_text("what,ever\n1,2\n"),
    "not text": unreadable,
    "empty": lambda path: path.write_text(""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "rows of words": lambda path: path.write_text("step,loss\nfour,\n\n,,,,\n"),
}


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("file", ["log.csv", "eval.csv"])
def test_a_run_goes_on_whatever_became_of_its_logs(tmp_path, caplog, how, file):
    score = {"evaluate": lambda model: {"top1": 0.5}, "best": "top1"}
    run(tmp_path / "cut", loop(steps=14, evaluate_every=7), **score)
    EDITS[how](tmp_path / "cut" / file)
    with caplog.at_level(logging.WARNING):
        resumed, _ = run(tmp_path / "cut", loop(evaluate_every=7), **score)
    assert how == "rows of words" or file in caplog.text
    whole, _ = run(tmp_path / "whole", loop(evaluate_every=7), **score)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert read_csv(tmp_path / "cut" / file)[1][-1]["step"] == "20"


def test_a_log_without_a_row_so_far_is_not_called_lost(tmp_path, caplog):
    assert run(tmp_path, loop(log_every=5, time_limit_minutes=1e-9))[1].step == 1
    assert not (tmp_path / "log.csv").exists()
    with caplog.at_level(logging.WARNING):
        run(tmp_path, loop(log_every=5))
    assert "lost" not in caplog.text


def test_an_output_folder_deleted_meanwhile_is_made_anew(tmp_path):
    def delete(model):
        shutil.rmtree(tmp_path / "run")
        return {"top1": 0.5}

    run(tmp_path / "run", loop(evaluate_every=9), evaluate=delete, best="top1")
    run(tmp_path / "gone", loop(steps=21, evaluate_every=10), evaluate=lambda model: {"top1": 0.1})
    shutil.rmtree(tmp_path / "gone")
    assert run(tmp_path / "gone")[1].step == 20 and latest(tmp_path / "gone").name == "step_00000020"


def test_what_a_killed_run_left_is_swept(output):
    (output / "checkpoints/step_00000021.tmp").mkdir()
    (output / "checkpoints/step_00000007.old.tmp").mkdir()
    for name in (".log.csv.123.part", ".result.json.123.part", "checkpoints/step_00000014/.score.json.123.part"):
        (output / name).write_text("half")
    (output / ".notes.part").write_text("mine")
    run(output)
    assert sorted(p.name for p in output.iterdir()) == [".notes.part", "checkpoints", "config.yaml", "log.csv"]
    assert all(".part" not in p.name and ".tmp" not in p.name for p in output.rglob("*") if p.name != ".notes.part")


def test_half_a_deleted_checkpoint_does_not_count(output, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.remove(latest(output))
    assert latest(output).name == "step_00000007"


def test_a_full_disk_names_the_file_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
        OSError, match=r"No space left on device \([\d,]+ bytes to write\); make room there.*model.safetensors"
    ):
        files.save_checkpoint(tmp_path, 1, Net(), None, {"step": 1}, {}, {})


# -- numbers -----------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    task = Task(Net())
    run(tmp_path, loop(steps=7))

    def spoil(model):
        task.model.b.weight.data[0, 0] = float("nan")
        return {"top1": 0.5}

    with pytest.raises(
        FloatingPointError, match=r"1 weights are NaN or infinite \(b.weight\), and are not saved.*step_00000007"
    ):
        run(
            tmp_path,
            loop(steps=11, save_every=11, evaluate_every=10, ema_decay=0, max_nonfinite=99),
            evaluate=spoil,
            task=task,
        )
    assert latest(tmp_path).name == "step_00000007"


def test_best_recovers_from_a_first_score_of_nan(tmp_path):
    scores = iter([float("nan"), 0.2, float("nan"), 0.1])
    settings = loop(steps=16, save_every=4, evaluate_every=4)
    _, result = run(tmp_path, settings, evaluate=lambda model: {"top1": next(scores)}, best="top1")
    assert (result.best, result.best_step) == (0.2, 8)


def test_a_clock_that_stands_still_does_no_harm(tmp_path, monkeypatch):
    import time

    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)
    assert run(tmp_path, loop(steps=8))[1].step == 8
