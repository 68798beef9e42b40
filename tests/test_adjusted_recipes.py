"""What a recipe says of its own network is not said of another one that is asked for in its place."""

import logging
from dataclasses import replace

import pytest
import timm
import yaml

from secvit.classification.task import ClassificationTask
from secvit.cli import main
from secvit.recipes import adjusted, find


def asked(called, given=(), /, **model):
    """The recipe of a name with other entries of its model; these, and `given`, are what was asked for."""
    recipe = find(called)()
    changed = replace(recipe, model=replace(recipe.model, **model))
    return adjusted(recipe, changed, {f"model.{entry}" for entry in model} | set(given))


def test_arguments_of_the_recipes_network_are_not_given_to_another(caplog):
    with caplog.at_level(logging.INFO):
        model = asked("classification.folder", name="resnet18").model
    assert (model.args, model.image_size, model.crop_pct) == ({}, 128, 0.9)
    assert len(caplog.records) == 1
    assert "--model.args is {}: the recipe's {'stem_stride': 4} is for secvit_nano, not resnet18" in caplog.text
    assert "give them to have it otherwise" in caplog.text


def test_arguments_that_are_given_stay():
    assert asked("classification.folder", name="resnet18", args={"stem_width": 32}).model.args == {"stem_width": 32}
    assert asked("classification.folder", ["model.args"], name="secvit_tiny").model.args == {"stem_stride": 4}
    assert asked("classification.folder", ["model.args.stem_stride"], name="secvit_tiny").model.args
    assert asked("classification.folder", ["model"], name="resnet18").model.args == {"stem_stride": 4}


def test_nothing_is_changed_or_said_where_the_network_is_the_recipes(caplog):
    recipe = find("detection.folder")()
    with caplog.at_level(logging.INFO):
        assert adjusted(recipe, recipe, set()) is recipe
        other = asked("detection.folder", backbone="secvit_nano.clothing10")
        assert other.model.backbone_args["stem_stride"] == 4 and other.model.backbone_args["pretrained"]
        assert asked("classification.folder", name="secvit_nano.cifar10").model.args == {"stem_stride": 4}
    assert "stem_stride" not in caplog.text


@pytest.mark.parametrize("backbone", ["resnet18", "secvit_small", "sec_swin_tiny"])
def test_a_detectors_backbone_without_bundled_weights_begins_with_random_ones(backbone, caplog):
    with caplog.at_level(logging.INFO):
        model = asked("detection.folder", backbone=backbone).model
    assert (model.backbone_args, model.norm_eval) == ({}, False)
    assert f"no weights of {backbone} are bundled, it begins with random ones" in caplog.text
    asked_for = {"pretrained": True}
    model = asked("detection.folder", backbone=backbone, backbone_args=asked_for).model
    assert (model.backbone_args, model.norm_eval) == (asked_for, True)
    assert asked("detection.folder", backbone=backbone, init="runs/a").model.norm_eval


def test_a_bundled_backbone_keeps_its_weights():
    recipe = find("detection.folder")()
    recipe = replace(recipe, model=replace(recipe.model, backbone="resnet18", backbone_args={"pretrained": True}))
    changed = replace(recipe, model=replace(recipe.model, backbone="secvit_nano.cifar10"))
    assert adjusted(recipe, changed, {"model.backbone"}).model.backbone_args == {"pretrained": True}


def test_arguments_of_a_head_are_its_own():
    boxes = find("detection.folder")().model.args
    assert asked("detection.folder", detector="retinanet").model.args == {}
    assert asked("detection.folder", detector="cascade_mask_rcnn").model.args == boxes
    assert asked("segmentation.folder", head="upernet").model.args == {}
    assert asked("segmentation.folder", head="upernet").model.backbone_args == {}


def test_weights_of_ones_own_replace_pretrained_ones():
    assert not asked("classification.finetune", init="runs/mine").model.pretrained
    assert asked("classification.finetune", init="runs/mine", pretrained=True).model.pretrained
    assert asked("classification.finetune", name="resnet18").model.pretrained


def test_a_network_of_one_size_gets_it(caplog):
    with caplog.at_level(logging.INFO):
        model = asked("classification.finetune", name="vit_small_patch16_224").model
    assert model.image_size == 224 and "vit_small_patch16_224 takes no other size" in caplog.text
    assert asked("classification.folder", name="vit_small_patch16_224", image_size=96).model.image_size == 96
    small = asked("classification.folder", name="vit_small_patch16_224", args={"img_size": 64}).model
    assert (small.image_size, small.args) == (64, {"img_size": 64})
    patched = asked("classification.cifar10_vit_patched", name="vit_small_patch16_224").model
    assert (patched.args, patched.patch, patched.image_size) == ({}, {}, 224)


@pytest.mark.parametrize(
    ("name", "learns"), [("resnet18", {"fc"}), ("vit_tiny_patch16_224", {"head"}), ("secvit_tiny", {"head"})]
)
def test_the_head_alone_learns_of_any_network(name, learns):
    chosen = asked("classification.head_only", name=name).model
    task = ClassificationTask(timm.create_model(name, num_classes=2), frozen=chosen.frozen)
    assert {key.split(".")[0] for key, p in task.model.named_parameters() if p.requires_grad} == learns
    assert not any(
        module.training for part in task.train().frozen for module in task.model.get_submodule(part).modules()
    )
    assert asked("classification.head_only", name="resnet18", frozen=("conv1",)).model.frozen == ("conv1",)


def test_pre_training_takes_another_network():
    assert asked("simmim.folder", name="secvit_tiny").model.args == {}


def test_an_unknown_network_is_named_with_its_neighbours():
    with pytest.raises(ValueError, match="no model 'resnet81'.*resnet18"):
        asked("classification.folder", name="resnet81")


def test_another_network_trains_by_its_name_alone(tmp_path, capsys):
    words = ["train", "classification.digits", "--tiny", "--loop.steps", "1", "--loop.device", "cpu"]
    assert main([*words, "--model.name", "test_resnet", "--output", str(tmp_path / "a")]) == 0
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (config["model"]["args"], config["model"]["image_size"]) == ({}, 32)
    (tmp_path / "my.yaml").write_text("model: {name: test_resnet, args: {depths: [1, 1]}}")  # which it does not take
    assert main([*words, "--config", str(tmp_path / "my.yaml"), "--output", str(tmp_path / "b")]) == 2
    assert "give --model.args that it takes, {} for none" in capsys.readouterr().err


@pytest.mark.parametrize("backbone", ["resnet18", "secvit_small"])
def test_a_detector_with_another_backbone_is_made_by_its_name_alone(backbone):
    from secvit.detection.saved import create

    model = create(asked("detection.folder", backbone=backbone).model, 2)
    assert model.backbone.body.feature_info.reduction()[-4:] == [4, 8, 16, 32]


def test_a_recipe_without_networks_by_name_is_left_as_it_is():
    pytest.importorskip("transformers")
    assert asked("vlm.small", num_tokens=16).model.num_tokens == 16
