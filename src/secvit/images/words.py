"""Words that data sets use: the names of splits, and classes in order and compared by name."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal

logger = logging.getLogger(__name__)

# every word for a split that a folder, a file, a column or a shard may use, in any case, alone or with a year
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLITS = ("train", "val", "test")
# words that people use for a split and that others use for something else: never read as one, never passed over
_LIKE = re.compile(
    r"(?:mini|sub|small|tiny|my|new|old)?"
    r"(train|val|valid|validat(?:e|ion)|eval|evaluat(?:e|ion)|dev|test|hold-?out|held-?out)"
    r"(?:ing|set|split|data|dev|s|minus\w*)?"
)
_JOINT = re.compile(r"train(?:ing)?[-_+ ]?(?:val|valid|validation|dev)[-_ ]?(?:19|20)?\d{0,2}")
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


def splits_like(name: str) -> set[str]:
    """The splits that parts of a name may be meant for, words for them or not: "eval", "val_images" -> {"val"}."""
    found = set()
    for part in map(str.casefold, _PART.findall(name)):
        if is_joint(part):
            found |= {"train", "val"}
        elif like := _LIKE.fullmatch(part):
            found.add(like[1] if like[1] in ("train", "test") else "val")
    return found


def split_like(name: str) -> str | None:
    """The one split that a name may be meant for; None if there is none, or several."""
    found = splits_like(name)
    return found.pop() if len(found) == 1 else None


def check_like(names: Mapping[str, str], found: Collection[str], where: object) -> None:
    """A ValueError for what may be meant as the split that another one, or a part of train, would stand in for.

    names: what lies beside the splits, and the word of each (a file's name without its ending).
    found: the splits that are there.
    """
    lacking = () if "val" in found else ("val",) if "test" in found else ("val", "test")
    for name, word in names.items() if "train" in found else ():
        if not (split_of(word) or is_joint(word)) and (split := split_like(word)) in lacking:
            raise ValueError(
                f"{where}: no val split, but {name}, which may be meant as {split}; rename it to "
                f"{split}{name.removeprefix(word)}, or move it away"
            )


def is_joint(word: str) -> bool:
    """Whether a word names train and val together: "trainval", "train_val", "trainval2012"."""
    return _JOINT.fullmatch(word.strip().casefold()) is not None


def joint_is_train(joint: str, found: Collection[str], where: object) -> bool:
    """Whether a "trainval" is read as train: where there is neither train nor val.

    found: the splits that are there.  Beside train and val it is their union, and not read; beside one of them,
    a ValueError, as it holds the other.
    """
    if ("train" in found) != ("val" in found):
        there, other = ("train", "val") if "train" in found else ("val", "train")
        raise ValueError(
            f"{where}: {joint} is train and val together, and {there} is beside it, but no {other}; give {other} its "
            f"own place, or take {there} away to learn from {joint}"
        )
    if "train" in found:
        logger.info("%s: %s is not read, as train and val are there", where, joint)
    return "train" not in found


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in the order that every kind of data set uses: numbers by value, else names by alphabet."""
    found = set(labels)
    numbers = all(label.isascii() and label.isdecimal() for label in found)
    return tuple(sorted(found, key=(lambda x: (int(x), x)) if numbers else None))


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
    found = [(first.setdefault(same, name), name) for name in names if (same := key(name)) is not None]
    return [(one, other) for one, other in found if one != other]


def _seen(name: str) -> str:
    """What a reader sees of a name: composed signs, plain single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).translate(_INVISIBLE).split())


def _number(name: str) -> Decimal | None:
    return Decimal(plain) if _NUMBER.fullmatch(plain := _seen(name)) else None


def _whole(name: str) -> Decimal | None:
    return number if (number := _number(name)) is not None and number == number.to_integral_value() else None


def _pairs(same: Sequence[tuple[str, str]], most: int = 5) -> str:
    """The pairs; names that look the same as ASCII, which shows how they differ."""
    shown = [(ascii if _seen(one) == _seen(other) else repr, one, other) for one, other in same[:most]]
    more = f" and {len(same) - most} more" if len(same) > most else ""
    return ", ".join(f"{show(one)} and {show(other)}" for show, one, other in shown) + more


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
