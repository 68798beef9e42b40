"""Images that a classifier takes for something else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from secvit.draw.picture import FAINT, INK, new_figure, save

SIDE, COLUMNS = 200, 6  # px of an image; images in a row


def draw_wrong(rows: Sequence[tuple[Image.Image, str, str, Any]], title: str, output: str | os.PathLike[str]) -> Path:
    """A page of images with what each is, and what it is taken for with which probability.

    rows: image, its class, the class it is taken for, the probability of that in 0..1.  Returns the page's path.
    """
    lines = -(-max(1, len(rows)) // COLUMNS)
    width, height, head = COLUMNS * (SIDE + 12) + 12, lines * (SIDE + 44), 44
    total_height = head + height
    figure = new_figure(width / 150, total_height / 150)
    figure.text(12 / width, 1 - 14 / total_height, title, size=7, color=INK, va="top", weight="bold")
    for i, (image, true, predicted, share) in enumerate(rows):
        row, column = divmod(i, COLUMNS)
        drawn = image.convert("RGB")
        factor = SIDE / max(drawn.size)
        width_, height_ = (max(1, round(side * factor)) for side in drawn.size)
        drawn = drawn.resize((width_, height_), Image.Resampling.BICUBIC)
        left, top = 12 + column * (SIDE + 12), head + row * (SIDE + 44)
        x, y = left + (SIDE - drawn.width) / 2, top + (SIDE - drawn.height) / 2
        axes = figure.add_axes(
            (x / width, 1 - (y + drawn.height) / total_height, drawn.width / width, drawn.height / total_height)
        )
        axes.imshow(drawn)
        axes.axis("off")
        for line, (words, colour) in enumerate(
            ((f"taken for {predicted}, {100 * share:.0f} %", INK), (f"is {true}", FAINT))
        ):
            place = (left / width, 1 - (top + SIDE + 4 + 17 * line) / total_height)
            figure.text(*place, _short(words), size=6, color=colour, va="top")
    return save(figure, output)


def _short(words: str, most: int = 34) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"
