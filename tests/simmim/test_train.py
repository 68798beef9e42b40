"""Pre-training runs from a recipe to weights that a classifier loads, and learns something on the way."""

import csv
import json
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from secvit.simmim import recipes, tiny, train
from secvit.train import learning_rate

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 3, 4], "head_hidden_size": 32}


def small(**changes):
    recipe = tiny(recipes.digits())
    return replace(recipe, loop=replace(recipe.loop, device="cpu", **changes))


def test_tiny_run_leaves_a_backbone_a_picture_and_both_numbers(tmp_path):
    result = train(small(), "digits", tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["loss"] == result["loss"]
    assert result["images"]["val"] == 269 and "mean_baseline" in result
    assert f"val L1 {result['loss']:.4f}" in result["summary"]
    for name in ("log.csv", "eval.csv"):
        with open(tmp_path / name) as file:
            assert {"loss", "mean_baseline"} <= set(next(csv.DictReader(file)))
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.width > 3 * 128 and picture.height > 6 * 128
    model = timm.create_model("secvit_nano", num_classes=10, **recipes.digits().model.args)
    report = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert report.missing_keys == ["head.fc.weight", "head.fc.bias"] and not report.unexpected_keys


def test_resumed_run_equals_the_unbroken_one_to_the_bit(tmp_path):
    whole = train(small(), "digits", tmp_path / "whole")
    stopped = train(small(time_limit_minutes=1e-9), "digits", tmp_path / "broken")
    assert stopped["stopped"] == "time limit" and stopped["summary"] == ""
    resumed = train(small(), "digits", tmp_path / "broken")
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole["loss"] == resumed["loss"]  # so the decoder and the mask token are the same too


def test_prediction_of_unseen_digits_beats_their_mean_colour_by_far(tmp_path):
    recipe = small(batch_size=16, steps=60, evaluate_every=60, save_every=60)
    recipe = replace(
        recipe,
        model=replace(recipe.model, args={**SMALL, "stem_stride": 4}),
        optim=replace(recipe.optim, lr=4e-3),
    )
    result = train(recipe, "digits", tmp_path)
    assert result["loss"] < 0.75 * result["mean_baseline"]


@pytest.mark.parametrize("name", ["clothing10_secvit_nano", "imagenet_sec_swin_base", "imagenet_swin_base"])
def test_tiny_twin_of_a_recipe_runs(tmp_path, name):
    recipe = tiny(getattr(recipes, name)())
    if recipe.model.name == "secvit_nano":
        recipe = replace(recipe, model=replace(recipe.model, args={**recipe.model.args, **SMALL}))
    recipe = replace(recipe, loop=replace(recipe.loop, device="cpu", steps=1))
    assert train(recipe, "digits", tmp_path)["steps"] == 1


@pytest.mark.parametrize("name", ["imagenet_sec_swin_base", "imagenet_swin_base"])
def test_imagenet_recipe_has_simmims_numbers(name):
    """SimMIM section 4.1 and its released configurations."""
    r = getattr(recipes, name)()
    assert (r.loop.epochs, r.loop.batch_size, r.loop.clip_grad) == (800, 2048, 5.0)
    assert (r.model.image_size, r.masking.patch, r.masking.ratio) == (192, 32, 0.6)
    assert (r.optim.name, r.optim.lr, r.optim.betas) == ("adamw", 1e-4 * 2048 / 512, (0.9, 0.999))
    assert (r.optim.weight_decay, r.schedule.warmup_epochs) == (0.05, 10)
    assert (r.schedule.warmup_lr, r.augment.scale) == (5e-7 * 2048 / 512, (0.67, 1.0))
    rates = [learning_rate(epoch, 800, r.optim.lr, r.schedule) for epoch in (10, 400, 699, 700, 799)]
    assert rates == pytest.approx([4e-4, 4e-4, 4e-4, 4e-5, 4e-5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"image_size": 100}}, "cannot be cut into mask patches of 16 px"),
        ({"model": {"name": "secvit_huge"}}, "no model 'secvit_huge'"),
        ({"model": {"name": "test_resnet", "args": {}}}, "ResNet has no forward_stem, forward_stages"),
        ({"model": {"args": {"depth": 3}}}, "secvit_nano with {'depth': 3}"),
        ({"loop": {"ema_decay": 0.9}}, "choose ema_decay=0"),
    ],
)
def test_recipe_that_cannot_run_is_refused_before_the_first_step(tmp_path, changes, message):
    recipe = small()
    recipe = replace(recipe, **{part: replace(getattr(recipe, part), **new) for part, new in changes.items()})
    with pytest.raises(ValueError, match=message):
        train(recipe, "digits", tmp_path)
    assert not (tmp_path / "checkpoints").exists()
