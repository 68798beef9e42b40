"""`secvit compare`: variants with the same seeds, in runs like those of `secvit train`, and a fair table of them."""

import json
import sys
from dataclasses import asdict

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from secvit import runs
from secvit.classification import recipes
from secvit.cli import main
from secvit.compare import compare, reopen
from secvit.compare.options import _split
from secvit.train.checkpoint import to_yaml
from tests.conftest import slow_but
from tests.detection.make import coco_folder
from tests.segmentation.make import mask_folder
from tests.vlm.make import folder as conversations

SMALL = ["--tiny", "--model.name", "test_resnet", "--model.args", "{}", "--loop.device", "cpu", "--loop.steps", "2"]
RATES = ["compare", "classification.digits", *SMALL, "--vary", "optim.lr=1e-3,3e-3"]


def finished(folder, **result):
    """A run that came to its end, as far as a report looks."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"recipe": {}, "stopped": "", "split": "val", "images": {"val": 100}, "seconds": 60.0, "parameters": 10}
    (folder / "result.json").write_text(json.dumps({**about, **result}))
    (folder / "model.safetensors").write_bytes(b"")


def comparison(folder, scores, task="classification", figure="top1", **about):
    """A folder with a comparison of finished runs: scores[variant][seed]; None for a run that is not finished."""
    entries = []
    for variant, found in scores.items():
        for seed, score in enumerate(found):
            entries.append({"variant": variant, "seed": seed, "folder": f"{variant}/seed_{seed}"})
            if score is not None:
                finished(folder / variant / f"seed_{seed}", **{figure: score, **about})
    known = {"task": task, "recipe": "a.recipe", "entry": "a.b", "data": "digits", "stopped": ""}
    (folder / "comparison.json").write_text(json.dumps({**known, "runs": entries}))
    return folder


@pytest.fixture
def trained(monkeypatch):
    """What is trained, as (learning rate, seed): nothing really is."""
    calls = []

    def train(recipe, data, output, name=""):
        calls.append((recipe.optim.lr, recipe.loop.seed))
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_bytes(to_yaml({"data": data, **asdict(recipe)}))
        finished(output, top1=0.5 + recipe.loop.seed / 100, summary="fine")
        return json.loads((output / "result.json").read_text())

    monkeypatch.setattr(runs, "train", train)
    return calls


# -- runs --------------------------------------------------------------------------------------


def test_a_run_of_a_comparison_is_the_run_of_train(tmp_path, capsys):
    assert main([*RATES, "--seeds", "1", "2", "--output", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    alone = ["train", "classification.digits", *SMALL, "--optim.lr", "3e-3", "--loop.seed", "2"]
    assert main([*alone, "--output", str(tmp_path / "one")]) == 0
    one, other = (
        load_file(tmp_path / "one/model.safetensors"),
        load_file(tmp_path / "all/3e-3/seed_2/model.safetensors"),
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "all/3e-3/seed_2").iterdir()}
    found = json.loads((tmp_path / "all/comparison.json").read_text())
    assert [(run["variant"], run["seed"]) for run in found["runs"]] == [
        ("1e-3", 1),
        ("3e-3", 1),
        ("1e-3", 2),
        ("3e-3", 2),
    ]
    assert found["runs"][0]["result"]["recipe"]["optim"]["lr"] == 1e-3 and found["versions"] and found["hardware"]
    assert "no claim: 2 seeds" in said and said in (tmp_path / "all/comparison.md").read_text()
    with Image.open(tmp_path / "all/comparison.png") as picture:
        assert picture.size[0] > 600


def test_the_same_command_trains_only_what_is_missing(tmp_path, trained, capsys):
    output = ["--output", str(tmp_path)]
    assert main([*RATES, "--seeds", "0", "1", *output]) == 0
    assert trained == [(1e-3, 0), (3e-3, 0), (1e-3, 1), (3e-3, 1)]
    (tmp_path / "3e-3/seed_0/result.json").unlink()
    assert main([*RATES, "--seeds=0,1,2", *output]) == 0
    assert trained[4:] == [(3e-3, 0), (1e-3, 2), (3e-3, 2)]
    capsys.readouterr()
    assert main([*RATES, "--seeds", "0", *output]) == 0
    assert len(trained) == 7 and "4 more runs" in capsys.readouterr().out


def test_a_run_with_other_options_or_data_is_refused_and_what_ends_alike_is_not(tmp_path, capsys):
    words = [*RATES, "--seeds", "0", "--output", str(tmp_path)]
    assert main(words) == 0
    assert main([*words, "--loop.log_every", "1", "--loop.keep_last", "1"]) == 0
    for change in (["--label_smoothing", "0.2"], ["--loop.steps", "3"], ["--optim.weight_decay", "0"]):
        assert main([*words, *change]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path}/1e-3/seed_0" in error and f"{change[0][2:]} was" in error and "another --output" in error
    assert main(["compare", "classification.digits", *SMALL, "--vary", "optim.name=lamb,adamw", *words[-2:]]) == 2
    assert "holds a comparison of optim.lr of classification.digits" in capsys.readouterr().err


def test_a_value_that_cannot_be_trained_is_refused_before_the_first_training(tmp_path, trained, capsys):
    words = ["compare", "classification.digits", "--tiny", "--vary", "model.args.partition=sec,windw"]
    assert main([*words, "--output", str(tmp_path / "all")]) == 2
    assert "windw: " in (error := capsys.readouterr().err) and "choose one of sec, window" in error
    assert not trained and not (tmp_path / "all").exists()


@pytest.mark.parametrize("way", ["stopped", "raised"])
def test_ctrl_c_keeps_what_is_finished(tmp_path, trained, monkeypatch, capsys, way):
    whole = runs.train

    def train(recipe, data, output, name=""):
        if len(trained) < 3:
            return whole(recipe, data, output, name)
        if way == "raised":
            raise KeyboardInterrupt
        return {"stopped": "interrupted"}

    monkeypatch.setattr(runs, "train", train)
    assert main([*RATES, "--output", str(tmp_path)]) == 130
    said = capsys.readouterr()
    assert "3 of 6 runs are finished" in said.out and "same command goes on" in said.err
    assert [row["by_seed"] for row in reopen(tmp_path)["summary"]] == [{0: 0.5, 1: 0.51}, {0: 0.5}]
    monkeypatch.setattr(runs, "train", whole)
    assert main([*RATES, "--output", str(tmp_path)]) == 0 and len(trained) == 6


def test_a_run_that_diverges_is_named_and_the_others_go_on(tmp_path, trained, monkeypatch, capsys):
    whole = runs.train

    def train(recipe, *others, **named):
        if recipe.optim.lr == 3e-3 and recipe.loop.seed == 1:
            raise FloatingPointError("step 7: non-finite loss")
        return whole(recipe, *others, **named)

    monkeypatch.setattr(runs, "train", train)
    assert main([*RATES, "--output", str(tmp_path)]) == 2
    assert "Failed: 3e-3, seed 1: step 7: non-finite loss" in capsys.readouterr().out
    assert len(trained) == 5


def test_recipes_of_python_are_compared_by_their_names(tmp_path, trained):
    tiny = recipes.tiny(recipes.digits())
    with pytest.raises(ValueError, match="give the same recipe"):
        compare({"a": tiny, "b": tiny}, "digits", tmp_path, [0])
    with pytest.raises(ValueError, match="nothing to compare"):
        compare({"a": tiny}, "digits", tmp_path, [0])


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "what differs"),
        (["--vary", "optim.lr"], "expected ENTRY=VALUE"),
        (["--vary", "optim.lr=1"], "two or more different values"),
        (["--vary", "optim.lr=1,1"], "the same values twice"),
        (["--vary", "optim.lr=1e-3,0.001"], "give the same recipe"),
        (["--vary", "optim.lr=1e-3,fast"], "optim.lr=fast"),
        (["--vary", "optim.lrr=1,2"], "did you mean --optim.lr"),
        (["--vary", "loop.seed=1,2"], "give --seeds"),
        (["--vary", "data=a,b"], "cannot be compared"),
        (["--vary", "output=a,b"], "folder of its own"),
        (["--vary", "optim.lr=1,2", "--vary", "optim.lr=1,2"], "given twice"),
        (["--vary", "optim.lr=1,2", "--vary", "loop.steps=1,2,3"], "loop.steps has 3 values"),
        (["--vary", "optim.lr=1,2", "--figure", "a", "--figure", "b"], "given twice"),
        (["--vary", "optim.lr=1,2", "--optim.lr", "3"], "what --vary varies"),
        (["--vary", "optim.lr=1,2", "--loop.seed", "3"], "give --seeds"),
        (["--vary", "optim.lr=1,2", "--resume", "never"], "resumes by itself"),
        (["--vary", "optim.lr=1,2", "--seeds", "a"], "whole numbers"),
        (["--vary", "optim.lr=1,2", "--seeds", "-1"], "seed=-1"),
        (["--vary", "optim.lr=1,2", "--seeds", "1", "1"], "different ones"),
        (["--vary", "optim.lr=1,2", "--import", "no.such.module_here"], "module_here"),
        (["--vary", "optim.lr=1,2", "--import", "../a.py"], "name of a Python module"),
    ],
)
def test_wrong_words_are_answered_with_what_is_wanted(tmp_path, trained, capsys, words, said):
    assert main(["compare", "classification.digits", *SMALL, "--output", str(tmp_path / "all"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not trained and not (tmp_path / "all").exists()


def test_values_are_cut_at_commas_outside_of_brackets_and_quotes():
    assert _split("a, b") == ["a", "b"]
    assert _split('[1, 2],{"x": 1, "y": [2]},"a,b"') == ["[1, 2]", '{"x": 1, "y": [2]}', '"a,b"']


def test_entries_that_are_varied_together_change_value_by_value(tmp_path, trained):
    words = [*RATES, "--vary", "label_smoothing=0.1,0.2", "--seeds", "0", "--output", str(tmp_path)]
    assert main(words) == 0
    found = [json.loads((tmp_path / "comparison.json").read_text())["runs"][i]["variant"] for i in range(2)]
    assert found == ["1e-3", "3e-3"] and "label_smoothing" in (tmp_path / "comparison.md").read_text()
    configs = [yaml.safe_load((tmp_path / name / "seed_0/config.yaml").read_text()) for name in found]
    assert [(config["optim"]["lr"], config["label_smoothing"]) for config in configs] == [(1e-3, 0.1), (3e-3, 0.2)]


def test_files_of_changes_are_variants_too(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("optim: {lr: 0.1}\n")
    (tmp_path / "b.yaml").write_text("optim: {lr: 0.2}\nlabel_smoothing: 0.0\n")
    words = ["compare", "classification.digits", *SMALL, "--vary", "config=a.yaml,b.yaml", "--seeds", "0"]
    assert main([*words, "--output", "all"]) == 0
    assert trained == [(0.1, 0), (0.2, 0)] and (tmp_path / "all/b.yaml/seed_0").is_dir()


def test_a_module_of_ones_own_is_imported_before(tmp_path, trained, monkeypatch, capsys):
    (tmp_path / "my_rules.py").write_text(
        "import torch, secvit\n"
        "def backwards(tokens, num_clusters, mask, grid, generator):\n"
        "    return -torch.arange(tokens.shape[-2], dtype=torch.float)\n"
        "secvit.register_partition('backwards', backwards)\n"
    )
    (tmp_path / "broken_rules.py").write_text("secvit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = [
        "compare",
        "classification.digits",
        "--tiny",
        "--vary",
        "model.args.partition=sec,backwards",
        "--seeds",
        "0",
    ]
    assert main([*words, "--output", "all"]) == 2 and "backwards" in capsys.readouterr().err
    assert main([*words, "--output", "all", "--import", "my_rules"]) == 0 and len(trained) == 2
    assert main([*words, "--output", "all", "--import", "broken_rules"]) == 2
    assert "broken_rules: NameError" in capsys.readouterr().err


@pytest.mark.parametrize("task", slow_but(("simmim", "segmentation"), ("simmim", "segmentation", "detection", "vlm")))
def test_each_task_is_compared_by_its_own_figure(task, tmp_path, capsys):
    words = {
        "simmim": ["simmim.digits", "--vary", "masking.ratio=0.5,0.6"],
        "segmentation": ["segmentation.folder", "--vary", "model.backbone=secvit_nano,resnet18"],
        "detection": ["detection.folder", "--vary", "model.backbone=secvit_nano,resnet18"],
        "vlm": ["vlm.small", "--vary", "model.connector=sec,pool"],
    }[task]
    if task != "simmim":
        make = {"segmentation": mask_folder, "detection": coco_folder, "vlm": conversations}[task]
        (tmp_path / "data").mkdir()
        make(tmp_path / "data")
        words += ["--data", str(tmp_path / "data")]
    if task in ("segmentation", "detection"):
        words += ["--vary", "model.backbone_args={stem_stride: 4},{}", "--optim.name", "adamw"]  # muon is slow here
    output = tmp_path / "all"
    tiny = ["--tiny", "--loop.device", "cpu", "--loop.steps", "1", "--seeds", "0", "--output", str(output)]
    assert main(["compare", *words, *tiny]) == 0
    found = json.loads((output / "comparison.json").read_text())
    figure = {"simmim": "loss", "segmentation": "miou", "detection": "mask_AP", "vlm": "loss"}[task]
    assert found["figure"]["name"] == figure and found["task"] == task
    assert found["figure"]["better"] == ("lower" if figure == "loss" else "higher")
    assert capsys.readouterr().out.count("| seed 0") == 2


# -- the report --------------------------------------------------------------------------------


def test_the_table_has_mean_range_and_what_the_pairs_tell(tmp_path, capsys):
    scores = {"sec": [0.90, 0.92, 0.94], "window": [0.80, 0.83, 0.84], "random": [0.91, 0.91, 0.95]}
    folder = comparison(tmp_path, scores, majority_floor=0.1)
    assert main(["compare", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "92.00" in said and "90.00 .. 94.00" in said and "10.00 (always the most frequent class)" in said
    lines = {
        line.split("|")[1].strip(): line for line in said.split("difference from sec")[1].splitlines() if "|" in line
    }
    assert "-9.67" in lines["window"] and "worse" in lines["window"]
    assert "+0.33" in lines["random"] and "too close to tell apart" in lines["random"]
    half = 6.205347 * 0.0057735027 / 3**0.5  # t of two degrees of freedom at 97.5 %, as two are compared
    found = json.loads((folder / "comparison.json").read_text())["differences"][0]
    assert (found["low"], found["high"]) == pytest.approx((-0.29 / 3 - half, -0.29 / 3 + half), abs=1e-7)


def test_a_lower_loss_is_better(tmp_path):
    folder = comparison(tmp_path, {"a": [2.0, 2.1, 2.2], "b": [1.0, 1.12, 1.2]}, task="vlm", figure="loss")
    assert [row["verdict"] for row in reopen(folder)["differences"]] == ["better"]


def test_runs_scored_on_other_data_are_not_compared(tmp_path, capsys):
    folder = comparison(tmp_path, {"a": [0.5], "b": [0.6]})
    finished(folder / "b/seed_0", top1=0.6, images={"val": 99})
    assert main(["compare", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "Not all runs were scored on the same data" in said and "difference from" not in said


def test_what_the_runs_were_made_with_is_told_where_it_differs(tmp_path):
    folder = comparison(tmp_path, {"a": [0.5], "b": [0.6]}, hardware="one")
    finished(folder / "b/seed_0", top1=0.6, hardware="another")
    assert any("same hardware" in note for note in reopen(folder)["notes"])


def test_unfinished_runs_and_runs_without_a_score_are_left_out(tmp_path):
    folder = comparison(tmp_path, {"a": [0.3, 0.5, None], "b": [0.4, -1, 0.6]}, task="detection", figure="box_AP")
    found = reopen(folder)
    assert [row["by_seed"] for row in found["summary"]] == [{0: 0.3, 1: 0.5}, {0: 0.4, 2: 0.6}]
    assert found["differences"][0]["by_seed"] == {0: pytest.approx(0.1)}
    assert any("5 of 6 runs are finished" in note for note in found["notes"])


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "no comparison.json"),
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"task": "a", "data": "b", "runs": []}', "task is 'a'"),
        ('{"task": "vlm", "data": "b", "runs": [3]}', "run 1"),
        ('{"task": "vlm", "data": "b"}', "no 'runs'"),
        ('{"task": "vlm", "data": "b", "runs": 3}', "runs is 3"),
        ('{"task": "vlm", "data": "b", "runs": [{"variant": "a", "seed": "x", "folder": "a"}]}', "seed"),
    ],
)
def test_a_folder_that_holds_no_comparison_is_named(tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    assert main(["compare", str(tmp_path)]) == 2
    assert said in (error := capsys.readouterr().err) and str(tmp_path) in error


def test_a_figure_that_is_not_there_is_answered_with_those_that_are(tmp_path, capsys):
    folder = comparison(tmp_path, {"a": [0.5], "b": [0.6]}, macro=0.4)
    assert main(["compare", str(folder), "--figure", "macro"]) == 0 and "| +0.00" in capsys.readouterr().out
    assert main(["compare", str(folder), "--figure", "miou"]) == 2
    assert "choose one of top1, macro" in capsys.readouterr().err


def test_names_of_folders_are_safe_and_different():
    from secvit.compare.training import _folder

    labels = ["sec", "../x", "a/b", "a b", "a_b", '{"a": 1}', "..", "x" * 300, "ü"]
    names = [_folder(label) for label in labels]
    assert len(set(names)) == len(labels) and names[0] == "sec" and names[4] == "a_b"
    assert all(name.isascii() and "/" not in name and name[0] not in ".-" and len(name) < 80 for name in names)
