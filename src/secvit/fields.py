"""Fields of foreign files, typed: what is meant is converted, everything else is an error that names file and entry.

The one way in for JSON that other tools write: COCO, conversations, lists of classes, a run's config.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import yaml

T = TypeVar("T")
NAMED = 20  # faults that one error names
_REQUIRED: Any = object()
LARGEST = 2**53  # whole numbers beyond it are not exact as JSON numbers of other tools


class Wrong(ValueError):
    """A value of another kind than wanted; the text says what was wanted."""


def integer(value: Any) -> int:
    """A whole number: 3, 3.0 or "3"."""
    number_ = number(value)
    if number_ != int(number_) or abs(number_) > LARGEST:
        raise Wrong("a whole number")
    return int(value) if isinstance(value, int) else int(number_)


def number(value: Any) -> float:
    """A finite number: 1.5 or "1.5"; no boolean."""
    if isinstance(value, str) and len(value) < 400:
        try:
            value = float(value)
        except ValueError:
            raise Wrong("a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong("a number")
    if (isinstance(value, int) and abs(value) > 1e300) or not math.isfinite(value):
        raise Wrong("a finite number")
    return float(value)


def flag(value: Any) -> bool:
    """Yes or no: true, 0, "1", "false"."""
    if isinstance(value, str) and value.strip().casefold() in ("true", "false"):
        return value.strip().casefold() == "true"
    try:
        parsed = value if isinstance(value, bool) else integer(value)
    except Wrong:
        parsed = None
    if parsed not in (0, 1):
        raise Wrong("0 or 1")
    return bool(parsed)


def text(value: Any) -> str:
    """Text that is not empty; a whole number becomes its digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise Wrong("text")
    return value


def any_text(value: Any) -> str:
    """Text that may be empty; a whole number becomes its digits."""
    return value if isinstance(value, str) else text(value)


def identity(value: Any) -> int | str:
    """What may name an entry: a whole number, or text; "7" and 7.0 are 7, so that references of other types meet."""
    if isinstance(value, str) and value.strip() and not value.strip().lstrip("-").isdecimal():
        return value
    try:
        return integer(value)
    except Wrong:
        raise Wrong("a whole number or text") from None


def numbers(value: Any, count: int | None = None) -> list[float]:
    """A list of finite numbers, `count` of them if given."""
    wanted = "a list of numbers" if count is None else f"a list of {count} numbers"
    if not isinstance(value, (list, tuple)) or (count is not None and len(value) != count):
        raise Wrong(wanted)
    try:
        return [number(one) for one in value]
    except Wrong as error:
        raise Wrong(f"{wanted}, each {error!s}") from None


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong("an object {...}")
    return value


def items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Wrong("a list [...]")
    return value


def within(config: object, low: float, high: float, *names: str) -> None:
    """Raise a ValueError if a field of a configuration, or a number in it, is outside low..high; None is left alone."""
    for name in names:
        value = getattr(config, name)
        parts = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
        if not all(low <= part <= high for part in parts):
            wanted = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise ValueError(f"{name}={value}; choose {wanted}")


# -- YAML --------------------------------------------------------------------------------------

LONGEST = 2**22  # bytes of a YAML: a run's config with 100,000 classes
MOST_VALUES = 10**6  # in it, with its aliases written out


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file, None if it is empty; a ValueError that names it if it is none.

    No code runs.  What has aliases of aliases, itself inside of itself, or a key twice is refused.
    """
    content = read_text(path, LONGEST)
    try:
        loader = yaml.SafeLoader(content)
        try:
            node = loader.get_single_node()
            _values_in(node, {})
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError(f"{os.fspath(path)}: not readable YAML (nested too deeply); write it anew") from None
    except Exception as error:  # tags with a value of another kind raise anything, a date that does not exist for one
        raise ValueError(f"{os.fspath(path)}: not readable YAML ({error or type(error).__name__}); repair it") from None


def _values_in(node: yaml.Node | None, counted: dict[int, int]) -> int:
    """How many values a node stands for.  counted: by node; 0 for those that are being counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in counted:
        if not counted[id(node)]:
            raise ValueError(f"line {node.start_mark.line + 1} contains itself")
        return counted[id(node)]
    counted[id(node)] = 0
    inside = node.value
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} a second time; keep one of them")
            seen.add((key.tag, key.value))
        inside = [part for pair in node.value for part in pair]
    total = 1 + sum(_values_in(part, counted) for part in inside)
    if total > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values, most of them aliases of one another")
    counted[id(node)] = total
    return total


