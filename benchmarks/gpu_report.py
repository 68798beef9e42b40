"""Tables of `benchmarks/gpu.py`, and what was aimed at on a GPU."""

from __future__ import annotations

from statistics import median
from typing import Any

from secvit.measure.results import shown_ratio, table
from secvit.measure.rounds import NULL, speed_ratio

GATHERED = ", gather + SDPA"  # what a model is called that takes torch's attention on gathered rows


def goals(result: dict[str, Any] | None) -> str:
    """Aims in bfloat16 on an H200 beside what a run reached; "not run" where there is no figure.  Markdown."""
    result = result or {"kernels": [], "models": [], "near_far": []}
    alone = [row for row in result["kernels"] if "seconds" in row and row["length"] >= 3136 and not row["training"]]
    most = {row["length"]: max(r["batch"] for r in alone if r["length"] == row["length"]) for row in alone}
    alone = [row for row in alone if row["batch"] == most[row["length"]]]  # each length's largest batch
    grouped = [speed_ratio(row["seconds"], "grouped SDPA", "fused").median for row in alone]
    floor = [median(row["seconds"]["kernel alone"]) / row["floor_seconds"] for row in alone]

    def models(mode: str, compiled: bool, batch: int, ratio: str, *names: str) -> list[float]:
        key = (mode, compiled, batch)
        found = [m for m in result["models"] if (m["mode"], m["compiled"], m["batch"]) == key]
        rows = [row for table in found for row in table["rows"] if row["name"] in names and ratio in row]
        return [row[ratio] if isinstance(row[ratio], float) else row[ratio]["median"] for row in rows]

    both = ("secvit_tiny", "secvit_small")
    seeing = [
        speed_ratio({"global SDPA": row["seconds"]["global SDPA"], "whole": _sum(row)}, "whole", "global SDPA").median
        for row in result["near_far"]
        if "seconds" in row and row["length"] >= 4096 and not row["training"]
    ]
    aims: list[tuple[str, str, list[float]]] = [
        ("scores, order and attention: time, attention on grouped tokens = 1, L >= 3,136", "<= 1.5", grouped),
        ("the attention kernel: time, its bytes at the rate of a copy = 1, L >= 3,136", "<= 1.3", floor),
        (
            "T and S, inference, batch 256: speed, literal twin = 1",
            "3",
            models("inference", False, 256, "vs_literal", *both),
        ),
        ("the same, both compiled", "1.5", models("inference", True, 256, "vs_literal", *both)),
        (
            "T, inference, batch 256, compiled: speed, Swin-T = 1",
            "1.5",
            models("inference", True, 256, "vs_base", both[0]),
        ),
        (
            "T and S, inference, batch 256, compiled: share of the byte floor",
            "0.5",
            models("inference", True, 256, "of_byte_floor", *both),
        ),
        (
            "T and S, training step, batch 64: speed, literal twin = 1",
            "2",
            models("training", False, 64, "vs_literal", *both),
        ),
        ("near and far by the kernel, tree and all, L = 4,096 to 16,384: speed, attention to all = 1", "1.5", seeing),
    ]
    body = [[aim, wanted, ", ".join(f"{x:.2f}" for x in values) or "not run"] for aim, wanted, values in aims]
    return "\n".join(table(["goal", "aimed at", "reached"], body)) + "\n"


