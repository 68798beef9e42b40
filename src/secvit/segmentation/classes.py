"""Which values of masks are classes: what names files say, and what the training masks hold."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from secvit.fields import Entry, Faults, Wrong, few, items, mapping, numbers, read_json, read_text, text, whole
from secvit.images.classes import match_classes
from secvit.segmentation.augment import IGNORED
from secvit.segmentation.masks import LARGEST, VOID, Colours, voc_colour, voc_palette

logger = logging.getLogger(__name__)

T = TypeVar("T")
Palette = tuple[tuple[int, ...], ...]
MOST = 255  # classes; 255 marks pixels without one
BYTES = 1 << 24  # that a file of names may have
KEYS = ("classes", "ignore_index", "ignore_name", "palette")  # of classes.json; the third is for people
EXAMPLE = '{"classes": ["sky", ...], "ignore_index": 255} or {"classes": {"0": "sky", "128": "road"}}'


@dataclass(frozen=True)
class Classes:
    """names, values (those of masks, by class), ignored (further values, of no class), palette (red, green, blue)."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...]
    palette: Palette

    @cached_property
    def table(self) -> np.ndarray:
        """The class of each value, (65536,) uint8, 255 where it is none."""
        table = np.full(LARGEST + 1, IGNORED, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def in_order_of(self, names: Sequence[str], names_from: str, own_from: str) -> Classes:
        """The same classes in another order; a ValueError if they are not the same by name."""
        place = match_classes(names, self.names, names_from, own_from, all_of_them=True)
        order = sorted(range(len(place)), key=place.__getitem__)

        def ordered(one: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(one[i] for i in order)

        return Classes(ordered(self.names), ordered(self.values), self.ignored, ordered(self.palette))


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
    found = [read(root / name) for name, read in FILES if os.path.lexists(root / name)]
    for one in found[1:]:
        check_same(found[0], one)
    if not found:
        return None
    colours = next((one.colours for one in found[1:] if one.colours), None)
    return replace(found[0], colours=replace(colours, everywhere=False)) if colours else found[0]


def check_same(one: Named, other: Named) -> None:
    """A ValueError if two files name other classes, or the same ones for other values."""
    counted = [class_values(len(n.names), {*n.ignored, IGNORED}) if n.ignored else None for n in (one, other)]
    first, second = one.values or counted[0], other.values or counted[1]
    rising = tuple(range(len(one.names)))
    if one.names != other.names or (first or rising) != (second or rising):
        shown = [few([f"{value}: {name}" for value, name in zip(v or rising, n.names, strict=False)], 4)
                 for n, v in ((one, first), (other, second))]  # fmt: skip
        raise ValueError(
            f"{one.where} and {other.where} do not agree ({shown[0]}; {shown[1]}); correct one of them, or remove it"
        )


def from_json(file: Path) -> Named:
    """{"classes": [names] or {value: name}} and, if wanted, "ignore_index" and "palette": [[r, g, b], ...]."""
    try:
        entry = Entry("it", read_json(file))
        classes = entry.get("classes", _list_or_object)
        if unknown := [repr(key) for key in entry.fields if key not in KEYS]:
            raise ValueError(f"it has the unknown {few(unknown)}; known are {', '.join(KEYS)}; rename or remove it")
        nothing = () if "ignore_index" in entry.fields else None  # null says that nothing is ignored besides 255
        ignored = entry.get("ignore_index", _values, nothing)
        palette = entry.get("palette", items, None)
        values = None
        if isinstance(classes, dict):
            if not all(_is_whole(key) for key in classes) and all(_is_whole(value) for value in classes.values()):
                classes = {value: name for name, value in classes.items()}  # names with their values
            pairs = sorted((_value(_read(whole, key)), _read(text, name).strip()) for key, name in classes.items())
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
            colours = tuple(tuple(map(whole, numbers(colour, 3))) for colour in palette[: len(names)])
        except Wrong:
            colours = ()
        if len(colours) < len(names) or any(not 0 <= min(c) <= max(c) < 256 for c in colours):
            raise ValueError(f"{file}: a palette needs red, green, blue in 0..255 for each of {len(names)} classes")
    return Named(str(file), names, values, ignored, colours)


def from_lines(file: Path) -> Named:
    """A name a line, or VALUE: NAME in each."""
    lines = _lines(file)
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
    rows = [(number, *line.partition(",")[::2]) for number, line in _lines(file)]
    if rows and not _is_whole(rows[0][1].strip()):
        rows = rows[1:]
    return _by_value(file, rows)


def from_labelmap(file: Path) -> Named:
    """CVAT's labelmap.txt, NAME:RED,GREEN,BLUE:PARTS:ACTIONS a line: colours in masks; VOC's void is no class."""
    lines = [(number, line) for number, line in _lines(file) if not line.startswith("#")]
    rows = [(number, line, line.split(":")[0], "".join(line.split(":")[1:2]).split(",")) for number, line in lines]
    return _by_colour(file, rows, "NAME:RED,GREEN,BLUE::")


def from_class_dict(file: Path) -> Named:
    """class_dict.csv, "name,r,g,b" and a class a line: colours in masks."""
    rows: list[tuple[int, str, str, Sequence[str]]] = []
    for number, line in _lines(file):
        name, *colour = (cell.strip().strip('"') for cell in line.split(","))
        if rows or [cell.casefold() for cell in (name, *colour)] != ["name", "r", "g", "b"]:
            rows.append((number, line, name, colour))
    return _by_colour(file, rows, "NAME,RED,GREEN,BLUE")


def _by_colour(file: Path, rows: Sequence[tuple[int, str, str, Sequence[str]]], form: str) -> Named:
    """Classes from numbers of lines, lines, and names and colours in them; VOC's void is none."""
    faults, found = Faults(file), []  # type: Faults, list[tuple[int, str, tuple[int, int, int]]]
    for number, line, name, parts in rows:
        try:
            colour: tuple[int, ...] = tuple(whole(part) for part in parts)
        except Wrong:
            colour = ()
        if not name.strip() or len(colour) != 3 or not 0 <= min(colour) <= max(colour) < 256:
            faults.add(f"line {number}: {line[:60]!r}; expected {form} with colours of 0 to 255")
        elif colour != VOID:
            found.append((number, name.strip(), (colour[0], colour[1], colour[2])))
    faults.check()
    _different(file, [(number, name) for number, name, _ in found])
    _different(file, [(number, colour) for number, _, colour in found])
    palette = tuple(colour for _, _, colour in found)
    table: dict[tuple[int, ...], int] = {**{colour: i for i, colour in enumerate(palette[:MOST])}, VOID: IGNORED}
    colours = Colours.of(table, file.name, everywhere=True)
    names = tuple(name for _, name, _ in found)
    return Named(str(file), names, tuple(range(len(names))), (IGNORED,), palette, colours)


# in the order in which they count, with their readers
FILES = (
    ("classes.json", from_json),
    ("classes.txt", from_lines),
    ("class_names.txt", from_lines),
    ("labelmap.txt", from_labelmap),
    ("class_dict.csv", from_class_dict),
)


def ade20k(root: Path) -> Named:
    """ADE20K's 150 classes, 1 to 150 in masks, by the table that comes with it, else by number; 0 is no class."""
    file = root / "objectInfo150.txt"
    names = [str(i) for i in range(1, 151)]
    if file.is_file():
        rows = [line.split("\t")[-1].strip() for _, line in _lines(file)[1:]]
        if len(rows) != len(names):
            raise ValueError(f"{file}: {len(rows)} classes below its first line; expected {len(names)}")
        short = [row.split(",")[0].strip() for row in rows]
        names = [row if short.count(one) > 1 else one for row, one in zip(rows, short)]
    return Named(str(file), tuple(names), tuple(range(1, 151)), (0, IGNORED))


VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def voc(root: Path) -> Named:
    """PASCAL VOC's own classes."""
    return Named(
        f"{root} (without labelmap.txt)",
        VOC_NAMES,
        tuple(range(len(VOC_NAMES))),
        (IGNORED,),
        tuple(voc_colour(i) for i in range(len(VOC_NAMES))),
    )


def voc_colours() -> Colours:
    """The number of each of PASCAL VOC's colours, 255 of VOID; indexed masks hold the numbers themselves."""
    return Colours.of({voc_colour(i): i for i in range(256)}, "PASCAL VOC's palette", everywhere=False)


# name, value in labelIds, colour; the place in this list is the value in labelTrainIds
CITYSCAPES = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)  # fmt: skip


def cityscapes(root: Path, train_ids: bool) -> Named:
    """Cityscapes' 19 classes, by the numbers of labelTrainIds or of labelIds, whose other numbers are no classes."""
    names, ids, palette = zip(*CITYSCAPES, strict=True)
    if train_ids:
        return Named(f"{root} (Cityscapes)", names, tuple(range(len(names))), (IGNORED,), palette)
    others = tuple(value for value in (*range(34), IGNORED) if value not in ids)
    return Named(f"{root} (Cityscapes)", names, ids, others, palette)


# -- from names and masks to classes --------------------------------------------------------------


def number_classes(named: Named | None, used: Collection[int], where: str) -> Classes:
    """The classes of masks that hold the values `used`, which are those of train.  where: the folder of the masks.

    Without names, the values are the classes; they need names if they have gaps.  Of two classes without values, in
    masks that hold 0 and 255 alone, 255 is the second: there is nothing else that it could be.
    """
    binary = set(used) == {0, IGNORED}
    ignored: tuple[int, ...]
    if named is None:
        values = (0, IGNORED) if binary else tuple(sorted(set(used) - {IGNORED}))
        _check_gaps(values, where)
        names, ignored = tuple(map(str, values)), () if binary else (IGNORED,)
        return Classes(names, values, ignored, voc_palette(len(values)))
    ignored = named.ignored if named.ignored is not None else (IGNORED,)
    if named.values is not None:
        values = named.values
        ignored = tuple(sorted({*ignored, IGNORED} - set(values)))
    elif len(named.names) == 2 and binary and IGNORED not in (named.ignored or ()) and 0 not in ignored:
        values, ignored = (0, IGNORED), tuple(value for value in ignored if value != IGNORED)
        logger.info("%s: 255 stands for %r, as the masks hold 0 and 255 alone", named.where, named.names[1])
    else:
        ignored = tuple(sorted({*ignored, IGNORED}))
        values = class_values(len(named.names), ignored)
    return Classes(named.names, values, ignored, named.palette or voc_palette(len(values)))


ADE20K = 150  # classes


def say_zero(named: Named, used: Collection[int], where: str) -> Named:
    """Names in ADE20K's layout, where 0 is no class in ADE20K and the first class in other sets.

    used: values in the masks of train, which lie in `where`.  A ValueError where neither the number of names nor the
    values say which of both is meant.
    """
    count, first = len(named.names), named.names[0]
    fits = max(set(used) - {IGNORED}, default=0) == count and first.strip("_").casefold() not in BACKGROUND
    if count != ADE20K and not fits:
        raise ValueError(
            f"{named.where}: {count} names, but nothing says what 0 is in the masks ({where}), which hold "
            f"{few([str(value) for value in sorted(used)], 8)}; in ADE20K, whose folders these are, it is no class.  "
            f'Write classes.json with {{"classes": [...], "ignore_index": 255}} if 0 is {first!r}, or with '
            f'"ignore_index": 0 if 1 is'
        )
    return replace(named, ignored=(0,))


BACKGROUND = ("background", "bg", "unlabeled", "unlabelled", "void", "none", "other")


def class_values(count: int, ignored: Collection[int]) -> tuple[int, ...]:
    """The values in masks that stand for classes 0, 1, ... if they count in rising order."""
    return tuple(value for value in range(count + len(ignored)) if value not in ignored)[:count]


def check_used(classes: Classes, named: Named, used: Collection[int], where: str) -> None:
    """Say which classes never occur in the masks of train; a ValueError where they cannot be what is meant."""
    never = [i for i, value in enumerate(classes.values) if value not in used]
    if not never:
        return
    file, count = named.where, len(classes.names)
    holds = few([str(value) for value in sorted(used)], 8)
    remedy = f'say which values are classes in classes.json: {{"classes": {_suggestion(used)}}}'
    if count - len(never) < 2:
        there = ", ".join(repr(name) for i, name in enumerate(classes.names) if i not in never)
        raise ValueError(
            f"{file}: of {count} classes only {there or 'none'} occurs in the masks of train ({where}), which hold "
            f"{holds}, and {few([str(v) for v in classes.ignored], 8) or 'nothing'} is ignored; {remedy}"
        )
    shifted = [value for value in classes.ignored if value < count]
    if named.values is None and shifted and never == [count - 1]:
        raise ValueError(
            f"{file}: {count} classes beside the ignored value {shifted[0]} are the values "
            f"{classes.values[0]} to {classes.values[-1]}, but the masks of train ({where}) hold {holds}, so that "
            f"{classes.names[-1]!r} never occurs.  If value {shifted[0]} is among the classes, take its name out or "
            f"leave out ignore_index; else {remedy}"
        )
    logger.warning(
        "%s: %d of %d classes never occur in the masks of train: %s",
        *(file, len(never), count, few([f"{classes.names[i]} ({classes.values[i]})" for i in never], 8)),
    )


def _check_gaps(values: tuple[int, ...], where: str) -> None:
    if len(values) < 2:
        held = f"no class but {values[0]}" if values else "no class"
        raise ValueError(f"{where}: masks hold {held}; expected a class number for each pixel")
    if len(values) > MOST:
        raise ValueError(f"{where}: masks hold {len(values)} different values; expected at most {MOST} classes")
    contiguous = values[-1] - values[0] + 1 == len(values) and values[0] <= 1
    if not contiguous and values != (0, IGNORED):
        raise ValueError(
            f"{where}: masks hold the values {few([str(value) for value in values], 8)}, with gaps between them; "
            f'name those that are classes in classes.json: {{"classes": {_suggestion(values)}}}'
        )


def _suggestion(values: Collection[int], most: int = 4) -> str:
    shown = ", ".join(f'"{value}": "..."' for value in sorted(values)[:most])
    return f"{{{shown}{', ...' if len(values) > most else ''}}}"


# -- parts of names files -------------------------------------------------------------------------


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    lines = ((number, line.strip()) for number, line in enumerate(read_text(file, BYTES).splitlines(), 1))
    return [(number, line) for number, line in lines if line]


def _different(file: Path, found: Sequence[tuple[int, object]]) -> None:
    """A ValueError that names the lines that say the same as one before."""
    first: dict[object, int] = {}
    faults = Faults(file)
    for number, what in found:
        if what in first:
            faults.add(f"line {number}: {what if isinstance(what, str) else list(what)!r} is in line {first[what]} too")  # type: ignore[call-overload]
        first.setdefault(what, number)
    faults.check("Each class needs its own")


def _split_value(line: str) -> tuple[int | None, str]:
    """ "3: road" -> 3, "road"; a line of another kind -> None and itself."""
    for mark in (":", ",", "\t"):
        value, found, name = line.partition(mark)
        if found and value.strip().isdecimal() and len(value) < 9 and name.strip():
            return int(value), name.strip()
    return None, line


def _by_value(file: Path, rows: Sequence[tuple[int, str, str]]) -> Named:
    """Classes from line numbers, values and names."""
    faults, found = Faults(file), []
    for number, value, name in rows:
        try:
            found.append((number, _value(whole(value.strip())), _read(text, name.strip().strip('"'))))
        except ValueError:
            faults.add(f"line {number}: {f'{value},{name}'[:60]!r}; expected a value of 0 to {LARGEST} and a name")
    faults.check()
    _different(file, [(number, f"value {value}") for number, value, _ in found])
    _different(file, [(number, name) for number, _, name in found])
    found.sort(key=lambda row: row[1])
    return Named(str(file), tuple(name for _, _, name in found), tuple(value for _, value, _ in found))


def _list_or_object(value: Any) -> list[Any] | dict[str, Any]:
    if not isinstance(value, (list, dict)):
        raise Wrong("a list of names, or names by value")
    return mapping(value) if isinstance(value, dict) else items(value)


def _values(value: Any) -> tuple[int, ...]:
    """One value or a list of them; those that no mask can hold, like -1, ignore nothing."""
    found = {whole(one) for one in (value if isinstance(value, list) else [value])}
    return tuple(sorted(one for one in found if 0 <= one <= LARGEST))


def _value(number: int) -> int:
    if not 0 <= number <= LARGEST:
        raise Wrong(f"{number} is no value of a mask; expected 0 to {LARGEST}")
    return number


def _is_whole(value: Any) -> bool:
    try:
        whole(value)
    except Wrong:
        return False
    return True


def _read(read: Callable[[Any], T], value: Any) -> T:
    """A value through a reader of `secvit.fields`; the error says what was found."""
    try:
        return read(value)
    except Wrong as error:
        raise ValueError(f"classes hold {str(value)[:60]!r}, expected {error}") from None
