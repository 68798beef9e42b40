"""From images to names of classes."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from secvit.classification import predict, recipes, tiny, train
from secvit.cli import main


class Colour(torch.nn.Module):
    """Logits are the mean colour of what it is given."""

    def __init__(self, **cfg):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.pretrained_cfg = {"input_size": (3, 8, 8), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3, **cfg}

    def forward(self, x):
        return 10 * x.mean((2, 3))


def test_the_likeliest_class_comes_first_by_its_name():
    green = Image.new("RGB", (30, 20), (10, 250, 100))
    said = predict(Colour(label_names=["red", "green", "blue"]), green)
    assert [label for label, _ in said] == ["green", "blue", "red"]
    assert sum(share for _, share in said) == pytest.approx(1)
    assert predict(Colour(), green, top=1)[0][0] == "1"
    assert predict(Colour(label_names=["of", "another", "classifier", "head"]), green, top=1)[0][0] == "1"


def test_top_below_one_is_refused():
    with pytest.raises(ValueError, match="choose top >= 1"):
        predict(Colour(), Image.new("RGB", (8, 8)), top=0)


def test_a_photo_is_named_from_the_terminal(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.png"), "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("%") == 2 and any(
        c in said for c in timm.get_pretrained_cfg("secvit_nano.clothing10").label_names
    )


def test_a_run_brings_its_class_names_and_its_size(tmp_path, capsys):
    recipe = tiny(recipes.digits())
    train(replace(recipe, loop=replace(recipe.loop, steps=1, device="cpu")), "digits", tmp_path / "run")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "a.png"), "--top", "10"]) == 0
    assert sorted(part.split()[0] for part in capsys.readouterr().out.split(": ")[1].split(", ")) == list("0123456789")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.jpg"], "none.jpg"),
        (["secvit_tiny", "none.jpg"], "no weights come with secvit_tiny; give a run"),
        (["none.jpg", "--model", "secvit_huge"], "no model 'secvit_huge'"),
        (["none.jpg", "--checkpoint", "nowhere"], "nowhere: no such folder or file"),
    ],
)
def test_what_cannot_be_predicted_is_refused(words, message, capsys):
    assert main(["predict", *words]) == 2
    assert message in capsys.readouterr().err


def test_whole_photos_are_named_when_another_is_broken(tmp_path, capsys):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert main(["predict", *(str(tmp_path / name) for name in ("a.png", "b.png", "c.png"))]) == 2
    said = capsys.readouterr()
    assert [line.split(": ")[0] for line in said.out.splitlines()] == [str(tmp_path / n) for n in ("a.png", "c.png")]
    assert f"left out {tmp_path / 'b.png'}: not an image" in said.err
