"""Classes are compared by name wherever weights meet data."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from secvit.classification import evaluate_checkpoint, predict, recipes, tiny
from secvit.classification.training import initial_model
from secvit.images import load_split
from secvit.models.saved import load_model
from tests.images.make import folder, table

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [2, 4, 6, 8], "head_hidden_size": 32}
COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220), "grey": (120, 120, 120)}


def flags(root, names=tuple(COLOURS), called=None, count=4):
    """One-coloured images; called: the folder of each colour, if not its name."""
    for colour in names:
        for split in ("train", "val"):
            for i in range(count):
                path = root / split / (called or {}).get(colour, colour) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), tuple(v + i for v in COLOURS[colour])).save(path)
    return root


def run(path, classes, bias=None):
    """A run's folder: weights, and a config.yaml with these classes."""
    torch.manual_seed(1)
    model = timm.create_model("secvit_nano", num_classes=len(classes), **SMALL).eval()
    path.mkdir(parents=True)
    save_file(model.state_dict(), path / "model.safetensors")
    lines = [
        "model:",
        "  name: secvit_nano",
        "  image_size: 32",
        "  args:",
        *(f"    {k}: {v}" for k, v in SMALL.items()),
    ]
    (path / "config.yaml").write_text("\n".join([*lines, "classes:", *(f"- {name!r}" for name in classes), ""]))
    return path


def answers(model, data):
    """The class that a model gives to each image of val, by name."""
    val = load_split(data, "val")
    return [predict(model, val.image(i), 1)[0][0] for i in range(len(val))]


@pytest.mark.parametrize("order", [("red", "green", "blue", "grey"), ("grey", "blue", "green", "red"),
                                   ("blue", "red", "grey", "green")])  # fmt: skip
def test_the_score_does_not_depend_on_the_order_of_the_classes(order, tmp_path):
    data, folder_of = flags(tmp_path / "d"), run(tmp_path / "run", order)
    said = answers(load_model("secvit_nano", folder_of), data)
    val = load_split(data, "val")
    right = np.mean([val.classes[label] == name for label, name in zip(val.labels, said, strict=True)])
    assert evaluate_checkpoint("secvit_nano", folder_of, data, device="cpu")["top1"] == pytest.approx(right)


def test_a_table_of_the_same_images_gets_the_same_score(tmp_path):
    numbers = dict(zip(COLOURS, ("0", "10", "2", "1"), strict=True))
    data, folder_of = flags(tmp_path / "d", called=numbers), run(tmp_path / "run", ("0", "1", "10", "2"))
    scores = [evaluate_checkpoint("secvit_nano", folder_of, data, device="cpu")["top1"]]
    for split in ("train", "val"):
        rows = [f"{path},{path.parent.name}" for path in sorted((data / split).rglob("*.png"))]
        table(tmp_path / "t" / f"{split}.csv", rows, images=False)
    scores.append(evaluate_checkpoint("secvit_nano", folder_of, tmp_path / "t", device="cpu")["top1"])
    assert scores[0] == scores[1]


def test_data_with_some_of_the_classes_is_scored_with_the_runs_numbers(tmp_path, caplog):
    data, folder_of = flags(tmp_path / "d", ("green", "grey")), run(tmp_path / "run", tuple(COLOURS))
    said = answers(load_model("secvit_nano", folder_of), data)
    right = np.mean([name == colour for name, colour in zip(said, ["green"] * 4 + ["grey"] * 4, strict=True)])
    assert evaluate_checkpoint("secvit_nano", folder_of, data, device="cpu")["top1"] == pytest.approx(right)
    assert "has 2 of the 4 classes of the weights" in caplog.text


@pytest.mark.parametrize(
    "classes", [("red", "green", "blue", "emu"), ("Red", "Green", "Blue", "Grey"), ("red", "green")]
)
def test_data_of_other_classes_is_refused_by_name(classes, tmp_path):
    data, folder_of = flags(tmp_path / "d"), run(tmp_path / "run", classes)
    with pytest.raises(
        ValueError, match=r"the data .*/d .val. and the weights .*run have other classes .4 and \d.; only"
    ):
        evaluate_checkpoint("secvit_nano", folder_of, data, device="cpu")


def test_shipped_weights_know_their_classes(tmp_path):
    names = timm.get_pretrained_cfg("secvit_nano.cifar10").label_names
    folder(tmp_path / "train", names[:3], 2), folder(tmp_path / "val", names[:3], 2)
    assert evaluate_checkpoint("secvit_nano.cifar10", None, tmp_path, device="cpu")["images"] == 6
    folder(tmp_path / "train", ("emu",), 2)
    with pytest.raises(ValueError, match="only in the data .*'emu'"):
        evaluate_checkpoint("secvit_nano.cifar10", None, tmp_path, device="cpu")


