"""What `secvit patch-report` measured, as the tables and sentences of a page or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from secvit.measure.parts import PARTS
from secvit.measure.patch_results import BASES, PatchReport, SizeResult
from secvit.measure.results import environment_lines, made_with, shown_ratio, table
from secvit.ops import DEFAULT_QUALITY

RANDOM = (
    "**The weights are random, so the cosines below mean nothing for a trained model**: add --pretrained, or give a "
    "run or a folder with weights."
)
OTHERS = {"default": f"by default: quality {DEFAULT_QUALITY}", "window": "windows", "random": "random groups"}


def patch_markdown(report: PatchReport) -> str:
    """All that `patch_report` returned."""
    recipe, sizes = report.recipe, report.sizes
    batch = "one image" if recipe["batch_size"] == 1 else f"{recipe['batch_size']} images"
    lines = [
        f"## {report.model}, patched: {patched_how(recipe)}",
        "",
        made_with(report.made),
        f"{batch}, {recipe['dtype']}; {recipe['rounds']} rounds, {report.clock}; median (least .. greatest) of the "
        "ratios within a round; above 1 the patched model is the faster one.",
        *environment_lines(report.made),
    ]
    verdict = [f"**{mode}: {even.sentence}.**" for mode, even in report.break_even.items()]
    verdict += [line for result in sizes for line in _advice(result, report)]
    verdict += [f"{note}." for note in report.notes]
    by_photo = any(result.agreement for result in sizes)
    if by_photo and report.weights == "random":
        verdict.append(RANDOM)
    blocks = [lines, verdict, _speed_table(report), *([_agreement_table(report)] if by_photo else [])]
    blocks += [_memory_table(sizes), _parts_table(sizes)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def patched_how(recipe: dict[str, Any]) -> str:
    """The options of `secvit.patch` in words; older results have fewer."""
    quality, count = recipe.get("quality"), recipe["num_clusters"]
    counted = f"{count} clusters" if count else f"clusters of {recipe['cluster_size']}"
    parts = [
        f"quality {quality}" if quality else counted,
        f"by {recipe['partition']}" if recipe["partition"] not in ("auto", "sec") else "",
        f"near {recipe['near']}" if recipe.get("near") else "",
        "far" if recipe.get("far") else "",
        f"one order for {recipe['share_order_every']} layers" if recipe["share_order_every"] > 1 else "",
        "one order for all heads" if recipe["shared"] else "",
        f"layers {', '.join(map(str, recipe['layers']))}" if recipe["layers"] else "",
    ]
    return ", ".join(filter(None, parts))


def _advice(result: SizeResult, report: PatchReport) -> list[str]:
    modes = report.break_even
    if result.clusters == 1 and report.recipe.get("quality"):
        return [f"At {result.size} px {result.tokens} tokens are too few for clusters to pay: nothing changes."]
    if result.clusters == 1:
        return [f"At {result.size} px one cluster holds all {result.tokens} tokens: nothing changes."]
    ratios = {mode: result.speeds(mode).speeds["patched"].median for mode in modes}
    slower = [f"{ratio:.2f} of the original's speed ({mode})" for mode, ratio in ratios.items() if ratio <= 1]
    if not slower:
        return []
    verdict = "not worth it there" if len(slower) == len(ratios) else "there it is worth it for the other only"
    return [f"At {result.size} px the patched model has {', '.join(slower)}: {verdict}."]


def _speed_table(report: PatchReport) -> list[str]:
    modes = list(report.break_even)
    unfused = any("unfused" in result.inference.speeds for result in report.sizes)
    columns = [
        "px", "tokens", "clusters", "GMAC, original", "patched", *(f"{mode}, original = 1" for mode in modes),
        *(["unfused original"] if unfused else []), "null pair", "cosine of tokens", "of pooled",
    ]  # fmt: skip
    rows = []
    for result in report.sizes:
        speeds = result.inference.speeds
        nulls = [f"{result.speeds(mode).null.median:.2f}" for mode in modes]
        macs = [f"{result.macs[name].total / 1e9:.2f}" for name in BASES]
        cosines = [f"{result.cosine[name]:.3f}" for name in ("tokens", "pooled")]
        rows.append(
            [str(result.size), f"{result.prefix_tokens} + {result.tokens}", str(result.clusters), *macs]
            + [shown_ratio(result.speeds(mode).speeds["patched"]) for mode in modes]
            + ([shown_ratio(speeds["unfused"]) if "unfused" in speeds else "not run"] if unfused else [])
            + [", ".join(nulls), *cosines]
        )
    photos = report.recipe.get("photos")
    seen = f"{len(photos)} photo{'s' * (len(photos) > 1)}" if photos else "made-up images"
    remark = f"Cosine of patched to original features on {seen}"
    if report.weights == "random" and not any(result.agreement for result in report.sizes):
        remark += "; the weights are random, so it says little about a trained model"
    return ["### Work, speed and features", "", *table(columns, rows), "", remark + "."]


def _agreement_table(report: PatchReport) -> list[str]:
    photos = report.recipe["photos"]
    labels = {"patched": patched_how(report.recipe), **OTHERS}
    columns = ["px", "patched", "clusters", "inference, original = 1", "cosine of tokens", "worst", "pooled", "worst"]
    rows = []
    for result in report.sizes:
        for name, one in (result.agreement or {}).items():
            cells = [cell for cosines in (one.tokens, one.pooled) for cell in _mean_and_worst(cosines, photos)]
            clusters = "1, all tokens" if one.clusters == 1 else str(one.clusters)
            rows.append([str(result.size), labels[name], clusters, shown_ratio(result.inference.speeds[name]), *cells])
    lines = ["### Features by photo", "", *table(columns, rows), ""]
    lines.append("Cosine to the original's features: the mean over a photo's patch tokens; of [cls] or what is pooled.")
    if not photos:
        lines.append("The images are made up; --photos compares on yours.")
    return lines


def _mean_and_worst(cosines: Sequence[float], photos: Sequence[str]) -> list[str]:
    worst = min(cosines)
    where = f" ({photos[cosines.index(worst)]})" if len(photos) > 1 else ""
    return [f"{fmean(cosines):.4f}", f"{worst:.4f}{where}"]


def _memory_table(sizes: Sequence[SizeResult]) -> list[str]:
    modes = list(sizes[0].peak)
    others = {"default": "by default", "unfused": "unfused original"}
    others = {name: text for name, text in others.items() if any(name in one.peak["inference"] for one in sizes)}
    columns = ["px"]
    for mode in modes:
        columns += [f"{mode}, original", "patched", "patched / original"]
        columns += others.values() if mode == "inference" else []
    rows = []
    for result in sizes:
        row = [str(result.size)]
        for mode in modes:
            peak = result.peak[mode]
            ratio = result.memory_ratio(mode)
            row += [_mebibytes(peak["original"]), _mebibytes(peak["patched"]), f"{ratio:.2f}" if ratio else "not known"]
            if mode == "inference":
                row += [_mebibytes(peak[name]) if name in peak else "not run" for name in others]
        rows.append(row)
    over = "Over what weights (in training also their gradients) and images take, each in a fresh process; "
    over += "the fused attention of the original holds no L x L weights either."
    return ["### Peak memory, MiB", "", *table(columns, rows), "", over]


def _mebibytes(count: int | None) -> str:
    return "out of memory" if count is None else f"{count / 2**20:,.1f}"


def _parts_table(sizes: Sequence[SizeResult]) -> list[str]:
    rows = []
    for result in sizes:
        shares = [f"{100 * result.parts[part]:.1f} %" for part in ("partition", *PARTS)]
        if not any(result.parts.values()):
            shares = ["no clusters", *[""] * len(PARTS)]
        rows.append([str(result.size), *shares])
    columns = ["px", "all but the attention", *PARTS]
    return ["### Share of a patched forward pass", "", *table(columns, rows)]
