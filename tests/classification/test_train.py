import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from secvit.classification import (
    ClassificationTask,
    evaluate,
    evaluate_checkpoint,
    recipes,
    tiny,
    train,
    training,
)
from secvit.classification.scoring import eval_view
from secvit.images import Images, load_split


def small(**changes):
    recipe = tiny(recipes.digits())
    model = replace(recipe.model, name="test_resnet", args={})
    return replace(recipe, model=model, loop=replace(recipe.loop, device="cpu", **changes))


def test_tiny_digits_run_leaves_a_scored_model(tmp_path):
    result = train(small(), "digits", tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["top1"] == result["top1"]
    assert result["majority_floor"] == pytest.approx(0.1, abs=0.02)
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    model = timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(tmp_path / "model.safetensors"))
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())
    scores = evaluate_checkpoint("test_resnet", tmp_path / "model.safetensors", "digits", device="cpu")
    assert scores["top1"] == result["top1"] and scores["images"] == 269


def test_resumed_training_equals_unbroken_training_to_the_bit(tmp_path):
    whole = train(small(steps=6), "digits", tmp_path / "whole")
    train(small(steps=6, time_limit_minutes=1e-9), "digits", tmp_path / "broken")
    resumed = train(small(steps=6), "digits", tmp_path / "broken")
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a) and whole["top1"] == resumed["top1"]


@pytest.mark.slow
def test_digits_recipe_passes_95_percent(tmp_path):
    assert train(recipes.digits(), "digits", tmp_path)["top1"] > 0.95


class Answers(torch.nn.Module):
    """Says what its image holds: pixel (0, 0) of the three channels as logits."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x[:, :, 0, 0]


def test_accuracies_are_counted_right():
    pixels = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    for i, answer in enumerate([0, 0, 0, 1, 1, 1]):
        pixels[i, answer] = 255
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    images = Images("test", ("a", "b", "c"), labels, pixels, tuple("abcdef"))
    from secvit.classification.data import EvalView

    scores = evaluate(Answers(), EvalView(images, 4, (0, 0, 0), (1, 1, 1)), batch_size=4)
    assert scores["top1"] == pytest.approx(4 / 6) and "top5" not in scores
    assert scores["macro"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert scores["majority_floor"] == pytest.approx(4 / 6) and scores["images"] == 6


def test_model_of_another_class_count_is_refused():
    model = timm.create_model("test_resnet", num_classes=7)
    with pytest.raises(ValueError, match="7 classes, the data 10; create the model with num_classes=10"):
        evaluate(model, eval_view(load_split("digits", "val"), model, 32, 1.0))


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="no model 'secvit_huge'"):
        evaluate_checkpoint("secvit_huge", "x.safetensors", "digits")


def test_soft_and_hard_targets_give_the_same_loss():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    task = ClassificationTask(model, 0.1)
    image, target = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0])
    soft = torch.nn.functional.one_hot(target, 4).float()
    hard = task({"image": image, "target": target})
    torch.testing.assert_close(hard["loss"], task({"image": image, "target": soft})["loss"])
    assert 0 <= hard["top1"] <= 1


def test_cifar10_shaped_npz_trains(tmp_path, shared):
    data = shared / "data" / "cifar10"
    images = load_split(data, "val")
    assert images.pixels.shape == (5000, 3, 32, 32) and images.majority == pytest.approx(0.1)


def test_evaluation_has_a_batch_of_its_own(tmp_path, monkeypatch):
    """A training step's share of 2,048 images, looked at at once by each process, would not fit."""
    sizes = []

    def watch(model, view, batch_size, *rest):
        sizes.append(batch_size)
        return evaluate(model, view, batch_size, *rest)

    monkeypatch.setattr(training, "evaluate", watch)
    for batch in (8, 1024):
        train(small(steps=1, batch_size=batch), "digits", tmp_path / str(batch))
    assert sizes == [8, 256]