def test_weights_without_names_are_compared_by_number_and_that_is_said(tmp_path, caplog):
    data, folder_of = flags(tmp_path / "d"), run(tmp_path / "run", tuple(COLOURS))
    (folder_of / "config.yaml").unlink()
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), folder_of / "model.safetensors")
    assert evaluate_checkpoint("test_resnet", folder_of, data, device="cpu")["images"] == 16
    assert caplog.text.count("come without names of classes, so only their number, 4, was compared") == 1
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), folder_of / "model.safetensors")
    with pytest.raises(ValueError, match="have other classes: 4 and 3; give weights"):
        evaluate_checkpoint("test_resnet", folder_of, data, device="cpu")


def test_a_weight_file_alone_does_not_take_the_names_of_the_weights_that_ship(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("secvit_nano", num_classes=10)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    said = predict(load_model("secvit_nano", tmp_path / "w.safetensors"), Image.new("RGB", (32, 32)), 10)
    assert sorted(name for name, _ in said) == list("0123456789")


# -- a head that is kept -----------------------------------------------------------------------


def begun(tmp_path, source, classes, **model):
    recipe = tiny(recipes.digits())
    chosen = replace(recipe.model, args=SMALL, init=str(source) if source else None, **model)
    return initial_model(replace(recipe, model=chosen), classes).state_dict()


def test_init_keeps_a_head_of_the_same_classes_in_the_order_of_the_data(tmp_path):
    folder_of = run(tmp_path / "run", ("red", "green", "blue"))
    there = load_model("secvit_nano", folder_of).state_dict()
    for classes in (("red", "green", "blue"), ("blue", "red", "green")):
        state = begun(tmp_path, folder_of, classes)
        for row, name in enumerate(classes):
            old = ("red", "green", "blue").index(name)
            assert torch.equal(state["head.fc.weight"][row], there["head.fc.weight"][old])
            assert torch.equal(state["head.fc.bias"][row], there["head.fc.bias"][old])


def test_init_starts_a_new_head_for_other_classes_of_the_same_number(tmp_path, caplog):
    folder_of = run(tmp_path / "run", ("red", "green", "blue"))
    fresh = begun(tmp_path, None, ("red", "green", "emu"))
    with caplog.at_level(logging.INFO):
        state = begun(tmp_path, folder_of, ("red", "green", "emu"))
    assert "knows other classes than the data: the classifier starts anew" in caplog.text
    assert torch.equal(state["head.fc.weight"], fresh["head.fc.weight"])
    assert not torch.equal(state["stem.0.weight"], fresh["stem.0.weight"])


def test_pretrained_weights_keep_their_head_for_their_own_classes_alone():
    recipe = tiny(recipes.digits())
    chosen = replace(recipe, model=replace(recipe.model, name="secvit_nano.cifar10", args={}, pretrained=True))
    names = timm.get_pretrained_cfg("secvit_nano.cifar10").label_names
    shipped = timm.create_model("secvit_nano.cifar10", pretrained=True).state_dict()["head.fc.weight"]
    assert torch.equal(initial_model(chosen, names[::-1]).state_dict()["head.fc.weight"], shipped.flip(0))
    other = initial_model(chosen, tuple("0123456789")).state_dict()["head.fc.weight"]
    assert not any(torch.equal(row, old) for row in other for old in shipped)
    assert torch.equal(other, initial_model(chosen, tuple("abcdefghij")).state_dict()["head.fc.weight"])


def test_a_run_is_scored_on_a_test_split_that_lies_alone(tmp_path):
    data, folder_of = flags(tmp_path / "d"), run(tmp_path / "run", ("red", "green", "blue", "grey"))
    expected = evaluate_checkpoint("secvit_nano", folder_of, data, device="cpu")["top1"]
    (data / "val").rename(tmp_path / "test")
    (tmp_path / "e").mkdir()
    (tmp_path / "test").rename(tmp_path / "e" / "test")
    assert evaluate_checkpoint("secvit_nano", folder_of, tmp_path / "e", "test", device="cpu")["top1"] == expected
    with pytest.raises(ValueError, match="has test but no train"):
        evaluate_checkpoint("secvit_nano", folder_of, tmp_path / "e", "val", device="cpu")
