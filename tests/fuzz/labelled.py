"""Labelled images of all sources: each input knows which image has which class and colour."""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from secvit.images import load_split, splits

SIZE = (6, 5)
LINKED = 99  # the number of an image that has the pixels of another


class Labelled(NamedTuple):
    """What `data` must give.  labels: class by the end of an image's name; None if that is not known.

    may_lack: one of them may be left out, if the log says so.
    """

    data: str
    labels: dict[str, str] | None
    may_lack: bool = False


def colour(number: int) -> tuple[int, int, int]:
    return 20 + number * 7 % 200, 30 + number * 31 % 200, 40 + number * 57 % 200


def make_image(number: int) -> bytes:
    """A PNG of one colour, by which it is known again."""
    file = io.BytesIO()
    Image.new("RGB", SIZE, colour(number)).save(file, "PNG")
    return file.getvalue()


def classes(rng: random.Random) -> list[str]:
    """Two to four class names."""
    return rng.sample(["cat", "dog", "7", "12", "Fuß", "a b", "写真", "x,y", 'q"q', "0", "1"], rng.randint(2, 4))


@contextlib.contextmanager
def log() -> Iterator[list[str]]:
    """What the package says meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("secvit")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def check(known: Labelled, same: Any = None) -> str:
    """What is wrong with the images read, "" if nothing is."""
    with log() as said:
        parts = [load_split(known.data, split) for split in ("train", "val") if split in splits(known.data)]
    read: dict[str, str] = {}
    for part in parts:
        if len(part) != len(part.names) or len(part) == 0:
            return f"{len(part)} labels, {len(part.names)} names"
        for i, (name, label) in enumerate(zip(part.names, part.labels.tolist(), strict=True)):
            if not 0 <= label < len(part.classes):
                return f"label {label} of {len(part.classes)} classes"
            pixels = np.asarray(part.image(i))
            if name in read:
                return f"{name} twice"
            read[name] = part.classes[label]
            if known.labels is None:
                continue
            ends = [end for end in known.labels if name == end or name.endswith(f"/{end}")]
            if not ends:
                return f"{name}, which is no image of this set"
            if part.classes[label] != known.labels[ends[0]]:
                return f"{name} is {part.classes[label]!r}, not {known.labels[ends[0]]!r}"
            number = int(Path(ends[0]).stem)
            if number != LINKED and tuple(pixels[0, 0].tolist()) != colour(number):
                return f"{name} has the pixels of another image"
    lacking = 0 if known.labels is None else len(known.labels) - len(read)
    if lacking and not (known.may_lack and lacking == 1 and any("left out" in line for line in said)):
        return f"{len(read)} images, not {len(known.labels)}"
    if same is not None and {part.classes for part in parts} != {tuple(same)}:
        return f"classes {parts[0].classes}, not {tuple(same)}"
    return ""
