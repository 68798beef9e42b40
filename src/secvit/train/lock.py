"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
NAME = "run.lock"
BEAT = 20.0  # seconds between two signs of life of a run
SILENT = 300.0  # without one, a run on another host is over


class Lock:
    """OUTPUT/run.lock, made with O_EXCL, which holds on NFS too: who is writing there.

    A lock is stale, and taken over, if its process is gone (same host), or if it has not been touched for five
    minutes (another host, or another container).
    """

    def __init__(self, output: Path) -> None:
        self.path, self.token = output / NAME, uuid.uuid4().hex
        self.over = threading.Event()

    def take(self) -> None:
        """ValueError if another run holds it."""
        for _ in range(100):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._judge()
                continue
            with open(handle, "w") as file:
                json.dump({**_self(), "started": time.strftime("%Y-%m-%d %H:%M:%S"), "token": self.token}, file)
                file.flush()
                os.fsync(file.fileno())
            threading.Thread(target=self._beat, daemon=True, name="run.lock").start()
            return
        raise ValueError(f"{self.path}: taken again and again by other runs; give another --output")

    def check(self) -> None:
        """ValueError if another run took the folder over, while this one was taken for dead; made anew if deleted."""
        if (holder := self._holder()) is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.take()
        elif holder.get("token") != self.token:
            raise ValueError(f"{self.path}: {_who(holder)} took this folder over; this run ends without saving there")

    def release(self) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            if (self._holder() or {}).get("token") == self.token:
                self.path.unlink()

    def _judge(self) -> None:
        """Remove the lock that is there if it is stale, or raise."""
        holder = self._holder()
        if holder is None:
            return  # given back in the meantime
        if not holder:  # being written just now, or by a process that was killed at that moment
            if self._age() < 5:
                time.sleep(0.2)
                return
            over = True
        elif all(holder.get(key) == value for key, value in _here().items()):
            over = not _alive(holder)
        else:
            over = self._age() > SILENT
        if not over:
            raise ValueError(
                f"{self.path.parent}: another run is writing there ({_who(holder)}); wait for it or give another "
                f"--output. If it is over, delete {self.path}"
            )
        logger.warning("%s: taken over from %s, which is over", self.path, _who(holder))
        aside = self.path.with_name(f"{NAME}.{self.token}")
        with contextlib.suppress(FileNotFoundError):  # of two that take over, one gets it
            os.rename(self.path, aside)
            aside.unlink()

    def _holder(self) -> dict[str, Any] | None:
        """What the lock says; {} if it is empty or unreadable, None if there is none."""
        try:
            content = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _age(self) -> float:
        """Seconds since the lock was touched, by the clock of the folder's own file system."""
        try:
            with tempfile.TemporaryFile(dir=self.path.parent) as now:
                now.write(b"\0")
                now.flush()
                return os.fstat(now.fileno()).st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _self() -> dict[str, Any]:
    return {"pid": os.getpid(), **_here(), "born": _born(os.getpid())}


def _here() -> dict[str, str]:
    """Where process numbers mean the same: the host, and on Linux the container."""
    try:
        return {"host": socket.gethostname(), "space": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"host": socket.gethostname(), "space": ""}


def _born(pid: int) -> str:
    """When a process began, on Linux, since numbers are used again; "" elsewhere, and for one that is gone."""
    try:
        about = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return "" if about[0] in "ZX" else f"{boot} {about[19]}"


def _alive(holder: dict[str, Any]) -> bool:
    pid, born = holder.get("pid"), holder.get("born")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if born:
        return _born(pid) == born
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "a run that left no name"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
