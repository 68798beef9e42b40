"""Programs in processes of their own, forked from one that has torch and timm imported.

A Python that begins anew takes seconds of processor time for these imports, and the tests begin hundreds.  What a
program finds is otherwise what a new Python has: its own arguments, folder, environment, signals, standard streams,
exit.  Tests of what is imported, and of variables that an import reads, take `subprocess` instead.

`python fresh.py SOCKET` serves; `python fresh.py SOCKET WORDS` is `python WORDS` by that server, for shells.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import Any

PRELOADED = ("torch", "timm", "torchvision.transforms.v2", "matplotlib.pyplot", "accelerate")
LENGTH = 8  # bytes of the length before a request
_servers: dict[int, tuple[Any, str]] = {}


# -- for tests -----------------------------------------------------------------------------------


class Program:
    """A program that runs, as `subprocess.Popen` has it."""

    def __init__(self, words: Sequence[str], streams: Sequence[int], cwd: Any, env: Any, session: bool) -> None:
        self.args, self.returncode, self.stdout = list(words), None, None
        self._status = request(address(), words, streams, cwd, env, session)
        self.pid = int(_line(self._status))

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._status.settimeout(timeout or 1e-6 if timeout is not None else None)
            try:
                line = _line(self._status)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._status.close()
            self.returncode = int(line)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it still writes, and its end."""
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.stdout.close()
        self.wait(timeout)
        return said[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stdout is not None:
            self.stdout.close()
        self.wait()


def start(words: Sequence[str], *, cwd: Any = None, env: Any = None, session: bool = False) -> Any:
    """`python WORDS`, whose output and errors are read from `stdout`.  session: a process group of its own."""
    if sys.platform != "linux":
        return subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=env, text=True, start_new_session=session,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    reading, writing = os.pipe()
    with open(os.devnull) as nothing:
        program = Program(words, (nothing.fileno(), writing, writing), cwd, env, session)
    os.close(writing)
    program.stdout = open(reading, encoding="utf-8")  # noqa: SIM115
    return program


class Running:
    """`python WORDS` in a process group of its own, what it writes kept; what still runs at the end is killed."""

    def __init__(self, words: Sequence[str], *, cwd: Any = None, env: Any = None) -> None:
        self.words = list(words)
        self.out, self.err = TemporaryFile(), TemporaryFile()  # noqa: SIM115
        with open(os.devnull) as nothing:
            streams = (nothing.fileno(), self.out.fileno(), self.err.fileno())
            if sys.platform == "linux":
                self.program: Any = Program(self.words, streams, cwd, env, True)
            else:
                self.program = subprocess.Popen(
                    [sys.executable, *self.words], cwd=cwd, env=env, start_new_session=True,
                    **dict(zip(("stdin", "stdout", "stderr"), streams)),
                )  # fmt: skip
        self.poll, self.wait = self.program.poll, self.program.wait

    def written(self) -> tuple[str, str]:
        """Output and errors so far."""
        texts = []
        for stream in (self.out, self.err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
        return texts[0], texts[1]

    def finish(self) -> tuple[str, str]:
        """End it, if it does not end by itself, and what it has written."""
        if self.poll() is None:
            os.killpg(self.program.pid, signal.SIGKILL)
            self.wait()
        return self.written()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        self.out.close()
        self.err.close()


def run(
    words: Sequence[str], *, cwd: Any = None, env: Any = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` to its end, with what it wrote."""
    with Running(words, cwd=cwd, env=env) as running:
        code = running.wait(timeout)
        return subprocess.CompletedProcess(list(words), code, *running.written())


def shell_words() -> str:
    """`python` for a shell."""
    words = [sys.executable, "-S", "-E", __file__, address()] if sys.platform == "linux" else [sys.executable]
    return shlex.join(words)


def address() -> str:
    """The socket of this process's server, which begins when first asked for and ends with the process."""
    if os.getpid() not in _servers:
        path = f"{mkdtemp(prefix='secvit_fresh_')}/socket"
        quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(
            [sys.executable, __file__, path], stdin=subprocess.PIPE, env=quiet, start_new_session=True
        )
        atexit.register(_end, server, path)
        _servers[os.getpid()] = server, path
        deadline = time.monotonic() + 300
        while not os.path.exists(path):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server of fresh programs does not start")
            time.sleep(0.01)
    return _servers[os.getpid()][1]


def _end(server: Any, path: str) -> None:
    server.stdin.close()
    server.wait()
    Path(path).unlink(missing_ok=True)
    Path(path).parent.rmdir()


# -- between the two -------------------------------------------------------------------------------


def request(
    path: str, words: Sequence[str], streams: Sequence[int], cwd: Any = None, env: Any = None, session: bool = False
) -> socket.socket:
    """Ask for `python WORDS`.  The answer: a line with its process number, and one with its exit code at its end."""
    answers = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    answers.connect(path)
    wanted = {
        "words": [str(word) for word in words], "cwd": str(cwd or os.getcwd()), "session": session,
        "env": dict(os.environ if env is None else env),
    }  # fmt: skip
    content = json.dumps(wanted).encode()
    socket.send_fds(answers, [len(content).to_bytes(LENGTH, "big")], streams)
    answers.sendall(content)
    return answers


def _line(answers: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := answers.recv(1)):
            raise RuntimeError("the server of fresh programs is gone")
        line += byte
    return line


# -- the server --------------------------------------------------------------------------------------


def serve(path: str) -> dict[str, Any]:
    """Fork for each request.  Returns in the program's own process alone, with what it is to run."""
    import gc
    from importlib import import_module

    for name in PRELOADED:
        try:
            import_module(name)
        except ImportError:  # of an extra
            continue
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever waits is waited for by nobody
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path + ".new")
    listening.listen()
    os.rename(path + ".new", path)
    while True:
        if 0 in select.select([listening, 0], [], [])[0]:  # the tests are over
            sys.exit()
        answers, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return _begin(answers)
        answers.close()


def _begin(answers: socket.socket) -> dict[str, Any]:
    """In a process that waits for the program and says how it ended; returns in the program's own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(answers, LENGTH, 3)
    left, content = int.from_bytes(length, "big"), b""
    while len(content) < left:
        content += answers.recv(left - len(content))
    program = os.fork()
    if program:
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        try:
            answers.sendall(f"{program}\n".encode())
            _, status = os.waitpid(program, 0)
            answers.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        finally:
            os._exit(0)
    answers.close()
    wanted = json.loads(content)
    if wanted["session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(wanted["cwd"])
    before = os.environ.get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(wanted["env"])
    return wanted | {"paths": [before.split(os.pathsep), os.environ.get("PYTHONPATH", "").split(os.pathsep)]}


def execute(words: list[str], paths: list[list[str]]) -> None:
    """`python WORDS` in this process.  paths: in PYTHONPATH of the server, and of the program."""
    import runpy

    before, own = paths
    known = [entry for entry in sys.path[1:] if entry not in before]  # [0] is this file's folder
    own = [os.path.abspath(entry) for entry in own if entry]
    kind, *rest = words
    if kind == "-c":
        code, *arguments = rest
        sys.argv, sys.path[:] = ["-c", *arguments], ["", *own, *known]
        exec(compile(code, "<string>", "exec"), vars(_new_main()))
    elif kind == "-m":
        module, *arguments = rest
        sys.argv, sys.path[:] = [module, *arguments], [os.getcwd(), *own, *known]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif kind == "-":
        sys.argv, sys.path[:] = words, ["", *own, *known]
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), vars(_new_main()))
    else:
        sys.argv, sys.path[:] = words, [os.path.dirname(os.path.abspath(kind)), *own, *known]
        main = _new_main()
        main.__file__ = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), vars(main))


def _new_main() -> Any:
    from types import ModuleType

    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    return main


def client(path: str, words: list[str]) -> int:
    """Run by the server, with this process's streams; signals are passed on."""
    answers = request(path, words, (0, 1, 2))
    program = int(_line(answers))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(program, number))
    code = int(_line(answers))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asked = serve(sys.argv[1])
        execute(asked["words"], asked["paths"])
    else:
        sys.exit(client(sys.argv[1], sys.argv[2:]))
