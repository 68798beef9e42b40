"""docs/reproduction.md: every cell of the paper, what we have of it, and what fills it."""

import json
import re
from collections import Counter

import pytest

from secvit import paper, recipes
from secvit.detection.evaluate import FIGURES
from secvit.vlm import benchmarks as vlm_benchmarks
from tests.conftest import ROOT


def lines(page):
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("| ")
    ]


def test_the_page_is_what_the_command_writes(reproduction):
    page = reproduction.page
    assert page.page(page.ledger()) == page.PAGE.read_text(), "run python benchmarks/reproduction.py"


def test_the_readme_has_the_claims_of_today(reproduction):
    page = reproduction.page
    text = page.README.read_text()
    assert page.with_claims(text, page.ledger()) == text, "run python benchmarks/reproduction.py"
    assert all(len([cell for cell in line if cell]) >= 3 for line in lines(page.claims(page.ledger())))


def test_every_cell_of_every_table_is_there_and_none_is_empty(reproduction):
    rows = lines(reproduction.page.PAGE.read_text())
    assert all(cell for row in rows for cell in row)
    shown = Counter(cell for row in rows for cell in row)
    wanted = Counter(cell for table in paper.tables().values() for row in table.rows for cell in row.cells.values())
    assert not {cell: count for cell, count in wanted.items() if shown[cell] < count}
    assert {f"Figure {n}" for n in (1, 3, 4, "S1", "2, left", "2, right")} <= {row[0] for row in rows}


def test_what_fills_a_cell_exists(reproduction):
    every = list(reproduction.cells.every_cell())
    assert len(every) > 500
    for name in {cell.recipe for cell in every if cell.recipe}:
        assert recipes.find(name)(), name
    named = {name for cell in every for name in re.findall(r"secvit train ([\w.]+)", cell.how)}
    assert all(recipes.find(name)() for name in named)
    asked = {name for cell in every for name in re.findall(r"--benchmark (\w+)", cell.how)}
    assert asked == set(vlm_benchmarks.BENCHMARKS)


def test_figures_of_results_have_the_names_that_they_are_asked_by(reproduction):
    known = {f"{kind}_{name}" for kind in ("box", "mask") for name in FIGURES} | {"top1", "miou"}
    assert set(reproduction.cells.METRICS.values()) <= known


def test_every_recipe_of_a_table_fills_a_cell(reproduction):
    """But for those of the released presets, which no table has above T, and the paper's XL, which was not trained."""
    used = {cell.recipe for cell in reproduction.cells.every_cell()}
    used |= {
        name for cell in reproduction.cells.every_cell() for name in re.findall(r"secvit train ([\w.]+)", cell.how)
    }
    ours = [name for name in recipes.every() if re.search(r"imagenet_|_[13]x_|ade20k_|table10_", name)]
    assert [name for name in ours if name not in used and not name.endswith("_release")] == []


def test_contradictions_are_of_cells_that_exist(reproduction):
    cells = {
        (row.table, row.heading, row.name, column)
        for t in paper.tables().values()
        for row in t.rows
        for column in row.cells
    }
    assert set(reproduction.cells.CONTRADICTIONS) <= cells
    assert reproduction.page.PAGE.read_text().count("; contradicts itself: ") == len(reproduction.cells.CONTRADICTIONS)


def test_a_result_fills_its_cell(reproduction):
    row = next(row for row in paper.tables()["Table 3"].rows if row.name == "SECViT-T")
    cell = reproduction.cells.fill(row, "Top1-acc (%)")
    result = {"runs": [{"val": {"top1": 0.82}}, {"val": {"top1": 0.83}}], "commit": "0123456789", "hardware": "8 H100",
              "date": "2027-01-01"}  # fmt: skip
    ledger = reproduction.page.Ledger({}, {cell.recipe: result})
    assert ledger.ours(cell) == "82.5 (82.0 to 83.0); 2 seeds, commit 0123456, 8 H100, 2027-01-01"
    assert reproduction.page.Ledger({}, {}).ours(cell) == "not run: needs ImageNet-1k and GPUs"


def test_comparisons_at_small_scale_have_their_intervals(reproduction, tmp_path, monkeypatch):
    row = {"variant": "random", "against": "sec", "mean": -0.02, "low": -0.03, "high": -0.01, "verdict": "worse"}
    made = {"task": "classification", "recipe": "classification.a", "entry": "model.args.partition", "seeds": [0, 1, 2],
            "figure": {"name": "top1"}, "differences": [row], "commit": "0123456789", "hardware": "a CPU",
            "date": "2026-12-01T00:00:00"}  # fmt: skip
    (tmp_path / "compare.a.json").write_text(json.dumps(made))
    monkeypatch.setattr(reproduction.page, "RESULTS", tmp_path)
    line = reproduction.page.comparisons().splitlines()[-1]
    assert line == (
        "| classification.a | model.args.partition: random against sec | top-1 accuracy, % | -2.00 | -3.00 to -1.00 "
        "| worse | 3 | 0123456 | a CPU | 2026-12-01 |"
    )


@pytest.mark.parametrize("name", ["classification.imagenet_evit_deit_small", "detection.retinanet_1x_secvit_tiny",
                                  "segmentation.ade20k_upernet_secvit_tiny"])  # fmt: skip
def test_counts_are_those_of_the_networks(reproduction, name):
    assert reproduction.page.ledger().counts[name] == reproduction.counts.of_recipe(name)


def test_the_readme_names_the_page():
    assert "docs/reproduction.md" in (ROOT / "README.md").read_text()
