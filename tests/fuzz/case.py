"""One input, and the verdict on what the package does with it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# right: accepted, and what came of it is verified.  clear: refused by an error that names file and entry.
# refused: the same, though the input was fine.  silent: accepted, though it is wrong or came out wrong.
# traceback: another exception, or an error without the file.  hang: more than the time or the memory, or a crash.
VERDICTS = ("right", "clear", "refused", "traceback", "hang", "silent")
FAILURES = ("traceback", "hang", "silent")


@dataclass(frozen=True)
class Case:
    """An input.

    change: what is odd about it.  meant: "harmless" must be accepted, "wrong" must be refused, "either" may be both.
    names: an error says one of these, the file's path or the option.  entries: and one of these, if there are any.
    data: what the area's `run` takes.
    """

    change: str
    meant: Literal["harmless", "wrong", "either"]
    names: tuple[str, ...]
    data: Any = None
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of an input.  group: what failures have in common.  details: for whoever looks into it."""

    kind: str
    group: str = ""
    details: str = ""
    change: str = field(default="", compare=False)


def judge(case: Case, run: Callable[[Case], str]) -> Verdict:
    """Run a case, and say what became of it."""
    try:
        fault = run(case)
    except MemoryError as error:
        return Verdict("hang", f"MemoryError {place(error)}", traceback.format_exc()[-4000:], case.change)
    except Exception as error:
        return _refusal(case, error)
    if not fault and case.meant != "wrong":
        return Verdict("right", change=case.change)
    group = f"accepted: {case.change}" if not fault else f"{case.change}: {_kind(fault)}"
    return Verdict("silent", group, fault or f"accepted, though it must be refused: {case.change}", case.change)


def _refusal(case: Case, error: Exception) -> Verdict:
    said = str(error)
    if not isinstance(error, ValueError):
        return Verdict(
            "traceback", f"{type(error).__name__} {place(error)}", traceback.format_exc()[-4000:], case.change
        )
    for wanted, what in ((case.names, "file"), (case.entries, "entry")):
        if wanted and not any(name in said for name in wanted):
            group = f"{type(error).__name__} without the {what} {place(error)}"
            return Verdict("traceback", group, f"expected one of {wanted} in:\n{said[:2000]}", case.change)
    kind = "refused" if case.meant == "harmless" else "clear"
    return Verdict(kind, f"{case.change} {place(error)}", said[:2000], case.change)


def _kind(fault: str) -> str:
    """What faults of one kind have in common: their words without paths and figures."""
    return " ".join(word for word in fault.splitlines()[0].split() if not re.search(r"[/\d\[(]", word))[:60]


def place(error: BaseException) -> str:
    """The innermost line of the package that an exception went through."""
    steps = traceback.extract_tb(error.__traceback__)
    ours = [step for step in steps if "secvit" in Path(step.filename).parts]
    step = (ours or steps)[-1]
    where = Path(step.filename)
    return f"at {where.parent.name}/{where.name}:{step.lineno} {step.name}"
