"""Which values of masks are classes: what names files say, and what the training masks hold."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from secvit.fields import abridged
from secvit.images.classes import match_classes
from secvit.segmentation.augment import IGNORED
from secvit.segmentation.masks import LARGEST, voc_palette
from secvit.segmentation.names import MOST, Named, Palette, class_values

logger = logging.getLogger(__name__)
T = TypeVar("T")
ADE20K = 150  # classes
BACKGROUND = ("background", "bg", "unlabeled", "unlabelled", "void", "none", "other")


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
            f"{abridged([str(value) for value in sorted(used)], 8)}; in ADE20K, whose folders these are, it is no "
            f'class.  Write classes.json with {{"classes": [...], "ignore_index": 255}} if 0 is {first!r}, or with '
            f'"ignore_index": 0 if 1 is'
        )
    return replace(named, ignored=(0,))


def check_used(classes: Classes, named: Named, used: Collection[int], where: str) -> None:
    """Say which classes never occur in the masks of train; a ValueError where they cannot be what is meant."""
    never = [i for i, value in enumerate(classes.values) if value not in used]
    if not never:
        return
    file, count = named.where, len(classes.names)
    holds = abridged([str(value) for value in sorted(used)], 8)
    remedy = f'say which values are classes in classes.json: {{"classes": {_suggestion(used)}}}'
    if count - len(never) < 2:
        there = ", ".join(repr(name) for i, name in enumerate(classes.names) if i not in never)
        raise ValueError(
            f"{file}: of {count} classes only {there or 'none'} occurs in the masks of train ({where}), which hold "
            f"{holds}, and {abridged([str(v) for v in classes.ignored], 8) or 'nothing'} is ignored; {remedy}"
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
        *(file, len(never), count, abridged([f"{classes.names[i]} ({classes.values[i]})" for i in never], 8)),
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
            f"{where}: masks hold the values {abridged([str(value) for value in values], 8)}, with gaps between them; "
            f'name those that are classes in classes.json: {{"classes": {_suggestion(values)}}}'
        )


def _suggestion(values: Collection[int], most: int = 4) -> str:
    shown = ", ".join(f'"{value}": "..."' for value in sorted(values)[:most])
    return f"{{{shown}{', ...' if len(values) > most else ''}}}"
