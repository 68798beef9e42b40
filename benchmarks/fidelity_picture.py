"""A result of benchmarks/fidelity.py as a picture: what is left of the features against the time that it takes.

python benchmarks/fidelity_picture.py RESULT.json [PICTURE.png]
"""

import json
import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from secvit.draw import check_output, new_figure, save
from secvit.draw.picture import FAINT, INK, style

MEAN, WORST, SPREAD = "#c8553d", "#8aa6c1", "#d5d5d5"


def draw_fidelity(result: dict[str, Any], output: str | os.PathLike[str]) -> Path:
    """A point for each variant and number of clusters; returns the picture's path.

    Across: time over the unpatched network's, the median of the rounds.  Up: cosine of patch tokens to the unpatched
    network's, the mean over photos (filled) and the worst photo (hollow).  ValueError for a result without times.
    """
    output = check_output(output)
    speeds = {
        (row["clusters"], name): ratio for row in result.get("speed", []) for name, ratio in row["speeds"].items()
    }
    if not speeds:
        raise ValueError("no times in this result; run benchmarks/fidelity.py with --rounds 1 or more")
    recipe = result["recipe"]
    figure = new_figure(13, 6.8)
    axes = figure.add_axes((0.06, 0.1, 0.5, 0.76))
    rows = sorted(result["rows"], key=lambda row: -fmean(row["patches"]))
    for number, row in enumerate(rows, 1):
        time = 1 / speeds[row["clusters"], row["variant"]]["median"]
        mean, worst = fmean(row["patches"]), min(row["patches"])
        axes.plot([time, time], [worst, mean], color=SPREAD, linewidth=1, zorder=1)
        axes.plot(time, mean, "o", color=MEAN, markersize=6, label="mean over photos" if number == 1 else None)
        axes.plot(time, worst, "o", mfc="white", mec=WORST, markersize=6, label="worst photo" if number == 1 else None)
        axes.annotate(str(number), (time, mean), (5, 4), textcoords="offset points", fontsize=8, color=INK)
        words = f"{number}  {row['variant']}, {row['clusters']} clusters"
        figure.text(
            0.58,
            0.85 - min(0.032, 0.8 / len(rows)) * number,
            f"{words}: {mean:.3f}, {worst:.3f}",
            fontsize=7,
            color=INK,
        )
    axes.axvline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("unpatched", (1, 0.02), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                  fontsize=8, color=FAINT)  # fmt: skip
    axes.set_xlabel("time, unpatched = 1", fontsize=9, color=FAINT)
    axes.set_ylabel("cosine of patch tokens to the unpatched network's", fontsize=9, color=FAINT)
    style(axes, "both")
    axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    title = f"{recipe['network']} at {recipe['size']} px, patched without training"
    figure.text(0.06, 0.94, title, fontsize=12, color=INK)
    quiet = "" if all(row["quiet"] for row in result["speed"]) else "; the machine was too busy to quote the times"
    about = f"{len(recipe['photos'])} photos, {result['hardware']}{quiet}"
    figure.text(0.06, 0.9, about, fontsize=8, color=FAINT)
    figure.text(0.58, 0.85, "mean and worst cosine", fontsize=8, color=FAINT)
    return save(figure, output)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    source = Path(sys.argv[1])
    print(draw_fidelity(json.loads(source.read_text()), (sys.argv[2:] or [source.with_suffix(".png")])[0]))
