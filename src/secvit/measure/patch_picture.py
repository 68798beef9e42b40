"""Speed and memory of a patched model over the image size."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from secvit.draw.picture import FAINT, INK, check_output, new_figure, save, style
from secvit.measure.patch_results import PatchReport
from secvit.measure.patch_tables import patched_how

COLOURS = {"inference": "#c8553d", "training": "#8aa6c1"}


def draw_patch_report(report: PatchReport, output: str | os.PathLike[str]) -> Path:
    """What `secvit.measure.patching.patch_report` returned, as two pictures over the size; returns their path.

    Left the speed, with the span of the rounds and the break-even size; right the peak memory.
    """
    output = check_output(output)
    modes, recipe = list(report.break_even), report.recipe
    # with one cluster it is the same model, and ratios are noise
    results = [result for result in report.sizes if result.clusters > 1] or report.sizes
    sizes = [result.size for result in results]
    figure = new_figure(10, 4.2)
    speed, memory = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.065, right=0.96, top=0.8, bottom=0.13, wspace=0.22)
    figure.text(0.065, 0.94, f"{report.model}, patched: {patched_how(recipe)}", fontsize=12, color=INK)
    figure.text(0.065, 0.89, f"{report.made['hardware']}, {recipe['dtype']}", fontsize=8, color=FAINT)
    speeds: list[float] = []
    memories: list[float] = []
    for mode in modes:
        ratios = [result.speeds(mode).speeds["patched"] for result in results]
        spans = [[ratio.low for ratio in ratios], [ratio.high for ratio in ratios]]
        speed.fill_between(sizes, *spans, color=COLOURS[mode], alpha=0.18, linewidth=0)
        even = report.break_even[mode].size
        label = mode if even is None else f"{mode}, even at about {round(even, -1):.0f} px"
        _line(speed, sizes, [ratio.median for ratio in ratios], label, COLOURS[mode])
        if even is not None:
            speed.plot([even], [1], "o", markersize=9, mfc="white", mec=COLOURS[mode], mew=1.8, zorder=4)
        speeds += spans[0] + spans[1]
        measured = [(result.size, ratio) for result in results if (ratio := result.memory_ratio(mode)) is not None]
        if measured:
            _line(memory, [size for size, _ in measured], [ratio for _, ratio in measured], mode, COLOURS[mode])
        memories += [ratio for _, ratio in measured]
    _finish(speed, sizes, speeds, "speed of the patched model, original = 1", "faster above the line")
    _finish(memory, sizes, memories, "peak memory of the patched model, original = 1", "less below the line")
    return save(figure, output)


def _line(axes: Axes, sizes: list[int], values: list[float], label: str, colour: str) -> None:
    axes.plot(sizes, values, color=colour, linewidth=1.8, marker="o", markersize=4, label=label, zorder=3)
    axes.annotate(
        f"{values[-1]:.2f}", (sizes[-1], values[-1]), (7, 0), textcoords="offset points", va="center", fontsize=9,
        color=colour,
    )  # fmt: skip


def _finish(axes: Axes, sizes: list[int], values: list[float], title: str, hint: str) -> None:
    axes.axhline(1, color=INK, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    low, high = min([*values, 1 / 1.25]), max([*values, 1.25])
    axes.set_ylim(low / 1.12, high * 1.18)
    margin = max(1.1, (sizes[-1] / sizes[0]) ** 0.12)
    axes.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    steps = (0.125, 0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16)
    wide = high / low > 2.5
    kept = [step for step in steps if not wide or step not in (0.7, 0.8, 0.9, 1.2)]
    axes.yaxis.set_major_locator(FixedLocator(kept))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(f"image size, px ({hint})", fontsize=9, color=FAINT)
    style(axes, "y")
    axes.legend(fontsize=9, frameon=False, loc="best")
