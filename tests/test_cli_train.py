import json
import os

import pytest
import yaml
from PIL import Image

from secvit.cli import main

SMALL = ["--tiny", "--model.name", "test_resnet", "--model.args", "{}", "--loop.device", "cpu"]


def test_train_then_evaluate(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "classification.digits", "--output", str(run), *SMALL]) == 0
    assert "val top-1" in capsys.readouterr().out
    report = tmp_path / "scores.json"
    assert main(["evaluate", str(run / "model.safetensors"), "--data", "digits", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["top1"] == json.loads((run / "result.json").read_text())["top1"]
    assert main(["evaluate", str(run / "checkpoints/step_00000004")]) == 0
    assert "majority_floor" in capsys.readouterr().out


def test_printed_configuration_is_complete_and_loads_again(tmp_path, capsys):
    words = ["train", "classification.digits", "--optim.lr", "0.5", "--print_config"]
    with pytest.raises(SystemExit) as done:
        main(words)
    text = capsys.readouterr().out
    found = yaml.safe_load(text)
    assert done.value.code == 0 and found["optim"]["lr"] == 0.5
    assert {"model", "augment", "optim", "schedule", "loop", "label_smoothing"} <= found.keys()
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                "classification.digits",
                "--config",
                str(tmp_path / "my.yaml"),
                "--print_config",
            ]
        )
    assert yaml.safe_load(capsys.readouterr().out) == found


@pytest.mark.parametrize(
    "words",
    [
        ["--optim.lrr", "1"],
        ["--optim.lr", "fast"],
        ["--loop.precision", "bf8"],
        ["--loop.batch_size", "0"],
        ["--data", "/nowhere"],
        ["--model.name", "secvit_huge"],
        ["--resume", "/nowhere"],
        ["--optim.lr", "1" + "0" * 400],
        ["--optim.lr", "nan"],
        ["--optim.lr", "1e38"],
        ["--optim.weight_decay", "-1"],
        ["--optim.betas", "[2, 3]"],
        ["--augment.mixup", "-1"],
        ["--augment.erase", "7"],
        ["--augment.scale", "[3, 1]"],
        ["--label_smoothing", "3"],
        ["--model.image_size", "-3"],
        ["--model.args", "{drop_path_rate: 2}"],
        ["--model.args", "{features_only: true}"],
        ["--model.args", "{checkpoint_path: /nowhere}"],
        ["--model.args", "{depths: [1, 2]}"],
        ["--model.args", "&a [*a]"],
        ["--model.name", "vit_tiny_patch16_224", "--model.image_size", "64"],  # which wants other images
    ],
)
def test_wrong_words_are_errors_without_a_traceback(tmp_path, capsys, words):
    try:
        code = main(["train", "classification.digits", "--tiny", "--output", str(tmp_path), *words])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and "Traceback" not in error and error


def test_unknown_key_in_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("optim:\n  learning_rate: 1\n")
    assert main(["train", "classification.digits", "--config", str(tmp_path / "my.yaml")]) == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ["loop: []", "loop: 3", "loop: {keep_last: null}", "optim: {lr: null}", "optim: {lr: .nan}", "- 1", "optim: &a [*a]",
     "optim: {lr: 1, lr: 2}", "optim: [", "augment: {mixup: -1}", "optim: {lr: fast}", "model: {args: [1]}"],
)  # fmt: skip
def test_a_file_with_wrong_values_is_named(tmp_path, capsys, content):
    (tmp_path / "my.yaml").write_text(content)
    words = ["train", "classification.digits", "--tiny", "--config", str(tmp_path / "my.yaml")]
    try:
        code = main([*words, "--output", str(tmp_path / "run")])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and str(tmp_path / "my.yaml") in error and "Traceback" not in error


def test_a_pipe_as_config_is_refused_and_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "my.yaml")
    assert main(["train", "classification.digits", f"--config={tmp_path / 'my.yaml'}"]) == 2
    assert "my.yaml: a device, pipe or socket" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["loop: {steps: 7}", "loop.steps: 7"])
def test_the_length_that_a_file_gives_overrides_that_of_the_recipe(tmp_path, capsys, content):
    (tmp_path / "my.yaml").write_text(content)
    main(
        [
            "train",
            "classification.digits",
            *SMALL,
            "--config",
            str(tmp_path / "my.yaml"),
            "--output",
            str(tmp_path / "r"),
        ]
    )
    found = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["loop"]
    assert (found["epochs"], found["steps"]) == (None, 7)


@pytest.mark.parametrize("name", ["digits", "classification.digit", "nothing.digits", "train.fit"])
def test_unknown_recipe_is_an_error(capsys, name):
    assert main(["train", name]) == 2
    assert "no recipe" in capsys.readouterr().err


def test_help_teaches(capsys):
    assert main([]) == 0 and main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "classification.cifar10_secvit_nano" in text and "--print_config" in text
    with pytest.raises(SystemExit):
        main(["train", "classification.digits", "--help"])
    assert "peak learning rate" in capsys.readouterr().out


def test_unknown_command_is_an_error(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="no recipe"):
        main(["train", "nothing", "--debug"])


def test_a_recipe_without_images_asks_for_them(capsys):
    assert main(["train", "classification.imagenet_secvit_tiny"]) == 2
    assert "classification.imagenet_secvit_tiny needs images: give --data DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["predict", "runs/typo", "photo.jpg"], "runs/typo: no such run, photo or folder"),
        (["evaluate", "runs/typo"], "runs/typo: no such folder or file"),
        (["export", ""], "which run"),
        (["train", "classification.digits", "--model.image_siz", "32"], "did you mean --model.image_size"),
    ],
)
def test_a_wrong_word_is_no_other_run_and_no_other_option(tmp_path, monkeypatch, capsys, words, reason):
    """Neither another network's answer, nor the hub, nor an option that begins alike."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    Image.new("RGB", (32, 32)).save("photo.jpg")
    assert main(words) == 2
    said = capsys.readouterr()
    assert reason in said.err and not said.out
