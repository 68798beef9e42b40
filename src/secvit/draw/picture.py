"""Figures without pyplot (no global state, no display), saved whole or not at all."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import ImageFont

from secvit.files import check_target, write_atomically

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")
INK, FAINT = "#1a1a1a", "#6b6b6b"


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of so many inches, drawn by Agg."""
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, grid: Literal["x", "y", "both"] | None = None, ticks: str = FAINT, size: int = 9) -> None:
    """The look of every chart: a faint grid, labels of so many points without ticks, a base line for a frame."""
    if grid:
        axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    axes.tick_params(labelsize=size, colors=ticks, length=0, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")


@functools.lru_cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font of figures, of so many px, for words in photos."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def check_output(path: str | os.PathLike[str]) -> Path:
    """The path of a picture to come, or a ValueError that says why it cannot be written: ask before the work."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: no picture format by that name; end it in {', '.join(FORMATS[:4])} ...")
    return check_target(path)


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write under a temporary name, then rename.  An older file of that name is replaced."""
    path = check_output(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), facecolor=figure.get_facecolor())
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
    return path
