"""The same image files, asked for their size before training: what is said must be what reading gives."""

from __future__ import annotations

import random
from pathlib import Path

from secvit.images import read_image, upright_size
from tests.fuzz import images
from tests.fuzz.case import Case


def make(rng: random.Random, folder: Path) -> Case:
    return images.make(rng, folder)


def run(case: Case) -> str:
    known: images.Expected = case.data
    try:
        size = upright_size(known.path)
    finally:
        if known.marker and known.marker.exists():
            raise RuntimeError("an image started a program")
    try:
        read = read_image(known.path).size
    except ValueError:  # broken behind its header
        return ""
    if known.size and size != known.size:
        return f"size {size}, not {known.size}"
    return "" if size == read else f"size {size}, but it is read as {read}"
