"""Write docs/reproduction.md: every cell of every table and figure of the paper, what we have of it, what fills it.

python benchmarks/reproduction.py            the page, and the README's claims, from secvit.paper and the results here
python benchmarks/reproduction.py --count    first count parameters and work anew (minutes): results/counts.json

A number of ours comes from a file of benchmarks/results that `benchmarks/training.py` wrote for the recipe which
fills the cell; as long as there is none, the cell says what is needed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduction_cells import CONTRADICTIONS, Cell, fill, recipes_counted

from secvit import paper
from secvit.compare.figures import Figure

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reproduction.md"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- claims: written by benchmarks/reproduction.py -->\n", "<!-- end of claims -->\n"
RESULTS = HERE / "results"
COUNTS = RESULTS / "counts.json"

HEAD = """\
# The paper's numbers and ours

Written by `python benchmarks/reproduction.py`; `tests/paper/` holds the paper's column against the paper's text. A cell
is filled by the command in its last column, with `--data DATA --output RUN` and, where the recipe's text says so,
`--model.init`; then `python benchmarks/training.py RUN ... --recipe RECIPE --data DATA` keeps the result, and this page
shows it with its seeds, spread, commit, hardware and date. Recipes follow the field's numbers;
[differences.md](differences.md) lists what stays different.

- **not run: needs ...**: the recipe is there, and has not been run at its own size. Many recipes, not all, are trained
  in the tests at a tiny size.
- **small scale only**: measured on a CPU, at another size or with other weights.
- **contradicts itself**: what the paper prints cannot be right, or disagrees with another of its tables.
- Parameters are in millions. "FLOPs (G)" are multiply-accumulates, counted as the paper's own tables do: with attention
  over 2^30 for the paper's own classifiers and over 1e9 for the others' it quotes, of modules alone and over 1e9 in
  Tables 4 to 6.

Tables 7 to 9, 11 and S3 are two trainings and a scoring for each row; `secvit train --help` lists what else they take:
`secvit train vlm.llava_pretrain_7b --model.connector sec --model.num_tokens 288 --output RUN1`,
`secvit train vlm.llava_finetune_7b --model.connector sec --model.num_tokens 288 --model.init RUN1 --output RUN2`,
`secvit evaluate RUN2 --benchmark gqa --data DIR`. The table says connector, tokens and benchmark.

