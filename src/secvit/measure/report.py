"""Benchmark results as tables, the same for a terminal and for a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secvit.measure.parts import PARTS
from secvit.measure.rounds import NULL


def report(result: dict[str, Any]) -> str:
    """What `secvit.measure.bench.run` returned, as Markdown."""
    recipe, versions = result["recipe"], result["versions"]
    made_with = ", ".join(f"{name} {versions[name]}" for name in ("secvit", "torch", "timm") if name in versions)
    environment = ", ".join(f"{name}={value}" for name, value in result["environment"].items())
    lines = [
        f"{result['hardware']}; {made_with}; commit {result['commit'] or 'unknown'}; {result['date'][:10]}.",
        f"{recipe['rounds']} rounds, {result['clock']}; median (least .. greatest) of the ratios within a round.",
        *([f"Environment: {environment}."] if environment else []),
        *result["notes"],
    ]
    blocks = ["\n".join(lines)]
    blocks += [_models(found) for found in result["models"]]
    if result["parts"]:
        blocks.append(_parts(result["parts"]))
    if result["operation"]:
        blocks.append(_operation(result["operation"]))
    return "\n\n".join(blocks) + "\n"


def _models(found: dict[str, Any]) -> str:
    mode = "training step" if found["mode"] == "training" else "inference"
    how = ", compiled" if found["compiled"] else ""
    title = f"### {mode}, {found['dtype']}{how}, batch {found['batch_size']}, {found['image_size']} px"
    columns = ["model", "GMAC", f"speed, {found['base']} = 1", "speed, literal twin = 1"]
    with_rate = any("of_matrix_rate" in row for row in found["rows"])
    rows = []
    once = [row for row in found["rows"] if not row["name"].endswith(NULL)]
    for row in sorted(once, key=lambda row: -row["vs_base"]["median"]):
        twin = row.get("vs_literal")
        speed = "1" if row["name"] == found["base"] else _ratio(row["vs_base"])
        cells = [row["name"], f"{row['macs'] / 1e9:.2f}", speed, _ratio(twin) if twin else ""]
        rows.append(cells + ([f"{100 * row['of_matrix_rate']:.0f} %"] if with_rate else []))
    lines = [title, "", *_table(columns + (["of the matrix product's rate"] if with_rate else []), rows), ""]
    null = next(row for row in found["rows"] if row["name"].endswith(NULL))
    verdict = "" if found["quiet"] else ": **too noisy to quote**"
    lines.append(f"Null pair ({found['base']} twice): {_ratio(null['vs_base'])}{verdict}.")
    for name, off in found["differences"].items():
        lines.append(
            f"{name} and its twin, max |dlogit| / max |logit|: {off['float64']:.0e} in float64; from that, "
            f"in {found['dtype']}: {off['ours']:.0e} ours, {off['literal']:.0e} literal."
        )
    lines += [f"{name}: {reason}." for name, reason in found["skipped"].items()]
    return "\n".join(lines)


def _parts(parts: list[dict[str, Any]]) -> str:
    columns = ["model", "image", "clusters", "all but the attention", *PARTS]
    rows = []
    for found in parts:
        height, width = found["size"]
        clusters = "32/8/2" if found["cluster_size"] is None else f"of {found['cluster_size']}"
        shares = [f"{100 * found['shares'][part]:.1f} %" for part in ("partition", *PARTS)]
        rows.append([found["name"], f"{found['batch_size']} x {height}x{width}", clusters, *shares])
    title = "### Share of a forward pass, float32, eager"
    return "\n".join([title, "", *_table(columns, rows)])


def _operation(operation: list[dict[str, Any]]) -> str:
    names = [name for name in max((found["times_sec"] for found in operation), key=len) if name != "sec"]
    rows = []
    for found in operation:
        cells = [_ratio(found["times_sec"][name]) if name in found["times_sec"] else "not run" for name in names]
        rows.append([f"{found['length']:,} ({found['num_clusters']})", *cells])
    title = "### The clustering alone: time, SEC's scores and order = 1"
    return "\n".join([title, "", *_table(["L (M)", *names], rows)])


def _ratio(ratio: dict[str, float]) -> str:
    values = (ratio[key] for key in ("low", "median", "high"))
    low, middle, high = (f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in values)
    return f"{middle} ({low} .. {high})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
