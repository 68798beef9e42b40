"""From a recipe and a COCO-format folder to a scored detector, whole, broken off and shared."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms import v2

from secvit.cli import main
from secvit.detection import load_detector, recipes, train
from secvit.detection.data import load
from secvit.detection.evaluate import FIGURES
from secvit.detection.saved import create
from secvit.detection.training import check_overlap
from secvit.recipes import of as recipes_of
from tests.conftest import slow_but
from tests.detection.make import coco_folder, edit
from tests.train.launch import launch, train_on_one_and_on_two

RECIPES = {name: make() for name, make in recipes_of(recipes).items()}
COCO = {name: r for name, r in RECIPES.items() if r.model.max_size == 1333}


def small(name="mask_rcnn_1x_secvit_tiny", **changes):
    recipe = recipes.tiny(RECIPES[name])
    return replace(recipe, loop=replace(recipe.loop, device="cpu", **changes))


@pytest.fixture
def folder(tmp_path):
    yield coco_folder(tmp_path / "data")
    for run in set(tmp_path.iterdir()) - {tmp_path / "data"}:  # gigabytes of checkpoints
        shutil.rmtree(run) if run.is_dir() else run.unlink()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_detector(name):
    chosen = RECIPES[name].model
    with torch.device("meta"):
        model = create(replace(chosen, backbone_args={**chosen.backbone_args, "pretrained": False}), 80)
    assert model.transform.min_size == chosen.min_size and model.transform.max_size == chosen.max_size


TWINS = (
    "folder", "nuclei471", "mask_rcnn_1x_sec_swin_tiny", "mask_rcnn_3x_secvit_base",
    "cascade_mask_rcnn_3x_secvit_small", "retinanet_1x_secvit_large", "mask_rcnn_1x_sec_deit_small",
    "mask_rcnn_1x_deit_small", "mask_rcnn_1x_swin_tiny",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", slow_but(("folder", "nuclei471", "retinanet_1x_secvit_large", "mask_rcnn_1x_sec_deit_small"), TWINS)
)
def test_tiny_twin_of_a_recipe_runs(tmp_path, folder, name):
    result = train(small(name, steps=1), folder, tmp_path / "run")
    kinds = ("box",) if "retinanet" in name else ("box", "mask")
    assert result["steps"] == 1 and all(-1 <= result[f"{kind}_AP"] <= 1 for kind in kinds)
    assert all(f"{kind} AP" in result["summary"] for kind in kinds)
    assert {"config.yaml", "model.safetensors", "result.json"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.slow
def test_a_run_is_scored_again_to_the_same_figures(tmp_path, folder, capsys):
    """By `secvit evaluate`, with AP by class; its detections carry the data's own category ids."""
    recipe = small("folder", steps=2, evaluate_every=2)
    recipe = replace(recipe, model=replace(recipe.model, args={**recipe.model.args, "box_score_thresh": 0.0}))
    result = train(recipe, folder, tmp_path / "run")
    words = ["evaluate", str(tmp_path / "run"), "--data", str(folder)]
    assert main([*words, "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    figures = [f"{kind}_{name}" for kind in ("box", "mask") for name in FIGURES]
    assert {k: scores[k] for k in figures} == {k: result[k] for k in figures}
    assert scores["mask_per_class"].keys() == {"square", "triangle"} and "mask_per_class:\n" in capsys.readouterr().out
    assert load_detector(tmp_path / "run")[1] == {3: "square", 7: "triangle"}
    edit(folder, "val", lambda c: c["categories"][0].update(name="circle"))
    assert main(words) == 2
    assert "has other categories" in capsys.readouterr().err


@pytest.mark.parametrize("name", COCO)
def test_coco_recipes_have_the_numbers_of_the_fields_configs(name):
    r = COCO[name]
    assert (r.optim.name, r.optim.lr, r.loop.batch_size, r.schedule.warmup_steps) == ("adamw", 1e-4, 16, 500)
    assert r.optim.weight_decay == (1e-4 if "retinanet" in name else 0.05)
    epochs = 36 if "_3x_" in name else 12
    assert r.loop.epochs == epochs and r.model.max_size == 1333
    assert [round(at * epochs) for at in r.schedule.decay_at] == ([27, 33] if epochs == 36 else [8, 11])
    assert r.model.min_size == (tuple(range(480, 801, 32)) if epochs == 36 else (800,))
    assert r.crop == (0.5 if epochs == 36 else 0)
    assert (r.model.args.get("box_loss"), r.sync_norm) == (("giou", True) if "cascade" in name else (None, False))
    if name.startswith("mask_rcnn"):
        assert r.model.args == {"rpn_post_nms_top_n_train": 1000}


@pytest.mark.slow
def test_a_run_broken_off_and_resumed_equals_the_unbroken_one_to_the_bit(tmp_path, folder):
    whole = train(small(), folder, tmp_path / "whole")
    stopped = train(small(time_limit_minutes=1e-9), folder, tmp_path / "broken")
    assert stopped["stopped"] == "time limit" and stopped["steps"] == 1
    resumed = train(small(), folder, tmp_path / "broken")
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert {k: v for k, v in whole.items() if "AP" in k} == {k: v for k, v in resumed.items() if "AP" in k}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
@pytest.mark.slow
def test_two_processes_train_and_score_like_one(tmp_path, folder):
    edit(folder, "val", lambda c: (c["images"].pop(), [c["annotations"].pop() for _ in range(2)]))  # 3 images on two
    words = ["train", "detection.folder", "--tiny", "--data", str(folder), "--loop.parts", "2", "--loop.log_every", "1",
             "--loop.steps", "3", "--model.args.box_score_thresh", "0.0"]  # fmt: skip
    results, _ = train_on_one_and_on_two(tmp_path, words, rel=1e-4)  # float32 sums in another order
    figures = [k for k in results[0] if k.startswith(("box_A", "mask_A"))]
    assert len(figures) == 24
    assert {k: results[1][k] for k in figures} == pytest.approx({k: results[0][k] for k in figures}, abs=1e-3)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
@pytest.mark.slow
def test_two_processes_find_exactly_what_one_finds(tmp_path, folder):
    edit(folder, "val", lambda c: (c["images"].pop(), [c["annotations"].pop() for _ in range(2)]))  # 3 images on two
    recipe = small("folder", steps=1)
    recipe = replace(recipe, model=replace(recipe.model, args={**recipe.model.args, "box_score_thresh": 0.0}))
    train(recipe, folder, tmp_path / "run")
    code = f"""
import json, torch
from secvit.detection import load_detector
from secvit.detection.data import load
from secvit.detection.evaluate import detect
torch.distributed.init_process_group("gloo")
found = detect(load_detector({str(tmp_path / "run")!r}, device="cpu")[0], load({str(folder)!r}, "val"))
if torch.distributed.get_rank() == 0:
    print(json.dumps([{{**one, "segmentation": str(one["segmentation"])}} for one in found]))
"""
    one, two = (launch(tmp_path, code, processes) for processes in (1, 2))
    assert two.returncode == 0, two.stderr[-2000:]
    found = json.loads(one.stdout)
    assert json.loads(two.stdout) == found and len({entry["image_id"] for entry in found}) == 3


def test_a_broken_folder_is_refused_before_the_first_step(tmp_path, folder, capsys):
    edit(folder, "val", lambda c: c["annotations"][0].update(bbox=[90, 2, 5, 3]))
    assert main(["train", "detection.folder", "--tiny", "--data", str(folder), "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "instances_val.json" in said and "annotation 1: of 0.png has a box [90.0, 2.0, 5.0, 3.0] outside" in said
    assert not list((tmp_path / "run").glob("*"))


def test_a_recipe_without_data_says_what_it_needs(capsys):
    assert main(["train", "detection.folder", "--tiny"]) == 2
    assert "give --data DIR" in capsys.readouterr().err


def test_transforms_of_torchvision_reach_images_boxes_and_masks(tmp_path, folder):
    seen = []

    def look(image, target):
        seen.append(target["boxes"].canvas_size)
        return image, target

    chain = v2.Compose([v2.RandomCrop((48, 48)), look])  # leaves some boxes empty
    train(small(steps=2), folder, tmp_path / "run", transform=chain)
    assert seen == [(48, 48)] * 4


def test_a_classifiers_weights_become_a_detectors_backbone(tmp_path):
    import timm

    args = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 4, 4], "stem_stride": 4}
    classifier = timm.create_model("secvit_nano", num_classes=5, **args)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    chosen = replace(small().model, backbone="secvit_nano", backbone_args=args, init=str(tmp_path / "weights.pth"))
    detector = create(chosen, 3)
    body = detector.backbone.body.state_dict()
    for name, value in classifier.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(body[name if name in body else name.replace(".", "_", 1)], value)
    with pytest.raises(ValueError, match="does not fit the backbone: it lacks conv1.weight"):
        create(replace(chosen, backbone="resnet18", backbone_args={}), 3)
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    chosen = replace(chosen, init=str(tmp_path / "detector.pth"))
    again, other = (create(chosen, classes).state_dict() for classes in (3, 7))
    assert all(torch.equal(again[name], value) for name, value in detector.state_dict().items())
    new = [name for name, value in detector.state_dict().items() if other[name].shape != value.shape]
    assert new and all("predictors" in name for name in new)
    assert all(torch.equal(other[name], value) for name, value in detector.state_dict().items() if name not in new)


def test_images_of_val_that_are_in_train_are_said(tmp_path, caplog):
    coco_folder(tmp_path)
    edit(tmp_path, "val", lambda c: [one.update(file_name=f"../train/{one['file_name']}") for one in c["images"][:2]])
    train_split, val_split = (load(tmp_path, split) for split in ("train", "val"))
    assert len(check_overlap(train_split, val_split)) == 2
    assert "2 of 4 images of val are in train as well, so the score will be too good" in caplog.text
    caplog.clear()
    assert not check_overlap(val_split, load(coco_folder(tmp_path / "other"), "train")) and not caplog.text
