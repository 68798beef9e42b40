"""CSV files of paths and labels: columns path, label and, if wanted, split; a .tsv is separated by tabs."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from secvit.images.labelled import SPLITS, Images, Source, class_names, number_labels

SUFFIXES = (".csv", ".tsv")


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
    return {split: _source(path, split, parts[split]) for split in dict.fromkeys(SPLITS.values()) if split in parts}


def table_source(path: Path) -> Source:
    """A file that is one split as a whole, whatever a column `split` says."""
    return _source(path, path.stem, [row for part in _rows(path).values() for row in part])


def _source(path: Path, name: str, rows: Sequence[Row]) -> Source:
    return Source(partial(_read, path, name, rows), lambda: class_names(row.label for row in rows))


def _read(path: Path, name: str, rows: Sequence[Row], classes: tuple[str, ...] | None) -> Images:
    """The images of some rows; that each file exists and has one label is checked, contents are not."""
    seen: dict[str, Row] = {}
    for row in rows:
        other = seen.setdefault(row.file, row)
        if other.label != row.label:
            raise ValueError(
                f"{path}: {row.file} is {other.label!r} in line {other.line} and {row.label!r} in line {row.line}; "
                "keep one of them"
            )
    missing = [seen[file] for file in _missing(seen)]
    if missing:
        first = ", ".join(f"{row.file} (line {row.line})" for row in missing[:3])
        raise ValueError(
            f"{path}: {len(missing)} of {len(seen)} files do not exist: {first}"
            f"{', ...' if len(missing) > 3 else ''}; paths are relative to {path.parent} or absolute"
        )
    known, labels = number_labels([row.label for row in rows], classes, lambda i: f"{path}, line {rows[i].line}")
    return Images(name, known, labels, None, tuple(row.file for row in rows), root=str(path.parent))


def _missing(files: Iterable[str]) -> Iterator[str]:
    """Files that are not there.  A folder is listed once: asking for each file takes minutes over a network."""
    listed: dict[str, frozenset[str]] = {}
    for file in files:
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
        if name not in listed[folder] and not os.path.isfile(file):
            yield file


def _rows(path: Path) -> dict[str | None, list[Row]]:
    """The rows by split; by None where there is no column `split`."""
    found: dict[str | None, list[Row]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for split, row in _lines(path, file):
                found.setdefault(split, []).append(row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of text ({error})") from None
    if not found:
        raise ValueError(f"{path}: no rows; expected a line for each image below the header")
    return found


def _lines(path: Path, file: Iterator[str]) -> Iterator[tuple[str | None, Row]]:
    tabs = path.suffix.lower() == ".tsv"
    table = csv.DictReader(file, delimiter="\t" if tabs else ",", skipinitialspace=True)
    columns = [str(c).strip() for c in table.fieldnames or ()]
    table.fieldnames = columns
    for column in ("path", "label"):
        if column not in columns:
            raise ValueError(
                f"{path}, line 1: no column {column!r}, only {', '.join(map(repr, columns)) or 'nothing'}; the first "
                f"line must name path, label and, if wanted, split, separated by {'tabs' if tabs else 'commas'}"
            )
    for cells in table:
        at = f"{path}, line {table.line_num}"
        entry = {column: (cells.get(column) or "").strip() for column in ("path", "label", "split")}
        for column in ("path", "label"):
            if not entry[column]:
                raise ValueError(f"{at}: empty {column}; fill it in or remove the line")
        if "split" in columns and entry["split"] not in SPLITS:
            raise ValueError(f"{at}: split {entry['split']!r}; expected one of {', '.join(SPLITS)}")
        split = SPLITS[entry["split"]] if "split" in columns else None
        yield split, Row(table.line_num, os.path.join(path.parent, entry["path"]), entry["label"])
