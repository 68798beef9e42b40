"""Words that data sets use: the names of splits, and classes in order and compared by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

# every word for a split that a folder, a file, a column or a shard may use, in any case, alone or with a year
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLITS = ("train", "val", "test")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_WORD = re.compile(r"([a-z]+)[-_ ]?(?:19|20)?\d{0,2}")


def split_of(word: str) -> str | None:
    """The split that a word names: "Train", "training" and "train2017" -> "train"; None if it names none."""
    found = _WORD.fullmatch(word.strip().casefold())
    return SPLIT_WORDS.get(found[1]) if found else None


def split_inside(name: str) -> tuple[str, str] | None:
    """The one split that a part of a longer name speaks of, and the rest: "seg_train" -> ("train", "seg")."""
    parts = [part.casefold() for part in _PART.findall(name)]
    parts = [part.removesuffix("set") if part.removesuffix("set") in SPLIT_WORDS else part for part in parts]
    found = {SPLIT_WORDS[part] for part in parts if part in SPLIT_WORDS}
    rest = " ".join(part for part in parts if part not in SPLIT_WORDS)
    return (found.pop(), rest) if len(found) == 1 else None


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in the order that every kind of data set uses: numbers by value, else names by alphabet."""
    found = set(labels)
    numbers = all(label.isascii() and label.isdecimal() for label in found)
    return tuple(sorted(found, key=(lambda x: (int(x), x)) if numbers else None))


def match_classes(
    known: Sequence[str], given: Sequence[str], known_from: str, given_from: str, *, all_of_them: bool = False
) -> list[int]:
    """Where each of the classes `given` stands among those `known`, by name.

    known_from, given_from: what the error calls the two ("the run runs/a", "the data DIR").
    all_of_them: `given` must also have every known class.
    Raises ValueError if `given` has a class that is not known, or a name twice.
    """
    for names, where in ((known, known_from), (given, given_from)):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{where}: class {twice[0]!r} occurs twice; give each class its own name")
    place = {name: i for i, name in enumerate(known)}
    new = [name for name in given if name not in place]
    there = set(given)
    lacking = [name for name in known if name not in there]
    if new or (all_of_them and lacking):
        raise ValueError(
            f"{given_from} and {known_from} have other classes ({len(given)} and {len(known)})"
            + (f"; only in {given_from}: {_some(new)}" if new else "")
            + (f"; only in {known_from}: {_some(lacking)}" if lacking else "")
            + "; classes are compared by name"
        )
    return [place[name] for name in given]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
