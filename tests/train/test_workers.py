"""Processes that load data: what they raise, and what becomes of a run when they die or hang."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from secvit.train import Schedule, latest
from tests.conftest import slow_but
from tests.train import small
from tests.train.small import Data, loop


def run(output, settings, **more):
    return small.run(output, settings, schedule=Schedule(kind="constant"), **more)


class Broken(Data):
    """A sample that cannot be read in some way."""

    def __init__(self, how, key=70):
        super().__init__()
        self.how, self.key = how, key

    def __getitem__(self, key):
        if key == self.key:
            self.how()
        return super().__getitem__(key)


def refuse():
    raise ValueError("photos/17.jpg: cut off")


def lose():
    raise FileNotFoundError(2, "No such file or directory", "photos/17.jpg")


def slip():
    raise KeyError("label")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


def step_of_key(key: int) -> int:
    from secvit.train.sampler import Keys

    return next(i for i, part in enumerate(Keys(50, 8, 0, 0, 99)) if key in part)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (refuse, ValueError, r"^photos/17.jpg: cut off$"),
        (lose, FileNotFoundError, r"^\[Errno 2\] No such file or directory: 'photos/17.jpg'$"),
    ],
)
def test_an_error_in_the_data_ends_the_run_with_its_own_words_and_the_state_saved(
    tmp_path, workers, how, kind, message
):
    with pytest.raises(kind, match=message):
        run(tmp_path, loop(workers=workers), data=Broken(how))
    assert latest(tmp_path).name == f"step_{step_of_key(70):08d}" and not multiprocessing.active_children()
    whole, _ = run(tmp_path / "whole", loop())
    resumed, _ = run(tmp_path, loop(workers=workers))
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_an_error_without_a_file_names_the_samples(tmp_path):
    with pytest.raises(
        ValueError, match=r"^samples [\d, ]+, \.\.\.: KeyError: 'label'$|^samples [\d, ]+: KeyError: 'label'$"
    ) as error:
        run(tmp_path, loop(workers=1), data=Broken(slip))
    assert "20" in str(error.value) and "in slip" in str(error.value.__cause__)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_loading_process_that_is_killed_ends_the_run_with_the_state_saved(tmp_path, workers):
    names = [f"photos/{i}.jpg" for i in range(50)]
    with pytest.raises(
        ValueError, match=r"ended from outside .*lack of memory; give fewer --loop.workers.*the turn of photos/"
    ):
        run(tmp_path, loop(workers=workers, steps=99), data=Broken(kill, 700), names=names)
    assert latest(tmp_path) and not multiprocessing.active_children()


def test_a_loading_process_that_hangs_ends_the_run(tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"gave nothing for 0.05 minutes.*--loop.data_timeout_minutes"):
        run(tmp_path, loop(workers=1, data_timeout_minutes=0.05), data=Broken(hang))
    assert time.monotonic() - began < 60 and not multiprocessing.active_children()
    assert latest(tmp_path).name == f"step_{step_of_key(70):08d}"


class Slow(Data):
    """Tells who loads it, and takes its time."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def __getitem__(self, key):
        self.file.write_text(str(os.getpid()))
        time.sleep(0.05)
        return super().__getitem__(key)


def train_slowly(folder, method):
    multiprocessing.set_start_method(method, force=True)
    run(folder / "run", loop(workers=1, steps=2000), data=Slow(folder / "pid"))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="asks Linux whether a process lives")
@pytest.mark.parametrize("method", slow_but(("forkserver",), ("fork", "forkserver")))
def test_a_killed_run_leaves_no_loading_process(tmp_path, method):
    process = multiprocessing.get_context("spawn").Process(target=train_slowly, args=(tmp_path, method))
    process.start()
    file, pid, deadline = tmp_path / "pid", "", time.monotonic() + 100
    try:
        while not pid:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
            pid = file.read_text() if file.exists() else ""
    finally:
        process.kill()
    while os.path.isdir(f"/proc/{pid}"):
        assert time.monotonic() < deadline, "still loads"
        time.sleep(0.05)
