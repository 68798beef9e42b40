"""CSV files of paths and labels: columns path, label and, if wanted, split; between commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from secvit.fields import read_text
from secvit.images.classes import class_names
from secvit.images.files import LeftOut, kind_of
from secvit.images.labelled import Images, Source, number_labels
from secvit.splits import SPLIT_WORDS, SPLITS, split_of

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
COLUMNS = ("path", "label", "split")
SIGNS = {",": "comma", ";": "semicolon", "\t": "tab"}  # between cells


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
    _tell_other_folders(path, once)
    names, labels = number_labels([row.label for row in once], classes, lambda i: f"{path}, line {once[i].line}")
    return Images(name, names, labels, None, [row.file for row in once], root=str(path.parent))


def _tell_other_folders(path: Path, rows: Sequence[Row]) -> None:
    """Warn of files that lie in a folder called like another class."""
    classes = {row.label for row in rows}
    folders = (f"{os.sep}{row.file}".rsplit(os.sep, 2)[1] for row in rows)  # faster than os.path
    other = [row for row, folder in zip(rows, folders, strict=True) if folder != row.label and folder in classes]
    if other:
        row = other[0]
        logger.warning(
            "%s: %d of %d files lie in a folder of another class: %s is %r in line %d; the table is followed",
            *(path, len(other), len(rows), row.file, row.label, row.line),
        )


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
    rows: dict[str | None, list[Row]] = {}
    for split, row in _lines(path, read_text(path)):
        rows.setdefault(split, []).append(row)
    if not rows:
        raise ValueError(f"{path}: no rows; expected a line for each image below the header")
    return rows


class _Cells:
    """The rows of a table with cells in them, lists of text; `line` is where the last one ends."""

    def __init__(self, path: Path, content: str, skipped: int, delimiter: str) -> None:
        csv.field_size_limit(2**31 - 1)  # a caption may be long
        self.path, self.skipped, self.delimiter = path, skipped, delimiter
        file = io.StringIO(content, newline="")
        self.rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)

    @property
    def line(self) -> int:
        return self.rows.line_num + self.skipped

    def __iter__(self) -> Iterator[list[str]]:
        try:
            for cells in self.rows:
                if cells and (cells[0].strip() or any(map(str.strip, cells))):  # spreadsheets write rows of nothing
                    yield cells
        except csv.Error as error:
            raise ValueError(f"{self.path}: not a table of text (line {self.line}: {error})") from None


def _open(path: Path, content: str) -> tuple[_Cells, list[str]]:
    """The cells below the names of the columns, and these.

    The sign between cells is the one that finds path and label in the first line; Excel's "sep=;" may say it above.
    """
    first, _, rest = content.partition("\n")
    declared = re.fullmatch(r'"?sep=(.)"?,*;*', first.strip(), re.IGNORECASE) or re.fullmatch(r"sep=(\t)\r?", first)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    tried = {}
    for delimiter in (declared[1],) if declared else (usual, *(sign for sign in SIGNS if sign != usual)):
        cells = _Cells(path, rest if declared else content, 1 if declared else 0, delimiter)
        columns = [name.strip() for name in next(iter(cells), [])]
        tried[delimiter] = (cells, columns)
        if not [column for column in ("path", "label") if not _called(column, columns)]:
            return cells, columns
    return next(iter(tried.values()))


def _called(column: str, columns: Sequence[str]) -> list[int]:
    """Where a column stands: under its name, else under its name in other letters ("Path")."""
    exact = [i for i, name in enumerate(columns) if name == column]
    return exact or [i for i, name in enumerate(columns) if name.casefold() == column]


def _lines(path: Path, content: str) -> Iterator[tuple[str | None, Row]]:
    table, columns = _open(path, content)
    sign = SIGNS.get(table.delimiter, repr(table.delimiter))
    place = {column: matches[0] for column in COLUMNS if (matches := _called(column, columns))}
    for column in ("path", "label"):
        if column not in place:
            raise ValueError(
                f"{path}, line {max(1, table.line)}: no column {column!r}, only "
                f"{', '.join(map(repr, columns)) or 'nothing'}; the first line must name path, label and, if wanted, "
                f"split, separated by {sign}s"
            )
    for column in place:
        if len(matches := _called(column, columns)) > 1:
            raise ValueError(f"{path}, line {table.line}: {len(matches)} columns are called {column!r}; keep one")
    words: dict[str, str] = {}  # the word that each split is called by
    width, folder = len(columns), path.parent
    for cells in table:
        if len(cells) > width and any(cells[width:]):
            raise ValueError(
                f"{path}, line {table.line}: {len(cells)} cells below {width} columns; put quotes around a cell that "
                f"has a {sign} in it"
            )
        entry = {column: cells[i].strip() if i < len(cells) else "" for column, i in place.items()}
        file, label = entry["path"], entry["label"]
        if not (file and label and file.isprintable() and label.isprintable()):
            _check_entry(entry, f"{path}, line {table.line}")
        split = _split(entry["split"], words, f"{path}, line {table.line}") if "split" in place else None
        yield split, Row(table.line, _file(folder, file), label)


def _check_entry(entry: Mapping[str, str], at: str) -> None:
    for column in ("path", "label"):
        if not entry[column]:
            raise ValueError(f"{at}: empty {column}; fill it in or remove the line")
        if any(c in entry[column] for c in "\0\n\r"):
            raise ValueError(f"{at}: {column} {entry[column][:80]!r} has more than one line; is a quote missing?")


def _file(folder: Path, path: str) -> str:
    """The file that a path means; one with Windows' backslashes means folders where there is such a file."""
    file = os.path.join(folder, path)
    if "\\" in path and not os.path.lexists(file):
        other = os.path.join(folder, path.replace("\\", "/"))
        return other if os.path.lexists(other) else file
    return file


def _split(word: str, words: dict[str, str], at: str) -> str:
    split = split_of(word)
    if split is None:
        raise ValueError(f"{at}: split {word!r}; expected one of {', '.join(SPLIT_WORDS)}")
    other = words.setdefault(split, word)
    if other.casefold() != word.casefold():
        raise ValueError(f"{at}: split {word!r}, but {other!r} above; both are {split}; use one word for it")
    return split
