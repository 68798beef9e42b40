"""A process that inputs are run in, limited in time and memory, and replaced when one of them ends it."""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import AREAS
from tests.fuzz.case import FAILURES, judge

GRACE = 15  # seconds more than the limit until a process that does not end by itself is killed
ANSWER = "fuzz> "  # begins the lines of the protocol; whatever else an input prints is passed over


@dataclass(frozen=True)
class Result:
    """What became of one input, as in `Verdict`."""

    index: int
    kind: str
    group: str
    details: str
    change: str
    seconds: float


class Worker:
    """Runs inputs in a process of its own."""

    def __init__(self, seed: int, keep: Path, limit: float, memory: int, areas: Sequence[str] = tuple(AREAS)) -> None:
        self.areas = areas
        self.seed, self.keep, self.limit, self.memory = seed, keep.absolute(), limit, memory
        self.process: subprocess.Popen[str] | None = None
        self.room = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()
        shutil.rmtree(self.room, ignore_errors=True)

    def run(self, area: str, numbers: Sequence[int]) -> Iterator[Result]:
        for index in numbers:
            process = self.process or self._begin()
            process.stdin.write(json.dumps([area, index]) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            start = time.monotonic()
            answer = self._answer(start + self.limit + GRACE)
            if answer is None:
                yield self._died(area, index, time.monotonic() - start)
            elif "broken" in answer:
                raise RuntimeError(f"the harness itself failed, {area} {index}:\n{answer['broken']}")
            else:
                yield Result(index=index, **answer)

    def _begin(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "tests.fuzz.worker", *map(str, (self.seed, self.keep, self.limit, self.memory))]
        # one arena and one thread: what is limited is the address space
        quiet = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        with open(self.room / "stderr", "w") as errors:
            self.process = subprocess.Popen(
                [*words, str(self.room), *self.areas], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                bufsize=1, env={**os.environ, **quiet}, start_new_session=True,
            )  # fmt: skip
        if self._answer(time.monotonic() + 300) is None:
            raise RuntimeError(f"a worker does not start:\n{(self.room / 'stderr').read_text()[-3000:]}")
        return self.process

    def _answer(self, until: float) -> dict[str, Any] | None:
        """The next answer; None if the process has ended, or has to be ended."""
        out = self.process.stdout  # type: ignore[union-attr]
        while select.select([out], [], [], max(0, until - time.monotonic()))[0]:  # type: ignore[list-item]
            line = out.readline()  # type: ignore[union-attr]
            if not line:
                return None
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        return None

    def _died(self, area: str, index: int, seconds: float) -> Result:
        """The verdict on an input that ended its process; the stack is in its stderr."""
        code = self._end()
        said = (self.room / "stderr").read_text(errors="replace")[-20_000:]
        stack = [line.strip() for line in said.splitlines() if line.lstrip().startswith("File ")]
        ours = [line for line in stack if "/secvit/" in line]
        why = f"over {self.limit:g} s" if seconds > self.limit - 1 else f"the process ended with {code}"
        where = (ours or stack or ["unknown place"])[0].rpartition("/secvit/")[2]
        keep_input(self.room / "input", self.keep, area, self.seed, index, "hang", said)
        return Result(index, "hang", f"{why} {where}", said, (self.room / "change").read_text(), seconds)

    def _end(self) -> int | None:
        process, self.process = self.process, None
        if process is None:
            return None
        process.stdin.close()  # type: ignore[union-attr]
        try:
            return process.wait(2)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()
        finally:
            process.stdout.close()  # type: ignore[union-attr]


def keep_input(folder: Path, keep: Path, area: str, seed: int, index: int, kind: str, details: str) -> None:
    """Copy a failing input where it can be looked at; pipes, which cannot be copied, are named in the verdict."""
    place, pipes = keep / f"{area}-{seed}-{index}-{kind}", [path for path in folder.rglob("*") if path.is_fifo()]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    named = "".join(f"{path.relative_to(folder)} is a pipe\n" for path in pipes)
    (place / "verdict.txt").write_text(named + details, errors="replace")
    for path in pipes:
        path.unlink()
    shutil.copytree(folder, place / "input", symlinks=True)


def one(area: str, seed: int, index: int, room: Path, limit: float) -> Result:
    """Make and judge one input in the folder `input` of a folder."""
    module = importlib.import_module(f"tests.fuzz.{area}")
    folder = room / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = module.make(random.Random(f"{seed} {area} {index}"), folder)
    (room / "change").write_text(f"{case.change} ({case.meant})", errors="replace")
    start = time.monotonic()
    faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)
    try:
        verdict = judge(case, module.run)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return Result(index=index, seconds=round(time.monotonic() - start, 3), **asdict(verdict))


def show_one(area: str, seed: int, index: int, keep: Path, limit: float) -> int:
    """Run one input in this process and print all that is known of it."""
    _quiet()
    room = keep / f"{area}-{seed}-{index}"
    result = one(area, seed, index, room, limit)
    print(f"{result.kind}: {result.change}\n{result.group}\n\n{result.details}\n{result.seconds} s; {room}/input")
    return 1 if result.kind in FAILURES else 0


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()])


def serve(seed: int, keep: Path, limit: float, memory: int, room: Path, areas: Sequence[str]) -> None:
    """Run the inputs that are asked for on standard input."""
    _quiet()
    for area in areas:  # before memory is limited: what they import does not count
        importlib.import_module(f"tests.fuzz.{area}")
    if sys.platform == "linux":  # elsewhere the address space of a process is not in /proc
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + memory * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    faulthandler.enable(sys.__stderr__)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    print(ANSWER + "{}", file=out)
    for line in sys.stdin:
        area, index = json.loads(line)
        try:
            result = one(area, seed, index, room, limit)
        except Exception:
            print(ANSWER + json.dumps({"broken": traceback.format_exc()}), file=out)
            continue
        if result.kind in FAILURES:
            keep_input(room / "input", keep, area, seed, index, result.kind, result.details)
        answer = {key: value for key, value in asdict(result).items() if key != "index"}
        print(ANSWER + json.dumps(answer), file=out)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), sys.argv[6:])