All rows of Tables 7, 10, 11 and S3 by one command for each stage, the paper's rows beside ours: `secvit compare
table10` and so on, [compare.md](compare.md#the-papers-ablations).
"""


def results(kind: str = "secvit train ") -> list[dict[str, Any]]:
    """Results of trainings, the latest first."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    chosen = [one for one in found if isinstance(one, dict) and str(one.get("kind", "")).startswith(kind)]
    return sorted(chosen, key=lambda one: one["date"], reverse=True)


@dataclass(frozen=True)
class Ledger:
    """What there is of ours: counts by recipe, and the latest result of each."""

    counts: dict[str, dict[str, float]]
    trained: dict[str, dict[str, Any]]

    def ours(self, cell: Cell) -> str:
        """What the page says of a cell of the paper."""
        said = self._known(cell) or cell.status
        contradiction = CONTRADICTIONS.get((cell.row.table, cell.row.heading, cell.row.name, cell.column))
        return f"{said}; contradicts itself: {contradiction}" if contradiction else said

    def _known(self, cell: Cell) -> str:
        if cell.count and cell.recipe in self.counts:
            found = self.counts[cell.recipe][cell.count]
            two = cell.count == "work" and cell.recipe.startswith("classification.")
            return f"{found * 1e9 / 2**30:.1f} in 2^30, {found:.2f}e9" if two else f"{found:.1f}"
        if cell.metric and cell.recipe in self.trained:
            return score(self.trained[cell.recipe], cell.metric)
        return ""


def score(result: dict[str, Any], metric: str) -> str:
    """A result's figure: mean over seeds, range, seeds, commit, hardware, date."""
    split = "val" if "val" in result["runs"][0] else "test"
    values = [100 * run[split][metric] for run in result["runs"]]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    seeds = f"{len(values)} seed{'s' * (len(values) > 1)}"
    return (
        f"{sum(values) / len(values):.1f}{spread}; {seeds}, commit {result['commit'][:7]}, {result['hardware']}, "
        f"{result['date']}"
    )


def page(ledger: Ledger) -> str:
    """docs/reproduction.md."""
    parts = [HEAD]
    for table in paper.tables().values():
        parts.append("\n".join([f"\n## {table.name}", f"{table.caption}", "", *_table(table, ledger), ""]))
    return "".join([*parts, figures(), small_scale()])


def _table(table: paper.Table, ledger: Ledger) -> Iterator[str]:
    quoted = []
    yield "| row | cell | paper | ours | filled by |"
    yield "|---|---|---|---|---|"
    for row in table.rows:
        cells = [fill(row, column) for column in row.cells]
        if not any(cells):
            quoted.append(row)
            continue
        name = f"{row.heading}: {row.name}" if row.heading else row.name
        for cell in filter(None, cells):
            yield f"| {name} | {cell.column} | {row.cells[cell.column]} | {ledger.ours(cell)} | {cell.how} |"
    if quoted:
        columns = list(quoted[0].cells)
        yield ""
        yield "Quoted by the paper from other work, and not run here:"
        yield ""
        yield f"| row | {' | '.join(columns)} |"
        yield "|---|" + "---|" * len(columns)
        for row in quoted:
            yield f"| {row.name} | {' | '.join(row.cells.values())} |"


# the paper's main claims: what they are about, and the table, row and column that they stand in
CLAIMS = (
    ("SECViT-T, parameters in millions", "Table 3", "SECViT-T", "Params (M)"),
    ("SECViT-T, multiply-accumulates at 224 px, G", "Table 3", "SECViT-T", "FLOPs (G)"),
    ("SECViT-T, ImageNet top-1", "Table 3", "SECViT-T", "Top1-acc (%)"),
    ("DeiT-S with SEC, ImageNet top-1 (over DeiT-S)", "Table 1", "SEC-DeiT-S (num_cluster=4)", "Acc"),
    ("Swin-T with SEC, ImageNet top-1 (over Swin-T)", "Table 1", "SEC-Swin-T", "Acc"),
    ("DeiT-S with SEC, images a second", "Table 1", "SEC-DeiT-S (num_cluster=4)", "Throughput (imgs/s)"),
    ("Swin-B with SEC after SimMIM, ImageNet top-1", "Table 2", "SEC-Swin-B", "Acc(%)"),
    ("Mask R-CNN 1x on SECViT-S, COCO box AP", "Table 4", "SECViT-S", "Mask R-CNN AP^b"),
    ("UperNet on SECViT-S, ADE20K mIoU", "Table 6", "SECViT-S", "UperNet mIoU_ss (%)"),
    ("LLaVA-1.5 7B with 256 image tokens, GQA", "Table 7", "LLaVA-1.5+SEC, MLP+SEC, 256+1", "GQA"),
    ("LLaVA-1.5 7B with 144 image tokens, speed", "Table 7", "LLaVA-1.5+SEC, MLP+SEC, 144+1", "Speed"),
)


def claims(ledger: Ledger) -> str:
    """The README's table: what the paper says, what we have, and why not more."""
    lines = ["| claim | paper | ours | why not |", "|---|---|---|---|"]
    for title, table, name, column in CLAIMS:
        row = [row for row in paper.tables()[table].rows if row.name == name][-1]
        cell = fill(row, column)
        assert cell is not None
        said, _, reason = ledger.ours(cell).partition(": ")
        if reason:
            said, reason = said.replace("small scale only", "at small scale only"), reason.replace("](../", "](")
        lines.append(f"| {title} ({table}) | {row.cells[column]} | {said} | {reason} |")
    return "\n".join([*lines, ""])


def with_claims(text: str, ledger: Ledger) -> str:
    """The README with the table of today."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{claims(ledger)}{END}{after}"


CLUSTERS = "small scale only: SECViT-nano, [gallery.md](gallery.md)"
FIGURES = (
    ("Figure 1", "window, k-means and SEC partitions", CLUSTERS, "`secvit cluster PHOTO --compare`"),
    ("Figure 2, left", "top-1 accuracy over FLOPs", "not run: needs ImageNet-1k and GPUs", "Table 3"),
    ("Figure 2, right", "connectors in LLaVA-1.5", "not run: needs Vicuna-7B, LLaVA's data, GPUs", "Table 7"),
    ("Figure 3", "SECViT, its block, the connector", "the networks", "`secvit.models.SECViT`, `secvit.connectors`"),
    ("Figure 4", "clusters and Grad-CAM of each stage", CLUSTERS, "`secvit cluster PHOTO --page`"),
    ("Figure S1", "clusters of complex scenes", CLUSTERS, "`secvit cluster PHOTO --page`"),
)


def figures() -> str:
    rows = [f"| {' | '.join(row)} |" for row in FIGURES]
    return "\n".join(["\n## Figures", "", "| figure | what | ours | filled by |", "|---|---|---|---|", *rows, ""])


MAIN = {"classification": "top1", "segmentation": "miou", "detection": "box_AP", "simmim": "loss"}
SMALL = """
## At small scale

Recipes and variants of them that were run to their end on a CPU; all tables are in
[benchmarks/README.md](../benchmarks/README.md), connectors on small tasks in [connectors.md](connectors.md).

| result | data | figure | mean (range) | seeds | commit | hardware | date |
|---|---|---|---|---|---|---|---|
"""
COMPARED = """
Variants with the same seeds, all else equal (`secvit compare`):

| recipe | difference | figure | mean | 95 % interval | | seeds | commit | hardware | date |
|---|---|---|---|---|---|---|---|---|---|
"""


def small_scale() -> str:
    """What was trained here that no table of the paper has: the questions of its tables at the size of a CPU."""
    return SMALL + "".join(sorted(map(_small, results()))) + comparisons()


def _small(result: dict[str, Any]) -> str:
    kind = result["kind"].removeprefix("secvit train ")
    split, figure = "test" if "test" in result["runs"][0] else "val", MAIN[kind]
    factor, digits = (1, 3) if kind == "simmim" else (100, 1)
    values = [factor * run[split][figure] for run in result["runs"]]
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    made = f"{len(values)} | {result['commit'][:7]} | {result['hardware']} | {result['date']}"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return f"| {kind}.{result['name']} | {result['data']} | {split} {figure} | {mean}{spread} | {made} |\n"


def comparisons() -> str:
    """Differences between variants with the same seeds: results/compare.*.json, which `secvit compare` wrote."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("compare.*.json"))]
    return COMPARED + "".join(line for one in found for line in _differences(one)) if found else ""


def _differences(made: dict[str, Any]) -> Iterator[str]:
    figure = Figure(made["figure"]["name"], made["task"])
    about = f"{len(made['seeds'])} | {str(made['commit'])[:7]} | {made['hardware']} | {str(made['date'])[:10]}"
    for row in made["differences"]:
        bounds = "none" if row["low"] is None else " to ".join(figure.shown(row[end], True) for end in ("low", "high"))
        yield (
            f"| {made['recipe']} | {made['entry']}: {row['variant']} against {row['against']} | {figure.title} "
            f"| {figure.shown(row['mean'], True)} | {bounds} | {row['verdict']} | {about} |\n"
        )


def ledger() -> Ledger:
    counts = json.loads(COUNTS.read_text()) if COUNTS.is_file() else {}
    trained: dict[str, dict[str, Any]] = {}
    for result in results():
        trained.setdefault(f"{result['kind'].removeprefix('secvit train ')}.{result['name']}", result)
    return Ledger(counts, trained)


def count() -> dict[str, dict[str, float]]:
    """Parameters in millions and work of each network that a cell counts, on the meta device."""
    from counts import of_recipe

    return {name: of_recipe(name) for name in sorted(recipes_counted())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count parameters and work anew")
    if parser.parse_args().count:
        COUNTS.write_text(json.dumps(count(), indent=1) + "\n")
    PAGE.write_text(page(ledger()))
    README.write_text(with_claims(README.read_text(), ledger()))
