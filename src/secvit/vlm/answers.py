"""Answers as LLaVA writes them, {"question_id", "prompt", "text", ...} a line, and the questions that they answer."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secvit.fields import Entry, abridged, any_text
from secvit.vlm.benchmarks import Question
from secvit.vlm.rows import each, row_id

Key = tuple[str, str]  # (id, ""), or (id, prompt) where several questions share an id


def keys(questions: Sequence[Question]) -> list[Key]:
    """What tells questions apart.  Those of the same id and prompt are one."""
    shared = _shared(questions)
    return [_key(question.id, question.prompt, shared) for question in questions]


def row_keys(questions: Sequence[Question], rows: Sequence[Mapping[str, Any]], where: str = "answers") -> list[Key]:
    """The key of the question that each row answers; a ValueError where rows are no lines of LLaVA's."""
    shared = _shared(questions)

    def made(row: Entry) -> Key:
        row.get("text", any_text)
        return _key(row.get("question_id", row_id), row.get("prompt", any_text, ""), shared)

    return each(where, ((f"line {number}", row) for number, row in enumerate(rows, 1)), made)


def match(questions: Sequence[Question], rows: Sequence[Mapping[str, Any]], where: str = "answers") -> list[str]:
    """The text for each question, in their order; a ValueError with the ids where rows and questions do not fit."""
    wanted, answered = keys(questions), defaultdict(list)
    for key, row in zip(row_keys(questions, rows, where), rows, strict=True):
        answered[key].append(any_text(row["text"]))
    copies = Counter(wanted)
    faults = {
        "without an answer": [key for key in copies if key not in answered],
        "answered more than once": [key for key in copies if len(answered.get(key, ())) > copies[key]],
        "that the benchmark does not ask": [key for key in answered if key not in copies],
    }
    if any(faults.values()):
        problems = [
            f"{len(some)} {what} (ids {abridged([i for i, _ in some])})" for what, some in faults.items() if some
        ]
        raise ValueError(f"{where} does not fit {len(questions)} questions: {'; '.join(problems)}")
    return [answered[key][0] for key in wanted]


def mend(path: Path) -> None:
    """Take off a last line that has no end: it was cut off while it was written."""
    complete = path.read_bytes().rfind(b"\n") + 1
    if complete < path.stat().st_size:
        os.truncate(path, complete)


def _shared(questions: Sequence[Question]) -> set[str]:
    counts = Counter(str(question.id) for question in questions)
    return {i for i, count in counts.items() if count > 1}


def _key(i: str | int, prompt: str, shared: set[str]) -> Key:
    return str(i), prompt if str(i) in shared else ""
