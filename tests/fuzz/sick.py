"""Inputs that misbehave on purpose, for the tests of this harness; no area of its own."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from tests.fuzz.case import Case

KINDS = ("sleep", "memory", "abort", "fine")


def make(rng: random.Random, folder: Path) -> Case:
    (folder / "input.txt").write_text("x")
    kind = (folder.parent / "kind").read_text()
    return Case(kind, "harmless", (str(folder),), kind)


def run(case: Case) -> str:
    if case.data == "sleep":
        time.sleep(60)
    elif case.data == "memory":
        bytearray(2**40)
    elif case.data == "abort":
        os.abort()
    return ""
