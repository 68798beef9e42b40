"""Names of classes: in order, held against each other, compared by name."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from secvit.fields import abridged

logger = logging.getLogger(__name__)


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in the order that every kind of data set uses: numbers by value, else names by alphabet."""
    names = set(labels)
    numbers = all(label.isascii() and label.isdecimal() for label in names)
    return tuple(sorted(names, key=(lambda x: (int(x), x)) if numbers else None))


_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])  # soft hyphen, zero-width spaces and joiners
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_MISSING = {"nan", "none", "null", "n/a", "<na>"}  # what programs write where there is no label


def check_names(names: Sequence[str], where: object) -> None:
    """Hold the names of classes against each other, once they are known.

    where: what messages call the data.  A ValueError for names that look the same or are one whole number ("dog" and
    "dog ", "1" and "01"); a warning for those that differ in upper and lower case or are one number ("1.1" and
    "1.10"), and for names of missing values.
    """
    if same := _alike(names, _seen) or _alike(names, _whole):
        raise ValueError(
            f"{where}: classes under two names each: {_pairs(same)}; they differ in spaces, in the way that signs are "
            "encoded, or in how one number is written; use one name for each"
        )
    if same := _alike(names, lambda name: _seen(name).casefold()) + _alike(names, _number):
        logger.warning("%s: are these one class each? %s; each name is a class of its own", where, _pairs(same))
    if missing := [name for name in names if name.strip().casefold() in _MISSING]:
        logger.warning("%s: class %r: if that is a missing label, leave such entries out", where, missing[0])


def _alike(names: Iterable[str], key: Callable[[str], object]) -> list[tuple[str, str]]:
    """Pairs of names that have one key; those without a key (None) are different."""
    first: dict[object, str] = {}
    pairs = [(first.setdefault(same, name), name) for name in names if (same := key(name)) is not None]
    return [(one, other) for one, other in pairs if one != other]


def _seen(name: str) -> str:
    """What a reader sees of a name: composed signs, plain single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).translate(_INVISIBLE).split())


def _number(name: str) -> Decimal | None:
    return Decimal(plain) if _NUMBER.fullmatch(plain := _seen(name)) else None


def _whole(name: str) -> Decimal | None:
    return number if (number := _number(name)) is not None and number == number.to_integral_value() else None


def _pairs(same: Sequence[tuple[str, str]], most: int = 5) -> str:
    """The pairs; names that look the same as ASCII, which shows how they differ."""
    shown = [(ascii if _seen(one) == _seen(other) else repr, one, other) for one, other in same]
    return abridged([f"{show(one)} and {show(other)}" for show, one, other in shown], most)


def match_classes(
    expected: Sequence[str], actual: Sequence[str], expected_name: str, actual_name: str, *, all_of_them: bool = False
) -> list[int]:
    """Where each of the classes `actual` stands among those `expected`, by name.

    expected_name, actual_name: what the error calls the two ("the run runs/a", "the data DIR").
    all_of_them: `actual` must also have every known class.
    Raises ValueError if `actual` has a class that is not known, or a name twice.
    """
    for names, where in ((expected, expected_name), (actual, actual_name)):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{where}: class {twice[0]!r} occurs twice; give each class its own name")
    place = {name: i for i, name in enumerate(expected)}
    new = [name for name in actual if name not in place]
    there = set(actual)
    lacking = [name for name in expected if name not in there]
    if new or (all_of_them and lacking):
        raise ValueError(
            f"{actual_name} and {expected_name} have other classes ({len(actual)} and {len(expected)})"
            + (f"; only in {actual_name}: {abridged(new, 5, repr)}" if new else "")
            + (f"; only in {expected_name}: {abridged(lacking, 5, repr)}" if lacking else "")
            + "; classes are compared by name"
        )
    return [place[name] for name in actual]
