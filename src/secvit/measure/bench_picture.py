"""What `secvit bench` measured: speeds of networks, and how time grows with the number of tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from secvit.draw.picture import FAINT, INK, check_output, new_figure, save, style
from secvit.measure.bench_results import BenchResult, LengthTimes, ModelSpeeds
from secvit.measure.rounds import NULL
from secvit.measure.speed import TWIN

OURS, LITERAL, OTHER = "#c8553d", "#d9a79b", "#8aa6c1"
COLOURS = {"sec": OURS, "windows": "#8aa6c1", "window copy": "#8aa6c1", "global": "#5b5b5b"}
SPARE = ("#6a994e", "#bc8034", "#7b6fa3", "#4f8a8b", "#b0b0b0", "#a05195")


def draw_speeds(result: BenchResult, output: str | os.PathLike[str]) -> Path:
    """What `secvit.measure.bench.run` returned, as one picture; returns its path.

    A column for each table of networks, speed with the span of the rounds, the base at 1; below, where they
    were measured, time over the number of tokens of the clustering alone and of attention alone.
    """
    output = check_output(output)
    models = result.models
    alone = {"the clustering alone": result.operation, "attention alone": result.attention}
    curves = [(title, lengths) for title, lengths in alone.items() if len(lengths) > 1]
    rows = bool(models) + bool(curves)
    if not rows:
        raise ValueError("nothing to draw: no networks, and fewer than two numbers of tokens")
    figure = new_figure(max(10, 3.4 * len(models)), 0.7 + 4.2 * rows)
    width, height = figure.get_size_inches()
    left = 1.6 / width
    grid = figure.add_gridspec(rows, 1, top=1 - 0.85 / height, bottom=0.6 / height, left=left, right=0.97, hspace=0.34)
    figure.text(left, 1 - 0.3 / height, "secvit bench", fontsize=12, color=INK)
    about = f"{result.made['hardware']}; torch {result.made['versions']['torch']}; {result.made['date'][:10]}"
    figure.text(left, 1 - 0.5 / height, about, fontsize=8, color=FAINT)
    if models:
        names = [row.name for row in models[0].rows if not row.name.endswith(NULL)]
        cells = grid[0].subgridspec(1, len(models), wspace=0.08)
        for i in range(len(models)):
            _bars(figure.add_subplot(cells[i]), models[i], names, labelled=i == 0)
    if curves:
        cells = grid[-1].subgridspec(1, len(curves), wspace=0.42)
        for i, (title, lengths) in enumerate(curves):
            _growth(figure.add_subplot(cells[i]), title, lengths)
    return save(figure, output)


def _bars(axes: Axes, table: ModelSpeeds, names: Sequence[str], labelled: bool) -> None:
    rows = {row.name: row.vs_base for row in table.rows}
    for place, name in enumerate(reversed(names)):
        if name not in rows:
            continue
        ratio = rows[name]
        colour = LITERAL if name.startswith(TWIN) else OURS if "sec" in name.split("_")[0] else OTHER
        axes.barh(place, ratio.median, color=colour, height=0.62)
        axes.plot([ratio.low, ratio.high], [place, place], color=INK, linewidth=1)
        axes.annotate(
            f"{ratio.median:.2f}", (ratio.high, place), (4, 0), textcoords="offset points", va="center",
            fontsize=8, color=FAINT,
        )  # fmt: skip
    axes.axvline(1, color=INK, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [name.split("_patch")[0] for name in reversed(names)] if labelled else [])
    axes.set_xlim(0, 1.25 * max(ratio.high for ratio in rows.values()))
    axes.xaxis.set_major_locator(MultipleLocator(0.5))
    how = ", compiled" if table.compiled else ""
    mode = "training step" if table.mode == "training" else "inference"
    axes.set_title(f"{mode}, {table.dtype}{how}", loc="left", fontsize=10, color=INK)
    axes.set_xlabel(f"speed, {table.base.split('_patch')[0]} = 1", fontsize=8, color=FAINT)
    style(axes, size=8)


def _growth(axes: Axes, title: str, measured: Sequence[LengthTimes]) -> None:
    names = [name for name in dict.fromkeys(n for one in measured for n in one.seconds) if not name.endswith(NULL)]
    spare = iter(SPARE * 2)
    for name in names:
        points = sorted((one.length, median(one.seconds[name])) for one in measured if name in one.seconds)
        colour = COLOURS.get(name) or next(spare)
        lengths, times = zip(*points)
        axes.plot(lengths, times, color=colour, marker="o", markersize=3, linewidth=2 if name == "sec" else 1.3)
        axes.annotate(
            name, (lengths[-1], times[-1]), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(one.length for one in measured) / 1.3, max(one.length for one in measured) * 2.2)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("tokens", fontsize=8, color=FAINT)
    axes.set_ylabel("seconds", fontsize=8, color=FAINT)
    style(axes, "both", size=8)
