"""The tables of `secvit bench connector`, beside the paper's speeds."""

from __future__ import annotations

from typing import Any

from secvit.measure.connector_results import ConnectorReport, ModelWork, Times
from secvit.measure.results import environment_lines, shown_ratio, table

# Speed as printed, 576 tokens = 1: table 7 for 7B, tables 8 and 9 for 13B.  Table 11 and supplement table 3 print
# almost the same for hours of training (1.6 at 256).  Batch, text and length of the answers are not told.
PAPER = {"LLaVA-1.5-7B": {288: 1.5, 256: 1.7, 192: 1.9, 144: 2.1}, "LLaVA-1.5-13B": {256: 1.8, 144: 2.2}}


def connector_markdown(report: ConnectorReport) -> str:
    """The tables of a `connector_report`."""
    made = report.made
    recipe, versions = made["recipe"], made["versions"]
    extra = "" if recipe["extra_token"] is None else " + 1"
    lines = [
        f"## {recipe['connector']}: an image, {recipe['text']} tokens of text, an answer of {recipe['new']}", "",
        f"secvit {versions['secvit']}, torch {versions['torch']}; commit {made['commit']}; {made['date'][:10]}.",
        *report.notes, "",
    ]  # fmt: skip
    for model in report.models:
        lines += _work_table(model, extra)
    if report.timed is not None:
        lines += _time_table(made, report.timed, extra)
    return "\n".join(lines) + "\n"


def _work_table(model: ModelWork, extra: str) -> list[str]:
    name, rows = model.shape.name, model.rows
    columns = [
        "image tokens", "by", "parameters", "GMAC: tower", "connector", "prefill", "decode", "all",
        "all, times less", "KV cache, MiB", "a decoding step reads, times less", "32 at a time", "paper's speed",
    ]  # fmt: skip
    base, cells = rows[0], []
    for row in rows:
        total, most = (sum(each.macs.values()) for each in (row, base))
        reads = [f"{base.step_bytes[batch] / row.step_bytes[batch]:.2f}" for batch in row.step_bytes]
        printed = PAPER.get(name, {}).get(row.tokens)
        cells.append([
            f"{row.tokens}{extra}", row.connector, f"{row.parameters / 1e6:.1f} M",
            *(f"{row.macs[part] / 1e9:,.1f}" for part in ("vision", "connector", "prefill", "decode")),
            f"{total / 1e9:,.0f}", f"{most / total:.2f}", f"{row.kv_bytes / 2**20:,.0f}", *reads,
            f"{printed}" if printed else "",
        ])  # fmt: skip
    return [f"### {name}: work and memory, from its numbers", "", *table(columns, cells), ""]


def _time_table(made: dict[str, Any], timed: Times, extra: str) -> list[str]:
    parts, base = timed.parts, timed.base
    counts = [name for name in parts["answer"].speeds if name != base]
    columns = ["image tokens", *parts, "paper's speed (7B)"]
    rows = []
    for count in counts:
        printed = PAPER["LLaVA-1.5-7B"].get(int(count))
        speeds = [shown_ratio(part.speeds[count]) for part in parts.values()]
        rows.append([f"{count}{extra}", *speeds, f"{printed}" if printed else ""])
    first = parts["first token"].seconds
    vision = sorted(v / t for v, t in zip(first["vision"], first[base], strict=True))[len(first[base]) // 2]
    nulls = ", ".join(f"{part.null.median:.2f}" for part in parts.values())
    noisy = [name for name, part in parts.items() if not part.quiet]
    return [
        f"### {timed.shape.name}, random weights: speed, {base}{extra} tokens = 1", "",
        f"{made['hardware']}; {timed.dtype}, {timed.clock}, {made['recipe']['rounds']} rounds.",
        *environment_lines(made),
        *([f"**Too noisy to quote**: {', '.join(noisy)}."] if noisy else []), "",
        *table(columns, rows), "",
        f"Null pair ({base} twice): {nulls}. The tower takes {100 * vision:.0f} % of the time to the first token at "
        f"{base}, and is not made faster.",
    ]  # fmt: skip
