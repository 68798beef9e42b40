"""Files that name the classes of masks: classes.json, classes.txt, labelmap.txt, class_dict.csv."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from secvit.fields import Entry, Faults, Wrong, abridged, integer, items, mapping, numbers, read_json, read_text, text
from secvit.segmentation.augment import IGNORED
from secvit.segmentation.masks import LARGEST, VOID, Colours

T = TypeVar("T")
Palette = tuple[tuple[int, ...], ...]
MOST = 255  # classes; 255 marks pixels without one
BYTES = 1 << 24  # that a file of names may have
KEYS = ("classes", "ignore_index", "ignore_name", "palette")  # of classes.json; the third is for people
EXAMPLE = '{"classes": ["sky", ...], "ignore_index": 255} or {"classes": {"0": "sky", "128": "road"}}'


@dataclass(frozen=True)
class Named:
    """What a data set says of its classes; None for what it does not say.

    where: the file.  values: in masks, of each class; None where they count in rising order.  ignored: other values.
    """

    where: str
    names: tuple[str, ...]
    values: tuple[int, ...] | None = None
    ignored: tuple[int, ...] | None = None
    palette: Palette | None = None
    colours: Colours | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        twice = [name for name, times in Counter(self.names).items() if times > 1]
        why = f"; {twice[0]!r} occurs twice" if twice else ""
        if not 2 <= count <= MOST or twice:
            raise ValueError(f"{self.where}: {count} classes; expected 2 to {MOST} different names{why}")
        for name in self.names:
            if not name.isprintable():
                raise ValueError(f"{self.where}: {name!r} is no name of a class; write names as plain text")
        if both := set(self.values or ()) & set(self.ignored or ()):
            raise ValueError(f"{self.where}: {min(both)} is a class and ignored as well; take one of the two out")


# -- files of names ------------------------------------------------------------------------------


def read_names(root: Path) -> Named | None:
    """What classes.json, classes.txt, labelmap.txt or class_dict.csv in a folder say; None where there is none.

    Of several that agree the first counts, and masks in colours are read by the one that lists colours.
    A ValueError if two of them do not agree.
    """
    lists = [read(root / name) for name, read in FILES if os.path.lexists(root / name)]
    for one in lists[1:]:
        check_same(lists[0], one)
    if not lists:
        return None
    colours = next((one.colours for one in lists[1:] if one.colours), None)
    return replace(lists[0], colours=replace(colours, everywhere=False)) if colours else lists[0]


def check_same(one: Named, other: Named) -> None:
    """A ValueError if two files name other classes, or the same ones for other values."""
    counted = [class_values(len(n.names), {*n.ignored, IGNORED}) if n.ignored else None for n in (one, other)]
    first, second = one.values or counted[0], other.values or counted[1]
    rising = tuple(range(len(one.names)))
    if one.names != other.names or (first or rising) != (second or rising):
        shown = [abridged([f"{value}: {name}" for value, name in zip(v or rising, n.names, strict=False)], 4)
                 for n, v in ((one, first), (other, second))]  # fmt: skip
        raise ValueError(
            f"{one.where} and {other.where} do not agree ({shown[0]}; {shown[1]}); correct one of them, or remove it"
        )


def class_values(count: int, ignored: Collection[int]) -> tuple[int, ...]:
    """The values in masks that stand for classes 0, 1, ... if they count in rising order."""
    return tuple(value for value in range(count + len(ignored)) if value not in ignored)[:count]


def from_json(file: Path) -> Named:
    """{"classes": [names] or {value: name}} and, if wanted, "ignore_index" and "palette": [[r, g, b], ...]."""
    try:
        entry = Entry("it", read_json(file))
        classes = entry.get("classes", _list_or_object)
        if unknown := [repr(key) for key in entry.fields if key not in KEYS]:
            raise ValueError(
                f"it has the unknown {abridged(unknown)}; known are {', '.join(KEYS)}; rename or remove it"
            )
        nothing = () if "ignore_index" in entry.fields else None  # null says that nothing is ignored besides 255
        ignored = entry.get("ignore_index", _values, nothing)
        palette = entry.get("palette", items, None)
        values = None
        if isinstance(classes, dict):
            if not all(_is_whole(key) for key in classes) and all(_is_whole(value) for value in classes.values()):
                classes = {value: name for name, value in classes.items()}  # names with their values
            pairs = sorted((_value(_read(integer, key)), _read(text, name).strip()) for key, name in classes.items())
            values, names = tuple(value for value, _ in pairs), tuple(name for _, name in pairs)
            if len(set(values)) < len(values):
                raise ValueError("one value has two names")
        else:
            names = tuple(_read(text, name).strip() for name in classes)
    except ValueError as error:
        raise ValueError(f"{file}: expected {EXAMPLE}; {str(error).removeprefix(f'{file}: ')}") from None
    colours = None
    if palette:
        try:
            colours = tuple(tuple(map(integer, numbers(colour, 3))) for colour in palette[: len(names)])
        except Wrong:
            colours = ()
        if len(colours) < len(names) or any(not 0 <= min(c) <= max(c) < 256 for c in colours):
            raise ValueError(f"{file}: a palette needs red, green, blue in 0..255 for each of {len(names)} classes")
    return Named(str(file), names, values, ignored, colours)


def from_lines(file: Path) -> Named:
    """A name a line, or VALUE: NAME in each."""
    lines = lines_of(file)
    _different(file, lines)
    pairs = [_split_value(line) for _, line in lines]
    if lines and all(value is not None for value, _ in pairs):
        rows = [(number, str(value), name) for (number, _), (value, name) in zip(lines, pairs, strict=True)]
        return _by_value(file, rows)
    faults = Faults(file)
    for place, (number, line) in enumerate(lines, 1):
        if line.startswith("#"):
            faults.add(f"line {number}: {line[:60]!r}; there are no comments here, and a name does not begin with #")
        if number != place:
            faults.add(f"line {place}: empty, so that the names below it would stand for other values")
            break
    faults.check("Write a name a line without lines between them, or VALUE: NAME in each line, or give classes.json")
    return Named(str(file), tuple(line for _, line in lines))


def from_csv(file: Path) -> Named:
    """Roboflow's _classes.csv: "Pixel Value, Class", then a value and a name a line."""
    rows = [(number, *line.partition(",")[::2]) for number, line in lines_of(file)]
    if rows and not _is_whole(rows[0][1].strip()):
        rows = rows[1:]
    return _by_value(file, rows)


