"""Runs that are killed at any moment go on to the bit, and leave nothing behind.  Slow: many processes."""

import multiprocessing
import os
import random
import signal
import socket
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

KILLS = int(os.environ.get("SECVIT_KILLS", "6"))
SETTINGS = {"batch_size": 8, "parts": 2, "steps": 60 + 8 * KILLS, "save_every": 2, "evaluate_every": 6, "log_every": 1}


def score(model):
    return {"top1": float(sum(p.sum() for p in model.parameters()))}


def go(output, workers=0):
    return run(output, loop(workers=workers, clip_grad=0.5, **SETTINGS), evaluate=score, best="top1")[1]


def die_at(folder, count):
    """Kill this process before its so many-th open, rename, removal, ... below a folder; 0 for never."""
    left = count

    def hook(event, args):
        nonlocal left
        if event in CHANGES and any(isinstance(a, (str, os.PathLike)) and str(a).startswith(folder) for a in args):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if count:
        sys.addaudithook(hook)


CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def begin(output, workers, processes, counts):
    """The run on so many processes, each of which dies before its own count of changes of files (0: it does not).

    They are forked off a process that has imported what they need, so that each costs no seconds.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    begun = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        where = (output, workers, counts[rank], place if processes > 1 else {}, said(output, rank))
        begun.append(server.Process(target=child, args=where))
        begun[-1].start()
    return begun


def child(output, workers, count, place, errors):
    os.environ.update(place)
    torch.set_num_threads(1)
    with open(errors, "w") as file:
        os.dup2(file.fileno(), 2)
    die_at(str(output), count)
    go(output, workers)


def said(output, rank):
    """The file of what a process writes to its standard error, beside the run."""
    return output.with_name(f"{output.name}.{rank}.txt")


def children(pid):
    """The loading processes of a run, on Linux."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * KILLS)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (1, 1), (0, 2)])
def test_a_run_killed_again_and_again_is_the_unbroken_one(tmp_path, monkeypatch, workers, processes):
    """SIGKILL at random: of one process or of all, of one that loads data; at a moment, or before a change of a file."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    unbroken = go(whole)  # two parts on one process are one part on each of two
    seed = random.SystemRandom().randrange(2**32)
    chance, kills, reached, kinds = random.Random(seed), 0, [], {}
    while kills < KILLS:
        counts = [0] * processes
        if (kind := chance.choice(["moment", "change", "change", *["worker"] * workers])) == "change":
            counts[0] = chance.randrange(1, 100)  # the others change no file
        begun = begin(cut, workers, processes, counts)
        before, deadline = latest(cut), time.monotonic() + 120
        early = chance.random() < 0.2  # before the first save of this process
        while all(p.is_alive() for p in begun) and (kind == "change" or (not early and latest(cut) == before)):
            assert time.monotonic() < deadline, f"seed {seed}: {kind}"
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        if kind == "worker" and (loading := children(begun[0].pid)):
            os.kill(chance.choice(loading), signal.SIGKILL)
        elif kind != "change":
            for process in chance.choice([begun, begun[:1], begun[-1:]]):
                process.kill()
        ended = time.monotonic() + 30
        for rank, process in enumerate(begun):  # one that lost the others, or its data, ends by itself, soon
            process.join(max(ended - time.monotonic(), 0.1))
            if process.is_alive():
                assert processes > 1, f"seed {seed}: {kind}: hangs"
                process.kill()
                process.join()
            if kind == "worker" and process.exitcode not in (0, -signal.SIGKILL):
                assert "that loads data was ended from outside" in said(cut, rank).read_text()
        kills += (ended_early := any(process.exitcode for process in begun))
        kinds[kind] = kinds.get(kind, 0) + ended_early
        last = latest(cut)
        reached.append(int(last.name[5:]) if last else 0)
        if not ended_early:
            break  # came to its end
    for rank, process in enumerate(begin(cut, workers, processes, [0] * processes)):
        process.join()
        assert process.exitcode == 0, said(cut, rank).read_text()
    result = go(cut, workers)  # reads what is there
    about = f"seed {seed}, kills {kinds}, newest checkpoints {reached}"
    print(about)
    assert (result.step, result.best, result.best_step) == (unbroken.step, unbroken.best, unbroken.best_step), about
    for name in ("log.csv", "eval.csv"):
        assert rows(cut / name) == rows(whole / name), about
    assert [p.name for p in files.complete(cut)] == [p.name for p in files.complete(whole)], about
    for file in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(latest(n) / file) for n in (whole, cut))
        assert all(torch.equal(a[name], b[name]) for name in a), about
    found, wanted = ({p.relative_to(n) for p in n.rglob("*")} for n in (cut, whole))
    assert found == wanted, about
