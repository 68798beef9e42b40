"""Reasons to end a run early but cleanly: Ctrl-C, SIGTERM (a scheduler's), the time limit."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class Stop:
    """While entered, the first SIGINT or SIGTERM sets `reason` and says so; a second one interrupts at once."""

    def __init__(self, minutes: float, silent: bool = False) -> None:
        self.silent = silent
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.signalled = ""
        self.previous: dict[int, Any] = {}

    @property
    def reason(self) -> str:
        return self.signalled or ("time limit" if time.monotonic() >= self.deadline else "")

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = "interrupted" if number == signal.SIGINT else "terminated"
        signal.signal(number, self.previous[number])
        if not self.silent:
            again = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            logger.warning("stopping after this step, which is saved; %s once more stops at once", again)