def from_labelmap(file: Path) -> Named:
    """CVAT's labelmap.txt, NAME:RED,GREEN,BLUE:PARTS:ACTIONS a line: colours in masks; VOC's void is no class."""
    lines = [(number, line) for number, line in lines_of(file) if not line.startswith("#")]
    rows = [(number, line, line.split(":")[0], "".join(line.split(":")[1:2]).split(",")) for number, line in lines]
    return _by_colour(file, rows, "NAME:RED,GREEN,BLUE::")


def from_class_dict(file: Path) -> Named:
    """class_dict.csv, "name,r,g,b" and a class a line: colours in masks."""
    rows: list[tuple[int, str, str, Sequence[str]]] = []
    for number, line in lines_of(file):
        name, *colour = (cell.strip().strip('"') for cell in line.split(","))
        if rows or [cell.casefold() for cell in (name, *colour)] != ["name", "r", "g", "b"]:
            rows.append((number, line, name, colour))
    return _by_colour(file, rows, "NAME,RED,GREEN,BLUE")


def _by_colour(file: Path, rows: Sequence[tuple[int, str, str, Sequence[str]]], form: str) -> Named:
    """Classes from numbers of lines, lines, and names and colours in them; VOC's void is none."""
    faults, classes = Faults(file), []  # type: Faults, list[tuple[int, str, tuple[int, int, int]]]
    for number, line, name, parts in rows:
        try:
            colour: tuple[int, ...] = tuple(integer(part) for part in parts)
        except Wrong:
            colour = ()
        if not name.strip() or len(colour) != 3 or not 0 <= min(colour) <= max(colour) < 256:
            faults.add(f"line {number}: {line[:60]!r}; expected {form} with colours of 0 to 255")
        elif colour != VOID:
            classes.append((number, name.strip(), (colour[0], colour[1], colour[2])))
    faults.check()
    _different(file, [(number, name) for number, name, _ in classes])
    _different(file, [(number, colour) for number, _, colour in classes])
    palette = tuple(colour for _, _, colour in classes)
    table: dict[tuple[int, ...], int] = {**{colour: i for i, colour in enumerate(palette[:MOST])}, VOID: IGNORED}
    colours = Colours.of(table, file.name, everywhere=True)
    names = tuple(name for _, name, _ in classes)
    return Named(str(file), names, tuple(range(len(names))), (IGNORED,), palette, colours)


