"""Which of a command's words is the run, and options that had other names once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from secvit.runs import is_run

WITH_RUN = ("evaluate", "predict", "detect", "segment", "ask", "cluster", "app", "patch-report")
# what options were called once, and now; None: the value comes first, without an option
FORMER = {
    "--checkpoint": None,
    "--weights": None,
    "--image_size": "--size",
    "--min_size": "--size",
    "--short_side": "--size",
}


def modern(command: str, words: Sequence[str]) -> list[str]:
    """The words with `_` for `-` in options' names, and with former names answered by those of today."""
    new: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        new.append(option[:2] + option[2:].replace("-", "_") + equals + value if word.startswith("--") else word)
    if command not in WITH_RUN:
        return new
    run, new = _answered(command, new)
    alone = {"--model": "NAME", "--answers": "FILE.jsonl"} if command == "evaluate" else {"--model": "NAME"}
    if run is None and _run_in(new) is None:  # a name that stood alone
        for option in [option for option in alone if option in new[:-1]][:1]:
            at = new.index(option)
            run, new[at : at + 2] = new[at + 1], []
            _say(command, option, f"{alone[option]}, right after the command")
    elif run is not None and command == "patch-report" and (place := _run_in(new)) is not None:
        new[place : place + 1] = ["--model", new[place]]
    return new if run is None else ["--run", run, *new]


def _answered(command: str, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run that a former option named, if one did, and the words with today's options for former ones."""
    new, run = list(words), None
    for old, now in FORMER.items():
        for at in [at for at, word in enumerate(new) if word.partition("=")[0] == old]:
            if now:
                new[at] = now + new[at][len(old) :]
            elif "=" in new[at]:
                run, new[at] = new[at].partition("=")[2], ""
            elif at + 1 < len(new):
                run, new[at : at + 2] = new[at + 1], ["", ""]
            _say(command, old, f"{now} PX" if now else "RUN, right after the command")
    return run, [word for word in new if word]


def taken_run(words: Sequence[str], default: str | None = None) -> tuple[str, list[str]]:
    """The run that words are about, and the other words.

    It is what --run names, or the first word that names weights and is no option's value; else `default`.
    """
    if "--run" in words[:-1]:
        option = words.index("--run")
        if option and is_run(words[0]):
            raise ValueError(f"{words[0]} and --run {words[option + 1]}: two runs; give one")
        return words[option + 1], [*words[:option], *words[option + 2 :]]
    at = _run_in(words)
    if at is None and default is None:
        is_option = [word.startswith("-") for word in words]
        at = next((at for at in range(len(words)) if not is_option[at] and (not at or not is_option[at - 1])), None)
        if at is None or not words[at]:
            raise ValueError("which run?  Give the folder of `secvit train`, or secvit_nano.clothing10")
    if at is None:
        first = Path(words[0]) if words else Path()
        if len(first.parts) > 1 and not first.name.startswith("-") and not first.suffix and not first.exists():
            raise ValueError(f"{words[0]}: no such run, photo or folder")
        return str(default), list(words)
    return words[at], [*words[:at], *words[at + 1 :]]


def _say(command: str, old: str, now: str) -> None:
    print(f"secvit {command}: {old} is now {now}", file=sys.stderr)


def _run_in(words: Sequence[str]) -> int | None:
    """The place of the run among the words: the first that is one and no option's value."""
    places = [
        at
        for at, word in enumerate(words)
        if not word.startswith("-") and (not at or words[at - 1] != "--model") and is_run(word)
    ]
    alone = [at for at in places if at == 0 or not words[at - 1].startswith("--") or "=" in words[at - 1]]
    return next(iter(alone or places), None)
