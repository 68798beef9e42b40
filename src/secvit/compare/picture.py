"""Scores of a comparison by seed, with mean and range of each variant."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secvit.draw.picture import FAINT, INK, new_figure, save, style

COLOURS = ("#c8553d", "#8aa6c1", "#6a994e", "#bc8034", "#7b6fa3", "#4f8a8b", "#b0b0b0", "#a05195")


def draw_comparison(comparison: Mapping[str, Any], output: str | os.PathLike[str]) -> Path:
    """What `secvit.compare.compare` returned, as a picture; returns its path.

    A row for each variant: a dot for each seed, of the seed's colour in all rows, the mean as a stroke, the range as
    a line, and beside it what the difference from the first variant tells.
    """
    rows, seeds = [row for row in comparison["summary"] if row["by_seed"]], comparison["seeds"]
    verdicts = {row["variant"]: row["verdict"].partition(":")[0] for row in comparison["differences"]}
    scale = 100 if comparison["figure"]["better"] == "higher" else 1
    longest = max((len(_short(row["variant"])) for row in rows), default=1)
    height = 1.35 + 0.5 * max(len(rows), 1)
    width = 7.2 + 0.075 * longest
    figure = new_figure(width, height)
    left = (0.35 + 0.075 * longest) / width
    axes = figure.add_axes((left, 0.5 / height, 1 - left - 2.0 / width, 1 - 1.2 / height))
    for place, row in enumerate(reversed(rows)):
        axes.plot([scale * row["low"], scale * row["high"]], [place, place], color="#bbbbbb", linewidth=3, zorder=1)
        axes.plot([scale * row["mean"]] * 2, [place - 0.28, place + 0.28], color=INK, linewidth=1.6, zorder=2)
        for number, seed in enumerate(seeds):
            if seed in row["by_seed"]:
                shift = 0.4 * ((number + 0.5) / len(seeds) - 0.5)  # equal scores stay apart
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(scale * row["by_seed"][seed], place + shift, "o", color=colour, markersize=6, zorder=3)
        verdict = verdicts.get(row["variant"], "the others are compared with it" if verdicts else "")
        axes.annotate(verdict, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=FAINT)
    axes.set_yticks(range(len(rows)), [_short(row["variant"]) for row in reversed(rows)])
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.margins(x=0.08)
    for number, seed in enumerate(seeds if len(seeds) <= len(COLOURS) else ()):
        axes.plot([], [], "o", color=COLOURS[number], markersize=6, label=f"seed {seed}")
    if len(seeds) <= len(COLOURS):
        figure.legend(
            loc="upper right", ncols=len(seeds), fontsize=8, frameon=False, handletextpad=0.1, columnspacing=1
        )
    named = " of ".join(filter(None, (comparison["entry"], comparison["recipe"])))
    figure.text(0.15 / width, 1 - 0.28 / height, named, fontsize=11, color=INK)
    better = comparison["figure"]["better"]
    axes.set_title(f"{comparison['figure']['title']} ({better} is better)", loc="left", fontsize=9, color=FAINT)
    style(axes, "x", INK)
    return save(figure, output)


def _short(label: str, most: int = 40) -> str:
    return label if len(label) <= most else f"{label[: most - 3]}..."
