"""A page of pictures in rows, each under its words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from secvit.draw.picture import FAINT, INK, new_figure

PANEL_AREA = 620 * 465  # px of a panel, whatever the photo's proportions
DPI = 150
GAP, LINE, MARGIN = 26, 24, 40  # px


@dataclass(frozen=True)
class Panel:
    """A picture (H, W, 3) in 0..1 or 0..255, with a bold first line above it and fainter ones after."""

    pixels: np.ndarray
    words: str = ""


@dataclass(frozen=True)
class Legend:
    """Words in a panel's place, below a strip of colours (n, 3) with a word at each end, if there is one."""

    text: str
    strip: np.ndarray | None = None
    ends: tuple[str, str] = ("", "")


def draw_panels(
    rows: Sequence[Sequence[Panel | Legend]], size: tuple[int, int], title: str = "", note: str = ""
) -> Figure:
    """Rows of panels of so many px (width, height) each, under a title and a note of one or more lines."""
    width, height = size
    columns = max(len(row) for row in rows)
    lines = max(panel.words.count("\n") + 1 for row in rows for panel in row if isinstance(panel, Panel))
    top = 30 + (44 if title else 0) + (12 + 22 * (note.count("\n") + 1) if note else 0)
    line = LINE * lines + 6
    total_w = 2 * MARGIN + columns * width + (columns - 1) * GAP
    total_h = top + len(rows) * (height + line + GAP) + MARGIN // 2
    figure = new_figure(total_w / DPI, total_h / DPI)

    def text(x: float, y: float, words: str, size: float, colour: str, **more: Any) -> None:
        figure.text(x / total_w, 1 - y / total_h, words, size=size, color=colour, va="top", **more)

    def show(x: float, y: float, height: float, pixels: np.ndarray, **more: Any) -> None:
        axes = figure.add_axes((x / total_w, 1 - (y + height) / total_h, width / total_w, height / total_h))
        axes.imshow(pixels, aspect="auto", **more)
        axes.set_axis_off()

    text(MARGIN, 24, title, 13, INK, weight="bold")
    text(MARGIN, 24 + (40 if title else 0), note, 9, FAINT)
    for i, row in enumerate(rows):
        y = top + i * (height + line + GAP)
        for j, panel in enumerate(row):
            x = MARGIN + j * (width + GAP)
            if isinstance(panel, Panel):
                first, _, rest = panel.words.partition("\n")
                text(x, y, first, 9.5, INK, weight="bold")
                text(x, y + LINE, rest, 8.5, FAINT)
                show(x, y + line, height, panel.pixels, interpolation="nearest")
                continue
            below = y + line
            if panel.strip is not None:
                show(x, below, 22, panel.strip[None], alpha=0.85)
                text(x, below + 30, panel.ends[0], 8.5, INK)
                text(x + width, below + 30, panel.ends[1], 8.5, INK, ha="right")
                below += 78
            text(x, below, panel.text, 8.5, FAINT, linespacing=1.45)
    return figure


def in_rows(panels: Sequence[Panel | Legend], ratio: float) -> list[Sequence[Panel | Legend]]:
    """As many columns as make the page nearest to 16 : 9, with few empty places.  ratio: width : height of a panel"""

    def badness(columns: int) -> float:
        rows = math.ceil(len(panels) / columns)
        empty = columns * rows - len(panels)
        return abs(math.log(columns * ratio / rows * 9 / 16)) + 0.5 * empty / columns

    columns = min(range(1, len(panels) + 1), key=badness)
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]


def panel_size(image: Image.Image, area: int | None = None) -> tuple[int, int]:
    """Width and height in px for the photo's proportions, kept between 1 : 2.5 and 2.5 : 1."""
    ratio, area = min(max(image.width / image.height, 0.4), 2.5), area or PANEL_AREA
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