class Entry:
    """One object of a file, called `where` in errors ("annotation 918")."""

    def __init__(self, where: str, value: Any) -> None:
        self.where = where
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: {shown(value)}, expected an object {{...}}")
        self.fields = value

    def get(self, name: str, read: Callable[[Any], T], default: Any = _REQUIRED) -> T:
        """A field through a reader of this module; `default` where it is missing or null.  ValueError if wrong."""
        value = self.fields.get(name)
        if value is None:
            if default is not _REQUIRED:
                return default
            raise ValueError(f"{self.where}: no {name!r}")
        try:
            return read(value)
        except Wrong as error:
            raise ValueError(f"{self.where}: {name} is {shown(value)}, expected {error}") from None


def shown(value: Any, most: int = 60) -> str:
    """A value, short enough for an error."""
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a {'list' if isinstance(value, list) else 'dict'} of {len(value)}"
    try:
        line = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return line if len(line) <= most else f"{line[:most]}..."


def abridged(names: Sequence[str], most: int = 3, show: Callable[[str], str] = str) -> str:
    """The first of many names, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more


class Faults:
    """What is wrong with a file, collected: one error names the first of all of them."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.file, self.messages = os.fspath(file), []  # type: tuple[str, list[str]]

    def add(self, fault: object) -> None:
        self.messages.append(str(fault))

    def __bool__(self) -> bool:
        return bool(self.messages)

    def __iter__(self) -> Iterator[str]:
        return iter(self.messages)

    def check(self, remedy: str = "") -> None:
        """Raise a ValueError if there is any."""
        if self.messages:
            more = f"\n  and {len(self.messages) - NAMED} more" if len(self.messages) > NAMED else ""
            raise ValueError(
                f"{self.file}:\n  " + "\n  ".join(self.messages[:NAMED]) + more + (f"\n{remedy}" if remedy else "")
            )


def check_file(path: str | os.PathLike[str]) -> int:
    """The size in bytes of a regular file; ValueError for a folder, a device, a pipe or a missing file."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:  # a null byte inside the path
        raise ValueError(f"{os.fspath(path)!r}: no path of a file ({error})") from None
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a device, pipe or socket"
        raise ValueError(f"{os.fspath(path)}: {kind}, not a file; check the path")
    return about.st_size


def open_file(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """A regular file, open for its bytes; ValueError as `check_file`, or if it has more than `most` bytes."""
    size = check_file(path)
    if most is not None and size > most:
        raise ValueError(f"{os.fspath(path)}: {size:,} bytes, more than the {most:,} that are read")
    try:
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: cannot be read ({error.strerror}); check the path") from None


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """A regular file's bytes; ValueError as `open_file`."""
    try:
        with open_file(path, most) as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: cannot be read ({error.strerror}); copy it again") from None


def read_text(path: str | os.PathLike[str], most: int | None = None) -> str:
    """A UTF-8 text file, without the byte order mark if it has one."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{os.fspath(path)}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json's `object_pairs_hook`: an object; a ValueError if it has a key twice, of which json keeps the last."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        key = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        values = " and ".join(shown(value) for other, value in pairs if other == key)
        raise ValueError(f"{shown(key)} stands twice in one object, as {values}; keep one of them")
    return entries


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; a ValueError that names it if it is not JSON or nested too deeply.

    NaN and Infinity, which Python's writer makes and JSON does not know, are kept for the reader of their field.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"{os.fspath(path)}: nested too deeply to be read; write it anew") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: not JSON ({error}); write or copy it again") from None
    except ValueError as error:
        if os.fspath(path) in str(error):
            raise
        raise ValueError(f"{os.fspath(path)}: not readable JSON ({str(error)[:200]})") from None
