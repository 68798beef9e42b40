"""Benchmark results as tables, the same for a terminal and for a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

from secvit.measure.bench_results import BenchResult, LengthTimes, ModelSpeeds, PartShares
from secvit.measure.parts import PARTS
from secvit.measure.results import environment_lines, made_with, shown_ratio, table
from secvit.measure.rounds import NULL
from secvit.measure.scaling import growth
from secvit.measure.speed import FUSED, SAME_ROAD

# images a second on an A100 in batches of 64: supplement table 2, of which this package and timm have these networks
THROUGHPUT = {
    "secvit_tiny": 2004, "secvit_small": 998, "secvit_base": 504, "secvit_large": 398,
    "sec_swin_tiny": 1482, "sec_swin_small": 804, "sec_swin_base": 696,
    "sec_deit_small": 3412, "sec_deit_base": 1682,
    "deit_small_patch16_224": 3204, "deit_base_patch16_224": 1502,
    "swin_tiny_patch4_window7_224": 1723, "swin_small_patch4_window7_224": 1006, "swin_base_patch4_window7_224": 768,
    "pvt_v2_b1": 2204, "gcvit_xtiny": 1308, "maxvit_small_tf_224": 546, "maxvit_base_tf_224": 306,
}  # fmt: skip


def report(result: BenchResult) -> str:
    """What `secvit.measure.bench.run` returned, as Markdown."""
    lines = [
        made_with(result.made),
        f"{result.made['recipe']['rounds']} rounds, {result.clock}; "
        "median (least .. greatest) of the ratios within a round.",
        *environment_lines(result.made),
        *result.notes,
    ]
    blocks = ["\n".join(lines)]
    blocks += [_models(speeds) for speeds in result.models]
    if result.parts:
        blocks.append(_parts(result.parts))
    if result.operation:
        blocks.append(_scaling("### The clustering alone: time, SEC's scores and order = 1", result.operation))
    if result.attention:
        title = "### Attention alone: time, clusters of 98 = 1 (scores, order, gathers and return included)"
        blocks.append(_scaling(title, result.attention))
    return "\n\n".join(blocks) + "\n"


def _models(speeds: ModelSpeeds) -> str:
    mode = "training step" if speeds.mode == "training" else "inference"
    how = ", compiled" if speeds.compiled else ""
    title = f"### {mode}, {speeds.dtype}{how}, batch {speeds.batch_size}, {speeds.image_size} px"
    columns = ["model", "GMAC", f"speed, {speeds.base} = 1", "paper, A100", "speed, literal twin = 1"]
    shares = {"of the matrix product's rate": "of_matrix_rate", "of oneDNN's rate": "of_onednn_rate"}
    shares = {title: name for title, name in shares.items() if getattr(speeds.rows[0], name) is not None}
    rows = []
    once = [row for row in speeds.rows if not row.name.endswith(NULL)]
    for row in sorted(once, key=lambda row: -row.vs_base.median):
        twin = row.vs_literal
        speed = "1" if row.name == speeds.base else shown_ratio(row.vs_base)
        paper = THROUGHPUT.get(row.name.removeprefix(FUSED).removeprefix(SAME_ROAD), 0) / THROUGHPUT.get(speeds.base, 1)
        printed = f"{paper:.2f}" if paper and speeds.base in THROUGHPUT and speeds.mode != "training" else ""
        cells = [row.name, f"{row.macs / 1e9:.2f}", speed, printed, shown_ratio(twin) if twin else ""]
        rows.append(cells + [f"{100 * getattr(row, name):.0f} %" for name in shares.values()])
    lines = [title, "", *table([*columns, *shares], rows), ""]
    if any(row.name.startswith(SAME_ROAD) for row in once):
        lines.append("same road: with its linear layers on oneDNN, as ours are; without these words, as timm has it.")
    null = next(row for row in speeds.rows if row.name.endswith(NULL))
    verdict = "" if speeds.quiet else ": **too noisy to quote**"
    lines.append(f"Null pair ({speeds.base} twice): {shown_ratio(null.vs_base)}{verdict}.")
    for name, off in speeds.differences.items():
        lines.append(
            f"{name} and its twin, max |dlogit| / max |logit|: {off['float64']:.0e} in float64; from that, "
            f"in {speeds.dtype}: {off['ours']:.0e} ours, {off['literal']:.0e} literal."
        )
    lines += [f"{name}: {reason}." for name, reason in speeds.skipped.items()]
    return "\n".join(lines)


def _parts(parts: Sequence[PartShares]) -> str:
    columns = ["model", "image", "clusters", "all but the attention", *PARTS]
    rows = []
    for part_shares in parts:
        height, width = part_shares.size
        clusters = "32/8/2" if part_shares.cluster_size is None else f"of {part_shares.cluster_size}"
        shares = [f"{100 * part_shares.shares[part]:.1f} %" for part in ("partition", *PARTS)]
        rows.append([part_shares.name, f"{part_shares.batch_size} x {height}x{width}", clusters, *shares])
    title = "### Share of a forward pass, float32, eager"
    return "\n".join([title, "", *table(columns, rows)])


def _scaling(title: str, lengths: Sequence[LengthTimes]) -> str:
    """A row for each number of tokens, a last one with the exponents of growth."""
    names = [name for name in max((one.times_sec for one in lengths), key=len) if name != "sec"]
    memory = {name: None for one in lengths for name in one.peak_bytes or ()}
    rows = []
    for one in lengths:
        cells = [shown_ratio(one.times_sec[name]) if name in one.times_sec else "not run" for name in names]
        peaks = [_mebibytes((one.peak_bytes or {}).get(name)) for name in memory]
        clusters = f" ({one.num_clusters})" if one.num_clusters is not None else ""
        rows.append([f"{one.length:,}{clusters}", *cells, *peaks])
    exponents = growth(lengths)
    if exponents:
        cells = [f"{exponents[name]:.2f}" if name in exponents else "" for name in names]
        rows.append([f"time ~ L^e, sec: e = {exponents['sec']:.2f}", *cells, *("" for _ in memory)])
    length = "L (M)" if lengths[0].num_clusters is not None else "L"
    columns = [length, *names, *(f"{name}, peak" for name in memory)]
    return "\n".join([title, "", *table(columns, rows)])


def _mebibytes(count: int | None) -> str:
    return "not run" if count is None else f"{count / 2**20:.0f} MiB"
