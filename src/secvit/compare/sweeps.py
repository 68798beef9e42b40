"""Comparisons by name: the paper's ablations, whose rows stand beside ours.

A sweep is a set of variants, each a recipe and changes of it, and the row of the paper that each one is about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvit import paper

TOKENS_OF_TABLE_10 = (98, 196, 64, 49, 24)
CONNECTORS = {"MLP": "mlp", "MLP+SEC": "sec", "Resampler": "resampler", "MLP+Pool": "pool", "MLP+EViT": "evit"}
DETECTION = {"AP^b": "box_AP", "AP^m": "mask_AP"}
# figures that `secvit evaluate RUN --benchmark` writes to RUN/answers, by the paper's column: file, entry, factor
SCORED: dict[str, tuple[str, str, float]] = {
    "TextVQA": ("textvqa_val", "accuracy", 100),
    "GQA": ("gqa_val", "accuracy", 100),
    "POPE": ("pope_val", "mean_f1", 100),
    "MME": ("mme_val", "perception", 1),
}


@dataclass(frozen=True)
class Variant:
    """A row of a sweep.

    words: recipe and options of `secvit train`; {begins} in them is the folder of the sweep that it begins with.
    row: of the paper.
    """

    label: str
    words: tuple[str, ...]
    row: paper.Row


@dataclass(frozen=True)
class Sweep:
    """Variants by which a table of the paper is run again.

    columns: of the paper's table, and the figure of result.json that stands beside each.
    begins: name of the sweep whose runs the variants begin with, or "".
    """

    about: str
    variants: tuple[Variant, ...]
    columns: Mapping[str, str]
    begins: str = ""


def find(name: str) -> Sweep | None:
    """The sweep of a name; None for other words."""
    make = SWEEPS.get(name)
    return make() if make else None


def beside(sweep: Sweep, comparison: Mapping[str, Any], output: Path) -> str:
    """The paper's row beside the mean of our seeds, as a Markdown table."""
    shown = [*sweep.columns, *(column for column in SCORED if _asked(sweep, column))]
    lines = [f"| {sweep.about} | {' | '.join(f'{column}: paper | ours' for column in shown)} |"]
    lines.append("|---|" + "---|---|" * len(shown))
    for variant in sweep.variants:
        runs = [run for run in comparison["runs"] if run["variant"] == variant.label and run["result"]]
        cells = []
        for column in shown:
            values = [value for run in runs if (value := _value(sweep, column, run, output)) is not None]
            ours = f"{sum(values) / len(values):.1f} ({len(values)})" if values else "not run"
            cells += [variant.row.cells[column], ours]
        lines.append(f"| {variant.label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "In brackets the number of our seeds.", ""])


def _asked(sweep: Sweep, column: str) -> bool:
    return not sweep.columns and column in sweep.variants[0].row.cells


def _value(sweep: Sweep, column: str, run: Mapping[str, Any], output: Path) -> float | None:
    """A run's figure in the unit of the paper; None where there is none yet."""
    if column in sweep.columns:
        value = run["result"].get(sweep.columns[column])
        return 100 * value if isinstance(value, int | float) and value >= 0 else None
    file, entry, factor = SCORED[column]
    path = output / run["folder"] / "answers" / f"{file}.scores.json"
    value = json.loads(path.read_text()).get(entry) if path.is_file() else None
    return factor * value if isinstance(value, int | float) else None


# -- the paper's -------------------------------------------------------------------------------


def _table_10(columns: Mapping[str, str], first: str, others: str, begins: str = "") -> Sweep:
    rows = {row.name: row for row in paper.tables()["Table 10"].rows}
    recipes = {tokens: first if tokens == 98 else others.format(tokens) for tokens in TOKENS_OF_TABLE_10}
    variants = []
    for tokens, recipe in recipes.items():
        init = ("--model.init", f"{{begins}}/{tokens}/seed_0") if begins else ()
        variants.append(Variant(str(tokens), (recipe, *init), rows[str(tokens)]))
    return Sweep("tokens of a cluster", tuple(variants), columns, begins)


def table10() -> Sweep:
    """Table 10 on ImageNet-1k."""
    return _table_10({"Acc": "top1"}, "classification.imagenet_secvit_tiny", "classification.table10_{}_tokens")


def table10_detection() -> Sweep:
    """Table 10 on COCO, from the classifiers of `table10`."""
    recipes = ("detection.mask_rcnn_1x_secvit_tiny", "detection.table10_mask_rcnn_{}_tokens")
    return _table_10(DETECTION, *recipes, begins="table10")


def table10_segmentation() -> Sweep:
    """Table 10 on ADE20K, from the classifiers of `table10`."""
    recipes = ("segmentation.ade20k_semantic_fpn_secvit_tiny", "segmentation.table10_semantic_fpn_{}_tokens")
    return _table_10({"mIoU": "miou"}, *recipes, begins="table10")


def _connectors(table: str, stage: int) -> Sweep:
    """Rows of a table about connectors in LLaVA-1.5 7B, in one of its two stages of training."""
    variants = []
    for row in paper.tables()[table].rows:
        connector, tokens, arguments = _connector(row)
        label = f"{connector}_{tokens}{'_sequential' * bool(arguments)}"
        words = ["vlm.llava_pretrain_7b" if stage == 1 else "vlm.llava_finetune_7b"]
        words += ["--model.connector", connector, "--model.num_tokens", str(tokens)]
        words += ["--model.connector_args", arguments] if arguments else []
        words += ["--model.init", f"{{begins}}/{label}/seed_0"] if stage == 2 else []
        variants.append(Variant(label, tuple(words), row))
    begins = f"{table.replace(' ', '').lower()}.stage1" if stage == 2 else ""
    return Sweep("connector and tokens", tuple(variants), {}, begins)


def _connector(row: paper.Row) -> tuple[str, int, str]:
    """Name of a connector, tokens, and further arguments."""
    tokens = int(row.label[-1].partition("+")[0])
    if row.table == "Table 7":
        return CONNECTORS[row.label[1]], tokens, ""
    sequential = '{"arrangement": "sequential"}' if row.label[0] == "Sequential" else ""
    return "mlp" if tokens == 576 else "sec", tokens, sequential


def _both_stages() -> Iterator[tuple[str, Any]]:
    for table in ("Table 7", "Table 11", "Table S3"):
        name = table.replace(" ", "").lower()
        yield f"{name}.stage1", lambda table=table: _connectors(table, 1)
        yield name, lambda table=table: _connectors(table, 2)


SWEEPS = {
    "table10": table10,
    "table10.detection": table10_detection,
    "table10.segmentation": table10_segmentation,
    **dict(_both_stages()),
}
