"""The tables of fidelity.py and probes.py."""

from statistics import fmean
from typing import Any

from secvit.measure.results import made_with


def fidelity(result: dict[str, Any]) -> str:
    """Cosine to the unpatched network's tokens, and speed: a row for each variant and number of clusters."""
    recipe, rows = result["recipe"], result["rows"]
    speeds = {one["clusters"]: one for one in result.get("speed", [])}
    lines = [
        f"#### {recipe['network']} at {recipe['size']} px",
        "",
        f"{len(recipe['photos'])} photos; {made_with(result)}",
        "",
        "| clusters | attention | patch tokens, mean | worst photo | [cls], mean | worst | speed over unpatched |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = speeds.get(row["clusters"])
        ratio = "not timed"
        if speed:
            found = speed["speeds"][row["variant"]]
            ratio = f"{found['median']:.2f} ({found['low']:.2f} .. {found['high']:.2f})"
        worst = min(row["patches"])
        photo = recipe["photos"][row["patches"].index(worst)]
        number = "" if row["variant"].startswith(("tokens merged", "image of")) else row["clusters"]
        lines.append(
            f"| {number} | {row['variant']} | {fmean(row['patches']):.4f} | {worst:.4f} ({photo}) "
            f"| {fmean(row['cls']):.4f} | {min(row['cls']):.4f} | {ratio} |"
        )
    if speeds:
        nulls = ", ".join(f"{speed['null']['median']:.3f}" for speed in speeds.values())
        loud = "" if all(speed["quiet"] for speed in speeds.values()) else "; a loaded machine: trust no speed to 3 %"
        lines += ["", f"Null pairs (unpatched twice): {nulls}{loud}."]
    return "\n".join(lines) + "\n"


def probes(result: dict[str, Any]) -> str:
    """Score of each variant by linear probes, and the difference to the unpatched network's."""
    recipe, rows = result["recipe"], result["rows"]
    figure = "accuracy" if recipe["task"] == "classes" else "mIoU"
    kinds = [kind for kind in ("frozen", "refitted") if kind in rows[0]]
    same = any("same" in row for row in rows)
    names = {"frozen": "probe of the unpatched network", "refitted": "probe of its own"}
    columns = [f"{figure}, {names[kind]} | difference (95 %)" for kind in kinds] + ["same answer"] * same
    lines = [
        f"#### {recipe['data']}, {' x '.join(map(str, recipe['size']))} px, {recipe['clusters']} clusters",
        "",
        f"{recipe['network']}; {recipe['images']['train']} images to learn from, {recipe['images']['val']} to score; "
        f"{made_with(result)}",
        "",
        f"| attention | {' | '.join(columns)} |",
        "|---|" + "---|" * (2 * len(kinds) + same),
    ]
    for row in rows:
        cells = []
        for kind in kinds:
            low, high = row[kind]["difference"]["interval"]
            cells += [f"{100 * row[kind]['score']:.1f}"]
            cells += [f"{100 * row[kind]['difference']['mean']:+.1f} ({100 * low:+.1f} .. {100 * high:+.1f})"]
        cells += [f"{100 * row['same']:.1f} %"] if same else []
        lines.append(f"| {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
