"""What goes wrong with files: bytes, JSON, text, and what stands where a file should be."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 1.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), -float("inf"), 10**400, 2**63,
    "", " ", "x", "1", "1.5", "nan", "true", "\ud800", "a\0b", "é", "../../etc/passwd", "/dev/zero", "x" * 100_000,
    "9" * 5000, [], [[]], [None], [1, 2], [1, 2, 3, 4], ["a"], {}, {"a": 1}, {"id": 1}, [{}], [[[[[[]]]]]],
)  # fmt: skip


# -- bytes -------------------------------------------------------------------------------------


def damaged(rng: random.Random, data: bytes, start: int = 0) -> tuple[str, bytes]:
    """Bytes with one kind of damage at or after `start`, and its name."""
    room = max(1, len(data) - start)
    at = start + rng.randrange(room)
    size = rng.choice([1, 4, 32, room // 4 + 1])
    other = start + rng.randrange(room)
    return rng.choice([
        lambda: ("a flipped bit", data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]),
        lambda: ("flipped bits", _flipped(rng, data, start, rng.randrange(2, 40))),
        lambda: ("cut off", data[:at]),
        lambda: ("zeros", data[:at] + bytes(size) + data[at + size :]),
        lambda: ("high bytes", data[:at] + b"\xff" * size + data[at + size :]),
        lambda: ("noise", data[:at] + rng.randbytes(size) + data[at + size :]),
        lambda: ("a part put in", data[:at] + data[other : other + size] + data[at:]),
        lambda: ("a part taken out", data[:at] + data[at + size :]),
        lambda: ("two parts exchanged", data[:at] + data[other : other + size] + data[at + size :]),
    ])() if data else ("noise", rng.randbytes(20))  # fmt: skip


def _flipped(rng: random.Random, data: bytes, start: int, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(start, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


# -- what stands in a file's place -------------------------------------------------------------


def replaced(rng: random.Random, path: Path) -> str:
    """Something that is no whole file in the place of a file; its name."""
    what = rng.choice(["missing", "empty", "a folder", "a dangling link", "a link to itself", "/dev/zero", "a pipe"])
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if what == "empty":
        path.touch()
    elif what == "a folder":
        path.mkdir()
    elif what == "a dangling link":
        path.symlink_to(path.with_name("nowhere"))
    elif what == "a link to itself":
        path.symlink_to(path.name)
    elif what == "/dev/zero":
        path.symlink_to("/dev/zero")
    elif what == "a pipe":
        os.mkfifo(path)
    return what


# -- JSON --------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(*path, key) for key in keys]
    return found + [inner for one in found for inner in places(value[one[-1]], one)]


def changed(rng: random.Random, content: Any, odd: tuple[Any, ...] = ODD) -> tuple[str, Any]:
    """A copy of JSON content with one value anywhere changed, and what was done where."""
    content = copy.deepcopy(content)
    at = rng.choice(places(content) or [()])
    if not at or rng.random() < 0.02:
        return "all is another value", copy.deepcopy(rng.choice([*odd, [content], {"data": content}]))
    holder = content
    for key in at[:-1]:
        holder = holder[key]
    key, value = at[-1], holder[at[-1]]
    name = ".".join(str(step) for step in at if isinstance(step, str)) or "entry"
    what = rng.choice(["other", "other", "other", "gone", "doubled", "renamed", "nested", "as text"])
    if what == "gone":
        del holder[key]
    elif what == "doubled" and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(value))
    elif what == "renamed" and isinstance(holder, dict):
        holder[rng.choice([f"{key}s", str(key).upper(), "x"])] = holder.pop(key)
    elif what == "nested":
        holder[key] = rng.choice([[value], {"value": value}])
    elif what == "as text":
        holder[key] = str(value) if rng.random() < 0.5 else json.dumps(value)
    else:
        what, holder[key] = "other", copy.deepcopy(rng.choice(odd))
    return f"{name} {what}", content


def written(rng: random.Random, content: Any) -> tuple[str, bytes]:
    """JSON in one of the ways that tools write it, all of which mean the same."""
    text = json.dumps(content, indent=rng.choice([None, 1, "\t"]), ensure_ascii=rng.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return rng.choice([
        ("as it is", data), ("BOM", b"\xef\xbb\xbf" + data), ("CRLF", data.replace(b"\n", b"\r\n")),
        ("white space around", b" \n\t" + data + b"\r\n\n"),
    ])  # fmt: skip


def no_json(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """JSON that cannot be read any more, and why."""
    at = rng.randrange(1, max(2, len(data) - 1))
    return rng.choice([
        ("cut off", data[:at]), ("UTF-16", data.decode("utf-8", "replace").encode("utf-16")),
        ("not UTF-8", data[:at] + b"\xff\xfe\xfa" + data[at:]), ("deep nesting", b"[" * 100_000 + data),
        ("deep objects", b'{"a":' * 50_000), ("twice", data + data), ("empty", b""), ("spaces", b"  \n"),
        ("zeros", bytes(len(data))), ("comment", b"// comment\n" + data), ("a binary file", b"\x89PNG\r\n\x1a\n" + data),
    ])  # fmt: skip


def meant_number(value: Any) -> float | None:
    """A finite number, as such or as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < 1e300 else None
