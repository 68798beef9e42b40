"""Every example runs as it stands, in a folder of its own."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
MAKES = {
    "01_cluster_an_image": ["clusters.png"],
    "02_attention": [],
    "03_backbone": [],
    "04_train_your_folder": ["runs/mine/model.safetensors", "runs/mine/curves.png"],
    "05_convert_checkpoint": ["secvit.safetensors"],
    "06_export": ["secvit_nano.pt2"],
    "07_patch_a_vit": [],
    "08_look_inside": ["look.png", "partitions.png"],
}
SLOW = {"06_export"}  # the exporters take most of a minute
NEEDS_DIGITS = {"01_cluster_an_image", "04_train_your_folder", "08_look_inside"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MAKES]
)
def test_an_example_runs_and_writes_what_it_says(name, tmp_path, monkeypatch, capsys):
    if name in NEEDS_DIGITS:
        pytest.importorskip("sklearn", reason="the examples' images come with scikit-learn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
    assert [file for file in MAKES[name] if not (tmp_path / file).is_file()] == []


def test_examples_are_short_and_say_what_one_learns():
    assert sorted(MAKES) == sorted(path.stem for path in EXAMPLES.glob("0*.py"))
    for name in MAKES:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert text.startswith('"""You learn')
        assert len(text.splitlines()) < 60, name


def demo(folder, warnings, *words, **environment):
    command = [sys.executable, "-W", "error", *warnings, str(EXAMPLES / "demo.py"), *words]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)


def test_the_demo_compares_draws_and_says_where(tmp_path, warnings_of_this_run):
    pytest.importorskip("sklearn", reason="the digits and the photograph come with scikit-learn")
    done = demo(tmp_path, warnings_of_this_run, "--epochs", "0.05", "--output", "here")
    assert done.returncode == 0, done.stderr
    for words in ("most frequent class", "sec", "window", "random", "One seed", "no claim"):
        assert words in done.stdout
    pictures = ("clusters.png", "digit_clusters.png", "curves.png", "comparison.png")
    for file in (*pictures, "comparison.md", "comparison.json", "sec/seed_0/model.safetensors"):
        assert (tmp_path / "here" / file).is_file()
        assert str(Path("here") / file) in done.stdout
    results = [run["result"] for run in json.loads((tmp_path / "here" / "comparison.json").read_text())["runs"]]
    same = [{**r["recipe"], "model": {**r["recipe"]["model"], "args": None}} for r in results]
    assert same[0] == same[1] == same[2]
    assert len({r["parameters"] for r in results}) == 1
    again = demo(tmp_path, warnings_of_this_run, "--epochs", "0.05", "--output", "here")
    assert again.returncode == 0 and "3 finished before" in again.stdout


@pytest.mark.slow
def test_the_demo_refuses_a_wrong_photo_before_training(tmp_path, warnings_of_this_run):
    done = demo(tmp_path, warnings_of_this_run, PHOTO="none.jpg")
    assert done.returncode == 2
    assert "none.jpg" in done.stderr and "training" not in done.stdout
