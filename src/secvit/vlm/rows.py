"""Rows of the benchmarks' files, JSON Lines, JSON and tables: typed, and every fault named with file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from secvit import fields
from secvit.fields import Entry, Faults, Wrong, any_text, integer, items

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


# -- files -------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON object a line; a ValueError names the file and the lines."""
    return each(path, _lines(path), lambda row: dict(row.fields))


def lines(path: Path, make: Callable[[Entry], T]) -> list[T]:
    """What is made of each line of a JSON Lines file, in order."""
    return each(path, _lines(path), make)


def entries(path: Path, make: Callable[[Entry], T], name: str | None = None, missing_ok: bool = False) -> list[T]:
    """What is made of each object of a JSON list, or of the list `name` of a JSON object; maybe [] without a file."""
    if missing_ok and not path.is_file():
        return []
    content = fields.read_json(path)
    try:
        values = Entry("the file", content).get(name, items) if name else items(content)
    except Wrong as error:
        raise ValueError(f"{path}: {fields.shown(content)}, expected {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    where = f"{name}, entry" if name else "entry"
    return each(path, ((f"{where} {i}", value) for i, value in enumerate(values)), make)


def table(path: Path, columns: Iterable[str], delimiter: str) -> list[dict[str, str]]:
    """The rows of a table with a head; a ValueError names missing columns, and lines of another number of fields."""
    csv.field_size_limit(2**31 - 1)  # an image is one field
    rows = csv.reader(io.StringIO(fields.read_text(path), newline=""), delimiter=delimiter)
    faults, records = Faults(path), []
    try:
        head = next(rows, [])
        if lacking := sorted({*columns} - {*head}):
            raise ValueError(f"{path}: has no column {', '.join(lacking)}")
        if twice := sorted({name for name in head if head.count(name) > 1}):
            raise ValueError(f"{path}: has more than one column {', '.join(map(repr, twice))}; leave one")
        for row in rows:
            if len(row) == len(head):
                records.append(dict(zip(head, row, strict=True)))
            elif row:
                faults.add(f"line {rows.line_num}: {len(row)} fields, expected the head's {len(head)}")
    except csv.Error as error:
        faults.add(f"line {rows.line_num}: {error}")
    faults.check("write or copy it again")
    return records


def each(path: str | Path, rows: Iterable[tuple[str, Any]], make: Callable[[Entry], T]) -> list[T]:
    """What is made of (where, value) pairs; one ValueError has the faults of all of them."""
    faults, results = Faults(path), []
    for where, value in rows:
        try:
            if isinstance(value, _NoJSON):
                raise ValueError(f"{where}: {value}")
            results.append(make(Entry(where, value)))
        except ValueError as error:
            faults.add(error)
    faults.check()
    return results


class _NoJSON(str):
    """Why a line is not JSON."""


def _lines(path: Path) -> Iterable[tuple[str, Any]]:
    content = fields.read_text(path).split("\n")  # splitlines would cut at signs inside of strings
    for number, line in enumerate(content, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=fields.once)
        except RecursionError:
            value = _NoJSON("nested too deeply to be read")
        except ValueError as error:
            cut = ", is the file cut off?" if number == len(content) else ""
            value = _NoJSON(f"not JSON ({str(error)[:200]}){cut}")
        yield f"line {number}", value


def by_key(path: Path, pairs: Iterable[tuple[K, T]]) -> dict[K, T]:
    """A dict; a ValueError where a key has two values that differ."""
    values: dict[K, T] = {}
    for key, value in pairs:
        if values.setdefault(key, value) != value:
            raise ValueError(f"{path}: {key!r} occurs twice, with other content; leave one")
    return values


# -- fields ------------------------------------------------------------------------------------


def row_id(value: Any) -> int | str:
    """What names a question, as the file has it: text, or a whole number."""
    if isinstance(value, str) and value.strip():
        return value
    try:
        return integer(value)
    except Wrong:
        raise Wrong("text or a whole number") from None


def key(value: Any) -> str:
    """What names a question or image, as text, so that 7 and "7" are the same."""
    return str(row_id(value))


def file_name(value: Any) -> str:
    """A path below a folder."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise Wrong("the path of a file")
    return value


def yes_no(value: Any) -> str:
    if not isinstance(value, str) or value.strip().lower() not in ("yes", "no"):
        raise Wrong("yes or no")
    return value.strip().lower()


def people(value: Any) -> list[str]:
    """What several people answered, a list of texts or of {"answer": text}."""
    answers = [one.get("answer") if isinstance(one, dict) else one for one in items(value)]
    try:
        if not answers:
            raise Wrong("one")
        return [any_text(one) for one in answers]
    except Wrong:
        raise Wrong('a list of answers, texts or {"answer": text}') from None
