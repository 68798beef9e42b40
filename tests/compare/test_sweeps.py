"""Comparisons by name: the paper's rows beside ours."""

import json

import pytest

from secvit import recipe_options
from secvit.cli import main
from secvit.compare import sweeps


@pytest.mark.parametrize("name", sweeps.SWEEPS)
def test_every_variant_of_a_sweep_is_a_recipe_of_its_own(name):
    sweep = sweeps.find(name)
    orders = [recipe_options.read([*variant.words, "--data", "DIR"]) for variant in sweep.variants]
    assert len({repr(order.recipe) for order in orders}) == len(orders) == len({v.label for v in sweep.variants})
    assert len({order.name for order in orders}) == (5 if name.startswith("table10") else 1)
    assert not sweep.begins or sweep.begins in sweeps.SWEEPS
    begun = {variant.label for variant in sweeps.find(sweep.begins).variants} if sweep.begins else set()
    for variant, order in zip(sweep.variants, orders, strict=True):
        assert order.recipe.model.init == (f"{{begins}}/{variant.label}/seed_0" if sweep.begins else None)
        assert not sweep.begins or variant.label in begun
    for variant, order in zip(sweep.variants, orders, strict=True):
        assert all(column in variant.row.cells for column in sweep.columns)
        if name.startswith("table10"):
            assert variant.row.label == (variant.label,)
        else:
            model = order.recipe.model
            assert variant.row.label[-1] == f"{model.num_tokens}+1" and model.extra_token == "cls"
            sequential = variant.row.label[0] == "Sequential"
            assert model.connector_args == ({"arrangement": "sequential"} if sequential else {})


def test_all_rows_of_the_papers_tables_are_in_their_sweeps():
    for name, rows in {"table7": 15, "table11": 5, "tables3": 4, "table10": 5}.items():
        assert len({variant.row.name for variant in sweeps.find(name).variants}) == rows


@pytest.mark.slow
def test_a_sweep_prints_the_papers_rows_beside_ours(tmp_path, capsys):
    words = ["compare", "table10", "--tiny", "--data", "digits", "--seeds", "0", "--loop.steps", "1"]
    words += ["--loop.device", "cpu", "--output", str(tmp_path / "t")]
    assert main(words) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "t/comparison.json").read_text())
    assert found["recipe"] == "table10" and found["variants"] == ["98", "196", "64", "49", "24"]
    for row in found["summary"]:
        printed = {"98": "82.7", "196": "83.0 (+0.3)", "24": "82.0 (-0.7)"}.get(row["variant"], "82.")
        assert f"| {row['variant']} | {printed}" in said and f"| {100 * row['mean']:.1f} (1) |" in said
    assert main(["compare", str(tmp_path / "t")]) == 0
    assert "| tokens of a cluster | Acc: paper | ours |" in capsys.readouterr().out


def test_answers_to_benchmarks_stand_beside_the_papers(tmp_path):
    sweep = sweeps.find("table7")
    runs = [
        {"variant": variant.label, "folder": f"{variant.label}/seed_0", "result": {"loss": 1.0}}
        for variant in sweep.variants
    ]
    answers = tmp_path / "sec_288/seed_0/answers"
    answers.mkdir(parents=True)
    (answers / "gqa_val.scores.json").write_text(json.dumps({"accuracy": 0.631}))
    (answers / "mme_val.scores.json").write_text(json.dumps({"perception": 1500.25}))
    said = sweeps.beside(sweep, {"runs": runs}, tmp_path)
    line = next(line for line in said.splitlines() if line.startswith("| sec_288 |"))
    assert "| 63.5 | 63.1 (1) |" in line and "| 1510.7 | 1500.2 (1) |" in line and "| 60.1 | not run |" in line


@pytest.mark.parametrize("words, message", [
    (["table7"], "begins with the runs of table7.stage1"),
    (["table10", "--vary", "optim.lr=1,2"], "says itself what varies"),
    (["table10", "--begins", "runs"], "begins with no runs"),
    (["classification.digits", "--vary", "optim.lr=1e-3,2e-3", "--begins", "runs"], "is for a sweep"),
])  # fmt: skip
def test_words_that_a_sweep_has_no_use_for_are_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words, "--data", "digits"]) == 2
    assert message in capsys.readouterr().err