def _sum(row: dict[str, Any]) -> list[float]:
    """Seconds of the kernel with those of the tree before it, round by round."""
    return [a + b for a, b in zip(row["seconds"]["fused"], row["seconds"]["tree"], strict=True)]


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    versions = ", ".join(
        f"{name} {result['versions'][name]}" for name in ("torch", "timm") if name in result["versions"]
    )
    red = [
        row["name"] for part in ("checks", "near_far", "kernels", "models") for row in result[part] if row.get("red")
    ]
    lines = [
        *(["A tiny run: it shows that the script runs, and its figures nothing."] if result["tiny"] else []),
        f"{result['hardware']}; {versions}; commit {result['commit'] or 'unknown'}; {result['date'][:10]}.",
        f"{result['recipe']['rounds']} rounds, {result['clock']}; median (least .. greatest).",
        f"Checks of the kernel: {len(result['checks'])}, red: {len(red)}{''.join('; ' + name for name in red)}.",
        *(f"Not run: {line}." for line in result["not_run"]),
        *(f"Error: {line}" for line in result["errors"]),
    ]
    ceilings = result["ceilings"]
    if ceilings:
        rates = [f"copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s"]
        rates += [f"{key[:-6]} {ceilings[key] / 1e12:.0f} TFLOP/s" for key in ceilings if key.endswith("_flops")]
        lines.append(f"Measured here: {', '.join(rates)}.")
    blocks = ["\n".join(lines)]
    if rows := [row for row in result["near_far"] if "seconds" in row]:
        blocks.append(_near_far_table(rows))
    for training in (False, True):
        rows = [row for row in result["kernels"] if "seconds" in row and row["training"] == training]
        if rows:
            blocks.append(_kernel_table(rows, training))
    blocks += [_model_table(found) for found in result["models"] if found["rows"]]
    return "\n\n".join(blocks) + "\n"


def _near_far_table(rows: list[dict[str, Any]]) -> str:
    body = []
    for row in rows:
        cells = [f"{1e3 * median(row['seconds'][title]):.2f}" for title in ("global SDPA", "fused", "gathered", "tree")]
        ratios = [speed_ratio(row["seconds"], title, "global SDPA") for title in ("fused", "gathered")]
        shown = [shown_ratio(vars(ratio)) + ("" if row["quiet"] else " (noisy)") for ratio in ratios]
        about = [f"{row['length']:,}", str(row["num_clusters"]), str(row["near"]), str(row["batch"])]
        body.append([*about, "yes" if row["training"] else "no", *cells, *shown])
    columns = [
        "L",
        "M",
        "near",
        "batch",
        "backward",
        "all",
        "fused",
        "gathered",
        "tree",
        "fused, all = 1",
        "gathered, all = 1",
    ]
    title = "### Near and far behind a [cls] token, bfloat16, milliseconds (the tree is not in the first three)"
    return "\n".join([title, "", *table(columns, body)])


def _kernel_table(rows: list[dict[str, Any]], training: bool) -> str:
    titles = [title for title in max((row["seconds"] for row in rows), key=len) if not title.endswith(NULL)]
    body = []
    for row in rows:
        cells = [f"{1e3 * median(row['seconds'][t]):.3f}" if t in row["seconds"] else "not run" for t in titles]
        ratio = speed_ratio(row["seconds"], "grouped SDPA", "fused")
        share = row["floor_seconds"] / median(row["seconds"]["fused"])
        quiet = "" if row["quiet"] else " (noisy)"
        body.append(
            [f"{row['length']:,}", str(row["batch"]), *cells, shown_ratio(vars(ratio)) + quiet, f"{100 * share:.0f} %"]
        )
    columns = ["L", "batch", *titles, "fused / grouped SDPA", "fused, of the byte floor"]
    title = f"### Attention in clusters, bfloat16, {'forward and backward' if training else 'forward'}, milliseconds"
    return "\n".join([title, "", *table(columns, body)])


def _model_table(found: dict[str, Any]) -> str:
    body = []
    for row in sorted(found["rows"], key=lambda row: -row["images_per_second"]):
        others = [shown_ratio(row[key]) if key in row else "" for key in ("vs_base", "vs_literal", "vs_gathered")]
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        floor = f"{100 * row['of_byte_floor']:.0f} %" if "of_byte_floor" in row else ""
        rate = f"{100 * row['of_matrix_rate']:.1f} %"
        body.append([row["name"], f"{row['images_per_second']:,.0f}", *others, rate, floor, peak])
    columns = [
        "model", "images/s", f"speed, {found['base']} = 1", "literal twin = 1", "gathered = 1", "of the matrix rate",
        "of the byte floor", "peak MiB",
    ]  # fmt: skip
    noisy = [] if found["quiet"] else ["", "Null pair off by more than 3 %: **too noisy to quote**."]
    return "\n".join([f"### {found['name']}, bfloat16", "", *table(columns, body), *noisy])
