"""Files: checked before the work, written whole or not at all."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path


def check_writable(output: Path) -> None:
    """Fail before training, not at the first save."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(
            f"{output}: cannot write there ({error.strerror}); repair that, or choose another output folder"
        ) from None


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path of a file to come, or a ValueError that says why it cannot be written: ask before the work."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise ValueError(f"{path.parent}: cannot write there ({error.strerror}); choose another folder") from None
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """The whole new file or the old one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_through(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def write_through(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk; an OSError names the file and what to do."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        size = f"{len(content) / 1e6:.1f} MB" if len(content) >= 1e5 else f"{len(content):,} bytes"
        remedy = f"{error.strerror} ({size} to write); make room there or choose another folder, then run it again"
        raise OSError(error.errno, remedy, str(path)) from None


def fsync(folder: Path) -> None:
    """Make the folder's own entries durable (not possible, and not needed, on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows; a row cut off by a kill is left out."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values() and None not in row]
        return list(reader.fieldnames or []), rows
