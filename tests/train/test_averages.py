"""Averaged weights: of long runs as the recipe says, of short ones without the weights that the run began with."""

import logging
import shutil

import pytest
import torch
import yaml
from torch import nn

from secvit import recipes
from secvit.train import Loop
from secvit.train import checkpoint as files
from secvit.train.ema import Ema
from tests.train.small import Data, loop, run


def right(model):
    """Share of the samples that a model gets right."""
    data = Data()
    return float((model.eval()(data.x).argmax(1) == data.y).float().mean())


def score(model):
    return {"top1": right(model)}


def test_the_averages_of_a_short_run_are_what_it_learned(tmp_path, caplog):
    settings = {"steps": 46, "ema_decay": 0.9999}
    with caplog.at_level(logging.INFO):
        task, result = run(tmp_path / "short", loop(**settings), evaluate=score, best="top1")
    assert abs(result.metrics["top1"] - right(task.model)) <= 0.1 and result.metrics["top1"] > 0.65
    assert "averaged over few steps at first: 46 steps are too short a run for ema_decay 0.9999" in caplog.text
    assert "the first ones" not in caplog.text


def test_averages_that_lag_are_said_to(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        _, result = run(tmp_path, loop(steps=46, ema_decay=0.9999, ema_warmup=False), evaluate=score, best="top1")
    assert result.metrics["top1"] < 0.4  # what the weights of step 0 get right
    assert "step 46 of 46: top1" in caplog.text
    assert "(of the averaged weights, which are still 100 % the first ones)" in caplog.text
    assert "averaged over few steps" not in caplog.text


def test_weights_that_are_not_averaged_are_scored_as_well(tmp_path):
    settings = {"steps": 46, "ema_decay": 0.9999, "ema_warmup": False, "score_plain": True}
    scored = []

    def score(model):
        scored.append(model)
        return {"top1": right(model)}

    task, result = run(tmp_path, loop(**settings), evaluate=score, best="top1")
    assert result.metrics["top1"] < 0.4 < 0.65 < result.metrics["plain_top1"] == right(task.model)
    assert scored[-1] is result.model and result.best == result.metrics["top1"]  # the averaged ones count
    assert "plain_top1" in (tmp_path / "eval.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("imagenet_secvit_tiny", 300 * (1_281_167 // 2048)),
        ("cifar10_secvit_nano", 20 * (45_000 // 64)),
        ("cifar10_vit", 5 * (45_000 // 64)),
        ("cifar10_vit_patched", 312),
        ("digits", 8 * (1_528 // 64)),
    ],
)
def test_recipes_at_their_own_length_average_as_they_say(name, steps):
    settings = recipes.find(f"classification.{name}")().loop
    assert settings.ema_decay and settings.ema_warmup is None
    assert not settings.warms_up(steps) and settings.warms_up(steps // 10)


def test_the_recipe_can_say_either():
    assert Loop(steps=1, ema_decay=0.5, ema_warmup=True).warms_up(10**6)
    assert not Loop(steps=1, ema_decay=0.9999, ema_warmup=False).warms_up(1)
    assert Loop(steps=1, ema_decay=0.99).warms_up(458) and not Loop(steps=1, ema_decay=0.99).warms_up(459)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_part_of_the_first_weights_is_right(warmup):
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    average = Ema(net, 0.9, warmup)
    nn.init.zeros_(net.weight)  # what is left of 1 is the part of the first weights
    for step in range(12):
        assert average.model.weight.item() == pytest.approx(average.first(step), rel=1e-4)  # float32
        average.update(net, step)


def test_a_short_run_resumes_to_the_bit(tmp_path):
    settings = {"steps": 20, "ema_decay": 0.9999, "save_every": 6}
    _, whole = run(tmp_path / "whole", loop(**settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for checkpoint in files.complete(tmp_path / "cut")[1:]:
        shutil.rmtree(checkpoint)
    _, resumed = run(tmp_path / "cut", loop(**settings))
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_false_of_earlier_versions_is_no_change(tmp_path, caplog):
    settings = {"steps": 20, "ema_decay": 0.5}
    config = {"loop": {"steps": 20, "ema_warmup": False}}
    run(tmp_path, loop(**settings, ema_warmup=False), config=config)
    (last,) = files.complete(tmp_path)[-1:]
    assert yaml.safe_load((last / "config.yaml").read_text()) == config
    run(tmp_path, loop(**settings), config={"loop": {"steps": 20, "ema_warmup": None}})
    assert "another recipe" not in caplog.text
