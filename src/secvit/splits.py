"""Splits of data: the words that name them, and the fixed part of an undivided set that is held out as "val"."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

logger = logging.getLogger(__name__)

# every word for a split that a folder, a file, a column or a shard may use, in any case, alone or with a year
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLITS = ("train", "val", "test")
HELD_OUT = 0.15
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
    match = _WORD.fullmatch(word.strip().casefold())
    return SPLIT_WORDS.get(match[1]) if match else None


def split_inside(name: str) -> tuple[str, str] | None:
    """The one split that a part of a longer name speaks of, and the rest: "seg_train" -> ("train", "seg")."""
    parts = [part.casefold() for part in _PART.findall(name)]
    parts = [part.removesuffix("set") if part.removesuffix("set") in SPLIT_WORDS else part for part in parts]
    splits = {SPLIT_WORDS[part] for part in parts if part in SPLIT_WORDS}
    rest = " ".join(part for part in parts if part not in SPLIT_WORDS)
    return (splits.pop(), rest) if len(splits) == 1 else None


def splits_like(name: str) -> set[str]:
    """The splits that parts of a name may be meant for, words for them or not: "eval", "val_images" -> {"val"}."""
    splits = set()
    for part in map(str.casefold, _PART.findall(name)):
        if is_joint(part):
            splits |= {"train", "val"}
        elif like := _LIKE.fullmatch(part):
            splits.add(like[1] if like[1] in ("train", "test") else "val")
    return splits


def split_like(name: str) -> str | None:
    """The one split that a name may be meant for; None if there is none, or several."""
    splits = splits_like(name)
    return splits.pop() if len(splits) == 1 else None


def check_like(names: Mapping[str, str], splits: Collection[str], where: object) -> None:
    """A ValueError for what may be meant as the split that another one, or a part of train, would stand in for.

    names: what lies beside the splits, and the word of each (a file's name without its ending).
    splits: the splits that are there.
    """
    lacking = () if "val" in splits else ("val",) if "test" in splits else ("val", "test")
    for name, word in names.items() if "train" in splits else ():
        if not (split_of(word) or is_joint(word)) and (split := split_like(word)) in lacking:
            raise ValueError(
                f"{where}: no val split, but {name}, which may be meant as {split}; rename it to "
                f"{split}{name.removeprefix(word)}, or move it away"
            )


def is_joint(word: str) -> bool:
    """Whether a word names train and val together: "trainval", "train_val", "trainval2012"."""
    return _JOINT.fullmatch(word.strip().casefold()) is not None


def joint_is_train(joint: str, splits: Collection[str], where: object) -> bool:
    """Whether a "trainval" is read as train: where there is neither train nor val.

    splits: the splits that are there.  Beside train and val it is their union, and not read; beside one of them,
    a ValueError, as it holds the other.
    """
    if ("train" in splits) != ("val" in splits):
        there, other = ("train", "val") if "train" in splits else ("val", "train")
        raise ValueError(
            f"{where}: {joint} is train and val together, and {there} is beside it, but no {other}; give {other} its "
            f"own place, or take {there} away to learn from {joint}"
        )
    if "train" in splits:
        logger.info("%s: %s is not read, as train and val are there", where, joint)
    return "train" not in splits


def held_out(names: Iterable[str], labels: np.ndarray | None = None) -> np.ndarray:
    """Rising indices of the 15 % of some names with the lowest SHA-1: at least one, never all.

    labels (n): of each class 15 %.
    """
    digests = [hashlib.sha1(name.encode("utf-8", "surrogatepass")).digest() for name in names]
    order = np.array(digests, "S20").argsort(kind="stable")
    groups = [order] if labels is None else [order[labels[order] == label] for label in np.unique(labels)]
    counts = [max(0, min(len(group) - 1, max(1, round(HELD_OUT * len(group))))) for group in groups]
    return np.sort(np.concatenate([group[:count] for group, count in zip(groups, counts, strict=True)]))
