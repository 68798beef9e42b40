"""Which classes are taken for which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from secvit.draw.picture import FAINT, INK, new_figure, save

FIGURES = 25  # classes up to which each cell of a confusion matrix has its number


def draw_confusion(
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    output: str | os.PathLike[str],
    scores: Sequence[float | None],
    score: str = "IoU",
) -> Path:
    """Of each class's pixels or images (a row), the per cent that were taken for each class.

    scores: of each class in 0..1, to be written beside its name; None where it has none.  score: what they are.
    Classes that do not occur have an empty row.  Returns the picture's path.
    """
    counts = np.asarray(matrix, dtype=float)
    true = counts.sum(1)
    shares = np.divide(100 * counts, true[:, None], out=np.zeros_like(counts), where=true[:, None] > 0)
    names = [f"{n}  {'–' if s is None else f'{100 * s:.0f}'}" for n, s in zip(classes, scores, strict=True)]
    side = 2.6 + 0.36 * min(len(classes), 40)
    figure = new_figure(side + 1, side)
    axes = figure.add_axes((0.3, 0.04, 0.66, 0.74))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    small = max(4, min(9, 360 / len(classes) / 3))
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="left", fontsize=small, color=INK)
    axes.set_yticks(range(len(classes)), names, fontsize=small, color=INK)
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
    axes.set_title("taken for", loc="left", fontsize=10, color=FAINT)
    axes.set_ylabel(f"is ({score}, %)", fontsize=10, color=FAINT)
    for i, j in np.argwhere(shares >= 0.5) if len(classes) <= FIGURES else ():
        colour = "white" if shares[i, j] > 55 else INK
        axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=small, color=colour)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return save(figure, output)
