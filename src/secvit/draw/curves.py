"""Loss and score over a training, from the CSV files that it writes."""

from __future__ import annotations

import math
import os
from pathlib import Path

from matplotlib.axes import Axes

from secvit.draw.picture import FAINT, INK, check_output, new_figure, save, style
from secvit.files import read_csv

# the first of these that a run has
SCORES = {"top1": "top-1 accuracy, %", "miou": "mIoU, %", "mask_AP": "mask AP, %", "box_AP": "box AP, %"}
TRAINED, HELD_OUT = "#8aa6c1", "#c8553d"


def draw_curves(csv_path: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Loss, and accuracy, mIoU or AP where there is one, against optimizer steps, from a run's log.csv and eval.csv.

    Of the training batches (accuracy is missing where images are mixed, and AP always), of the held-out images,
    and of what needs no learning: the most frequent class, or the mean visible colour of SimMIM.
    Returns the picture's path.
    """
    csv_path, output = Path(csv_path), check_output(output)
    if not csv_path.is_file():
        raise ValueError(f"{csv_path}: no such log; give the log.csv of a run")
    training = _columns(csv_path)
    if not _points(training, "loss"):
        raise ValueError(f"{csv_path}: no rows with step and loss; give the log.csv of a run")
    beside = csv_path.with_name("eval.csv")
    held_out = _columns(beside) if beside.is_file() else {}

    score = next((name for name in SCORES if _points(training, name) or _points(held_out, name)), None)
    figure = new_figure(10 if score else 5.6, 3.9)
    axes = figure.subplots(1, 2 if score else 1, squeeze=False)[0]
    figure.subplots_adjust(left=0.07 if score else 0.12, right=0.975, top=0.89, bottom=0.15, wspace=0.2)
    loss = axes[0]
    _line(loss, training, "loss", "training", TRAINED, 1.0)
    _line(loss, held_out, "loss", "held out", HELD_OUT, 1.0)
    _floor(loss, held_out, "mean_baseline", 1.0, "mean visible colour {:.3f}")
    _finish(loss, "loss", None)
    if score:
        accuracy = axes[1]
        _line(accuracy, training, score, "training batches", TRAINED, 100.0)
        _line(accuracy, held_out, score, "held out", HELD_OUT, 100.0)
        _floor(accuracy, held_out, "majority_floor", 100.0, "most frequent class {:.1f} %")
        _finish(accuracy, SCORES[score], 100.0)
    return save(figure, output)


def _floor(axes: Axes, columns: dict[str, list[float]], name: str, scale: float, label: str) -> None:
    points = _points(columns, name)
    if not points:
        return
    value = scale * points[-1][1]
    axes.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        label.format(value), (1, value), (-4, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", fontsize=8, color=FAINT,
    )  # fmt: skip


def _columns(path: Path) -> dict[str, list[float]]:
    """Numbers by column; what is no number becomes NaN."""
    names, rows = read_csv(path)
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _points(columns: dict[str, list[float]], name: str) -> list[tuple[float, float]]:
    pairs = zip(columns.get("step", []), columns.get(name, []), strict=False)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _line(axes: Axes, columns: dict[str, list[float]], name: str, label: str, colour: str, scale: float) -> None:
    points = _points(columns, name)
    if not points:
        return
    steps, values = [x for x, _ in points], [scale * y for _, y in points]
    marker = "o" if len(points) <= 40 else None
    axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label)
    if label == "held out" and name in SCORES:
        axes.annotate(
            f"{values[-1]:.2f}", (steps[-1], values[-1]), (0, -14), textcoords="offset points",
            ha="right", fontsize=9, color=colour,
        )  # fmt: skip


def _finish(axes: Axes, title: str, top: float | None) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("optimizer step", fontsize=9, color=FAINT)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0, top=None if top is None else 1.03 * top)
    style(axes, "y")
    if axes.lines and len(axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize=9, frameon=False)