# in the order in which they count, with their readers
FILES = (
    ("classes.json", from_json),
    ("classes.txt", from_lines),
    ("class_names.txt", from_lines),
    ("labelmap.txt", from_labelmap),
    ("class_dict.csv", from_class_dict),
)


# -- parts of names files -------------------------------------------------------------------------


def lines_of(file: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    lines = ((number, line.strip()) for number, line in enumerate(read_text(file, BYTES).splitlines(), 1))
    return [(number, line) for number, line in lines if line]


def _different(file: Path, entries: Sequence[tuple[int, object]]) -> None:
    """A ValueError that names the lines that say the same as one before."""
    first: dict[object, int] = {}
    faults = Faults(file)
    for number, what in entries:
        if what in first:
            faults.add(f"line {number}: {what if isinstance(what, str) else list(what)!r} is in line {first[what]} too")  # type: ignore[call-overload]
        first.setdefault(what, number)
    faults.check("Each class needs its own")


def _split_value(line: str) -> tuple[int | None, str]:
    """ "3: road" -> 3, "road"; a line of another kind -> None and itself."""
    for mark in (":", ",", "\t"):
        value, separator, name = line.partition(mark)
        if separator and value.strip().isdecimal() and len(value) < 9 and name.strip():
            return int(value), name.strip()
    return None, line


def _by_value(file: Path, rows: Sequence[tuple[int, str, str]]) -> Named:
    """Classes from line numbers, values and names."""
    faults, classes = Faults(file), []
    for number, value, name in rows:
        try:
            classes.append((number, _value(integer(value.strip())), _read(text, name.strip().strip('"'))))
        except ValueError:
            faults.add(f"line {number}: {f'{value},{name}'[:60]!r}; expected a value of 0 to {LARGEST} and a name")
    faults.check()
    _different(file, [(number, f"value {value}") for number, value, _ in classes])
    _different(file, [(number, name) for number, _, name in classes])
    classes.sort(key=lambda row: row[1])
    return Named(str(file), tuple(name for _, _, name in classes), tuple(value for _, value, _ in classes))


def _list_or_object(value: Any) -> list[Any] | dict[str, Any]:
    if not isinstance(value, (list, dict)):
        raise Wrong("a list of names, or names by value")
    return mapping(value) if isinstance(value, dict) else items(value)


def _values(value: Any) -> tuple[int, ...]:
    """One value or a list of them; those that no mask can hold, like -1, ignore nothing."""
    values = {integer(one) for one in (value if isinstance(value, list) else [value])}
    return tuple(sorted(one for one in values if 0 <= one <= LARGEST))


def _value(number: int) -> int:
    if not 0 <= number <= LARGEST:
        raise Wrong(f"{number} is no value of a mask; expected 0 to {LARGEST}")
    return number


def _is_whole(value: Any) -> bool:
    try:
        integer(value)
    except Wrong:
        return False
    return True


def _read(read: Callable[[Any], T], value: Any) -> T:
    """A value through a reader of `secvit.fields`; the error says what was found."""
    try:
        return read(value)
    except Wrong as error:
        raise ValueError(f"classes hold {str(value)[:60]!r}, expected {error}") from None
