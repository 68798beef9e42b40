"""CSV files of paths and labels: columns path, label and, if wanted, split; a .tsv is separated by tabs."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from secvit.fields import read_text
from secvit.images.files import LeftOut, kind_of
from secvit.images.labelled import Images, Source, number_labels
from secvit.images.words import SPLIT_WORDS, SPLITS, class_names, split_of

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
COLUMNS = ("path", "label", "split")


class Row(NamedTuple):
    """One image: the line that names it, its file, its class."""

    line: int
    file: str
    label: str


def table_sources(path: Path) -> dict[str, Source]:
    """The splits of a file with a column `split`; without one, all is "train"."""
    parts = _rows(path)
    if None in parts:
        return {"train": _source(path, path.stem, parts[None])}
    _check_labels((path, row) for rows in parts.values() for row in rows)
    return {split: _source(path, split, parts[split]) for split in SPLITS if split in parts}


def table_source(path: Path, split: str) -> Source:
    """A file that is one split as a whole; a column `split` that says another one throughout is refused."""
    parts = _rows(path)
    rows = [row for part in parts.values() for row in part]
    if others := [str(other) for other in parts if other not in (None, split)]:
        if split not in parts:
            raise ValueError(
                f"{path}: {split} by its name, but {', '.join(others)} by its column 'split'; rename the file, or "
                "correct or remove the column"
            )
        logger.warning(
            "%s: %d of %d lines are %s by the column 'split', but all are read as %s, by the name of the file; "
            "give the file itself as the data to divide it by the column",
            *(path, len(rows) - len(parts[split]), len(rows), ", ".join(others), split),
        )
    return _source(path, path.stem, rows)


def check_labels(paths: Sequence[Path]) -> None:
    """A ValueError where the tables of several splits name one file under two labels."""
    if len(paths) > 1:
        _check_labels((path, row) for path in paths for rows in _rows(path).values() for row in rows)


def _check_labels(rows: Iterable[tuple[Path, Row]]) -> None:
    seen: dict[str, tuple[Path, Row]] = {}
    for path, row in rows:
        place, other = seen.setdefault(os.path.abspath(row.file), (path, row))
        if other.label != row.label:
            second = f"in line {row.line}" if path == place else f"in {path}, line {row.line}"
            raise ValueError(
                f"{place}: {row.file} is {other.label!r} in line {other.line} and {row.label!r} {second}; "
                "keep one of them"
            )


def _source(path: Path, name: str, rows: Sequence[Row]) -> Source:
    return Source(partial(_read, path, name, rows), lambda: class_names(row.label for row in rows))


def _read(path: Path, name: str, rows: Sequence[Row], classes: tuple[str, ...] | None) -> Images:
    """The images of some rows; that each file exists and has one label is checked, contents are not."""
    seen: dict[str, Row] = {}
    for row in rows:
        other = seen.setdefault(os.path.normpath(row.file), row)
        if other.label != row.label:
            raise ValueError(
                f"{path}: {row.file} is {other.label!r} in line {other.line} and {row.label!r} in line {row.line}; "
                "keep one of them"
            )
    once = list(seen.values())
    missing = [row for row, there in zip(once, _there(row.file for row in once), strict=True) if not there]
    if missing:
        first = ", ".join(f"{row.file} (line {row.line})" for row in missing[:3])
        raise ValueError(
            f"{path}: {len(missing)} of {len(seen)} files do not exist: {first}"
            f"{', ...' if len(missing) > 3 else ''}; paths are relative to {path.parent} or absolute"
        )
    left_out = LeftOut()
    left_out.add("that name a file again", len(rows) - len(once))
    left_out.tell(f"{path}, {name}", len(once), "lines")
    known, labels = number_labels([row.label for row in once], classes, lambda i: f"{path}, line {once[i].line}")
    return Images(name, known, labels, None, [row.file for row in once], root=str(path.parent))


def _there(files: Iterable[str]) -> Iterator[bool]:
    """Whether each is a regular file.  A folder is listed once: asking for each file takes minutes over a network."""
    listed: dict[str, frozenset[str]] = {}
    for file in files:
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = _files_in(folder)
        yield name in listed[folder] or os.path.isfile(file)


def _files_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in os.scandir(folder) if kind_of(entry) == "file")
    except OSError:
        return frozenset()


def _rows(path: Path) -> dict[str | None, list[Row]]:
    """The rows by split; by None where there is no column `split`."""
    found: dict[str | None, list[Row]] = {}
    try:
        for split, row in _lines(path, io.StringIO(read_text(path), newline="")):
            found.setdefault(split, []).append(row)
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of text ({error})") from None
    if not found:
        raise ValueError(f"{path}: no rows; expected a line for each image below the header")
    return found


def _lines(path: Path, file: Iterator[str]) -> Iterator[tuple[str | None, Row]]:
    tabs = path.suffix.lower() == ".tsv"
    table = csv.reader(file, delimiter="\t" if tabs else ",", skipinitialspace=True, strict=True)
    header = next(table, [])
    columns = [name.strip() for name in header]
    place = {column: columns.index(column) for column in COLUMNS if column in columns}
    for column in ("path", "label"):
        if column not in columns:
            raise ValueError(
                f"{path}, line 1: no column {column!r}, only {', '.join(map(repr, columns)) or 'nothing'}; the first "
                f"line must name path, label and, if wanted, split, separated by {'tabs' if tabs else 'commas'}"
            )
    for column in place:
        if columns.count(column) > 1:
            raise ValueError(f"{path}, line 1: {columns.count(column)} columns are called {column!r}; keep one")
    words: dict[str, str] = {}  # the word that each split is called by
    for cells in table:
        at = f"{path}, line {table.line_num}"
        if not cells:
            continue
        if any(cells[len(columns) :]):
            raise ValueError(
                f"{at}: {len(cells)} cells below {len(columns)} columns; put quotes around a cell that has a "
                f"{'tab' if tabs else 'comma'} in it"
            )
        entry = {column: cells[i].strip() if i < len(cells) else "" for column, i in place.items()}
        for column in ("path", "label"):
            if not entry[column]:
                raise ValueError(f"{at}: empty {column}; fill it in or remove the line")
            if not entry[column].isprintable() and any(c in entry[column] for c in "\0\n\r"):
                raise ValueError(f"{at}: {column} {entry[column][:80]!r} has more than one line; is a quote missing?")
        yield (
            _split(entry["split"], words, at) if "split" in place else None,
            Row(table.line_num, os.path.join(path.parent, entry["path"]), entry["label"]),
        )


def _split(word: str, words: dict[str, str], at: str) -> str:
    split = split_of(word)
    if split is None:
        raise ValueError(f"{at}: split {word!r}; expected one of {', '.join(SPLIT_WORDS)}")
    other = words.setdefault(split, word)
    if other.casefold() != word.casefold():
        raise ValueError(f"{at}: split {word!r}, but {other!r} above; both are {split}; use one word for it")
    return split
