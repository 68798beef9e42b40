"""The weights that come with the package."""

import csv
import json

import pytest
import timm
import torch
import yaml
from safetensors import safe_open

from secvit.classification import evaluate_checkpoint, predict
from secvit.images import load_split
from secvit.models.saved import load_model
from tests.conftest import ROOT

SHIPPED = ROOT / "src" / "secvit" / "pretrained"
NAMES = [name for name in timm.list_models("secvit_nano*", pretrained=True) if "." in name]
DATA = {"secvit_nano.cifar10": "cifar10", "secvit_nano.clothing10": "clothing10_160"}


def test_the_weights_that_timm_lists_are_those_that_ship():
    assert sorted(NAMES) == sorted(p.name for p in SHIPPED.iterdir()) == sorted(DATA)


def test_they_are_small():
    sizes = [(SHIPPED / name / "model.safetensors").stat().st_size for name in NAMES]
    assert max(sizes) <= 12_000_000 and sum(sizes) <= 30_000_000


@pytest.mark.parametrize("name", NAMES)
def test_timm_loads_them_without_a_network(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = timm.create_model(name, pretrained=True).eval()
    with safe_open(SHIPPED / name / "model.safetensors", "pt") as file:
        for key, value in model.state_dict().items():
            saved = file.get_tensor(key)
            assert not saved.is_floating_point() or saved.dtype == torch.float16
            assert torch.equal(saved.to(value.dtype), value)
    again = timm.create_model(f"local-dir:{SHIPPED / name}", pretrained=True).eval()
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    assert torch.equal(model(x), again(x))
    assert timm.create_model(name, pretrained=True, num_classes=3)(x).shape == (2, 3)
    assert timm.create_model(name, pretrained=True, features_only=True)(x)[-1].shape[1] == 256


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_how_they_were_made(name):
    folder = SHIPPED / name
    card = (folder / "README.md").read_text()
    for word in ("Commit `", "licence", "most frequent class", "secvit train classification.", "| test |"):
        assert word in card
    with open(folder / "log.csv") as file:
        assert len(list(csv.DictReader(file))) > 10
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["model"]["image_size"] == timm.get_pretrained_cfg(name).input_size[-1]
    assert json.loads((folder / "config.json").read_text())["architecture"] == "secvit_nano"
    assert (folder / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_they_recognise_held_out_images(name, shared):
    """A hundred test images: whoever guesses reaches 10 to 25 %."""
    images = load_split(shared / "data" / DATA[name], "test")
    model, hits = load_model(name), 0
    assert images.classes == tuple(model.pretrained_cfg["label_names"])
    chosen = range(0, len(images), max(1, len(images) // 100))
    for i in chosen:
        (label, share), *_ = predict(model, images.image(i))
        hits += label == images.classes[images.labels[i]]
        assert 0 < share <= 1
    assert hits / len(chosen) > 0.55


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_card_tells_the_truth(name, shared):
    scores = evaluate_checkpoint(name, None, shared / "data" / DATA[name], "test")
    assert f"| test | {100 * scores['top1']:.2f} %" in (SHIPPED / name / "README.md").read_text()
