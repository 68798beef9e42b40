"""From a recipe and a folder of masks to a scored network and labelled photos, whole, broken off and shared."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from secvit.cli import main
from secvit.draw.confusion import draw_confusion
from secvit.recipes import of as recipes_of
from secvit.segmentation import evaluate_checkpoint, recipes, scoring, semantic_fpn, train, upernet
from secvit.segmentation.config import Model
from secvit.segmentation.pictures import overlay
from secvit.segmentation.task import SegmentationTask
from secvit.segmentation.training import initial_model
from tests.conftest import slow_but
from tests.segmentation.make import mask_folder, save, scene
from tests.train.launch import launch, train_on_one_and_on_two

RECIPES = {name: make() for name, make in recipes_of(recipes).items()}
LARGER = re.compile("_base|_large|_xlarge|_small_release|table10.*_(196|24|64)_")  # the same way with more weights
ADE20K = {name: r for name, r in RECIPES.items() if name.startswith("ade20k")}
PHOTO, _ = scene(7, side=96)


def small(name="camvid_semantic_fpn", **changes):
    recipe = recipes.tiny(RECIPES[name])
    return replace(recipe, loop=replace(recipe.loop, device="cpu", **changes))


@pytest.fixture
def folder(tmp_path):
    return mask_folder(tmp_path / "data", images=5)


@pytest.fixture
def run(tmp_path, folder):
    train(small(steps=1), folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", slow_but([name for name in RECIPES if not LARGER.search(name)], RECIPES))
def test_tiny_twin_of_a_recipe_runs(tmp_path, folder, name):
    result = train(small(name, steps=1), folder, tmp_path / "run")
    assert result["steps"] == 1 and 0 <= result["miou"] <= 1 and "val mIoU" in result["summary"]
    assert np.array(result["confusion"]).sum() == 5 * (64 - 2) * 80  # each pixel that is not ignored
    assert set(result["per_class"]) == {"noise", "square", "stripe"}
    assert {"config.yaml", "model.safetensors", "result.json"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("name", ADE20K)
def test_ade20k_recipes_have_the_numbers_of_the_fields_configs(name):
    r = ADE20K[name]
    fpn = "fpn" in name
    assert (r.loop.batch_size, r.augment.crop, r.augment.scale, r.optim.name) == (16, 512, (0.5, 2.0), "adamw")
    assert (r.loop.steps, r.optim.lr, r.optim.weight_decay) == ((80_000, 1e-4, 1e-4) if fpn else (160_000, 6e-5, 0.01))
    s = r.schedule
    assert (s.kind, s.power, s.warmup_steps, s.min_lr) == (("poly", 0.9, 0, 1e-6) if fpn else ("poly", 1.0, 1500, 0.0))
    assert r.auxiliary == 0.4 and r.sync_norm


def test_a_small_network_learns_squares_and_stripes(tmp_path):
    data = mask_folder(tmp_path / "data", images=16)
    recipe = small(steps=40, evaluate_every=40, ema_decay=0.0)
    plain = replace(recipe.augment, scale=(1.0, 1.0), max_share=1.0, distort=False)
    result = train(replace(recipe, augment=plain, optim=replace(recipe.optim, lr=0.02)), data, tmp_path / "run")
    assert result["miou"] > 0.6  # 0.26 where all is called noise


def test_a_run_broken_off_and_resumed_equals_the_unbroken_one_to_the_bit(tmp_path, folder):
    whole = train(small(), folder, tmp_path / "whole")
    stopped = train(small(time_limit_minutes=1e-9), folder, tmp_path / "broken")
    assert stopped["stopped"] == "time limit" and stopped["steps"] == 1
    resumed = train(small(), folder, tmp_path / "broken")
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert resumed["confusion"] == whole["confusion"] and resumed["steps"] == 4


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
@pytest.mark.slow
def test_two_processes_train_and_score_like_one(tmp_path, folder):
    words = ["train", "segmentation.camvid_upernet", "--tiny", "--data", str(folder), "--loop.parts", "2",
             "--loop.log_every", "1", "--loop.steps", "3"]  # fmt: skip
    results, printed = train_on_one_and_on_two(tmp_path, words, rel=1e-4)  # float32 sums in another order
    # 5 images: 3 and 2 on the two; a pixel between two classes may fall to either side
    pixels = [np.array(result["confusion"]) for result in results]
    assert pixels[0].sum() == pixels[1].sum() and abs(pixels[0] - pixels[1]).sum() <= 0.001 * pixels[0].sum()
    assert printed.count("val mIoU") == 1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would share one GPU")
@pytest.mark.slow
def test_scores_of_many_processes_are_exactly_those_of_one(tmp_path, folder):
    train(small(steps=1), folder, tmp_path / "run")
    code = f"""
import json, torch
torch.distributed.init_process_group("gloo")
from secvit.segmentation import evaluate_checkpoint
found = evaluate_checkpoint({str(tmp_path / "run")!r}, {str(folder)!r}, device="cpu")
if torch.distributed.get_rank() == 0:
    print(json.dumps(found["confusion"]))
"""
    done = launch(tmp_path, code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == evaluate_checkpoint(tmp_path / "run", folder, device="cpu")["confusion"]


# -- the task ----------------------------------------------------------------------------------

TINY = {"pyramid": 8, "channels": 8, "dropout": 0.0, "backbone_args": recipes.SMALL}


def test_the_loss_is_that_of_pixels_with_a_class():
    task = SegmentationTask(semantic_fpn("secvit_nano", 4, **TINY)).eval()
    batch = {"image": torch.randn(2, 3, 64, 64), "target": torch.randint(0, 4, (2, 64, 64)).byte()}
    batch["target"][:, :40] = 255
    found, logits = task(batch), task.model(batch["image"])[:, :, 40:]
    torch.testing.assert_close(found["loss"], nn.functional.cross_entropy(logits, batch["target"][:, 40:].long()))
    right = (logits.argmax(1) == batch["target"][:, 40:]).float().mean()
    torch.testing.assert_close(found["pixel_accuracy"], right)


def test_a_batch_without_any_class_teaches_nothing():
    task = SegmentationTask(semantic_fpn("secvit_nano", 4, **TINY))
    found = task({"image": torch.randn(2, 3, 64, 64), "target": torch.full((2, 64, 64), 255, dtype=torch.uint8)})
    found["loss"].backward()
    assert found["loss"].item() == 0 and all((p.grad == 0).all() for p in task.parameters())


def test_the_auxiliary_head_counts_by_its_weight():
    model = upernet("secvit_nano", 4, channels=8, auxiliary_channels=8, dropout=0.0, backbone_args=recipes.SMALL).eval()
    batch = {"image": torch.randn(2, 3, 64, 64), "target": torch.randint(0, 4, (2, 64, 64)).byte()}
    without, with_it, twice = (SegmentationTask(model, w)(batch)["loss"].item() for w in (0.0, 0.4, 0.8))
    assert twice - with_it == pytest.approx(with_it - without, rel=1e-4) and with_it > without


def test_one_image_is_too_few_for_upernet():
    model = upernet("secvit_nano", 4, channels=8, auxiliary_channels=8, backbone_args=recipes.SMALL)
    with pytest.raises(ValueError, match="UperNet's batch norms need two; raise batch_size"):
        SegmentationTask(model)({"image": torch.zeros(1, 3, 64, 64), "target": torch.zeros(1, 64, 64).byte()})


# -- what the backbone begins with -------------------------------------------------------------


def test_a_classifiers_weights_become_the_backbone(tmp_path):
    classifier = timm.create_model("secvit_nano", num_classes=5, **recipes.SMALL)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    recipe = small()
    chosen = Model(backbone="secvit_nano", backbone_args=recipes.SMALL, init=str(tmp_path / "weights.pth"))
    body = initial_model(replace(recipe, model=chosen), 3).backbone.body.state_dict()
    for name, value in classifier.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(body[name if name in body else name.replace(".", "_", 1)], value)
    with pytest.raises(ValueError, match="does not fit the backbone: it lacks conv1.weight"):
        initial_model(replace(recipe, model=replace(chosen, backbone="resnet18", backbone_args={})), 3)


def test_a_run_serves_as_a_start_for_other_classes(tmp_path, run, folder):
    recipe = small()
    trained = load_file(run / "model.safetensors")
    model = initial_model(replace(recipe, model=replace(recipe.model, init=str(run))), 7).state_dict()
    same = {name for name in trained if model[name].shape == trained[name].shape}
    assert all(torch.equal(model[name], trained[name]) for name in same)
    assert trained.keys() - same == {"head.classify.1.weight", "head.classify.1.bias"}


def test_shipped_weights_are_taken_where_there_are_any():
    recipe = RECIPES["camvid_semantic_fpn"]
    shipped = timm.create_model("secvit_nano.clothing10", pretrained=True).state_dict()["stem.0.weight"]
    assert torch.equal(initial_model(recipe, 3).backbone.body.state_dict()["stem_0.weight"], shipped)
    other = initial_model(replace(recipe, model=replace(recipe.model, backbone="resnet18")), 3)
    assert other.backbone.channels == [64, 128, 256, 512]


# -- the command -------------------------------------------------------------------------------


def test_a_recipe_trains_with_another_backbone(tmp_path, folder):
    words = ["--tiny", "--model.backbone", "resnet18", "--model.backbone_args", "{}", "--loop.steps", "1"]
    words += ["--data", str(folder), "--output", str(tmp_path / "run"), "--optim.name", "adamw"]  # muon is slow here
    assert main(["train", "segmentation.camvid_semantic_fpn", *words]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["backbone"] == "resnet18"
    assert (tmp_path / "run" / "curves.png").is_file()


def test_photos_become_overlays_and_indexed_masks(tmp_path, run, capsys):
    save(tmp_path / "a.png", PHOTO)
    save(tmp_path / "b.jpg", PHOTO[:70], "L")
    words = ["segment", str(run), str(tmp_path / "a.png"), str(tmp_path / "b.jpg")]
    assert main([*words, "-o", str(tmp_path / "out"), "--window", "64", "--size", "0", "--flip"]) == 0
    said = capsys.readouterr().out
    assert "a.png: " in said and "%" in said
    for name, height in (("a", 96), ("b", 70)):
        with Image.open(tmp_path / "out" / f"{name}.png") as mask:
            assert mask.mode == "P" and mask.size == (112, height) and np.asarray(mask).max() < 3
        with Image.open(tmp_path / "out" / f"{name}_overlay.jpg") as seen:
            assert seen.width == 112 and seen.height > height  # a legend below


def test_folders_and_photos_of_one_name_get_results_of_their_own(tmp_path, run):
    for name in ("one/a.png", "two/a.jpg", "two/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, PHOTO[:32, :32])
    before = (tmp_path / "two/b.png").read_bytes()
    words = ["segment", str(tmp_path / "one"), str(tmp_path / "two/a.jpg"), str(tmp_path / "two/b.png")]
    assert main([*words, "--weights", str(run), "-o", str(tmp_path / "two")]) == 0  # as it was written once
    made = {path.name for path in (tmp_path / "two").iterdir()} - {"a.jpg", "b.png"}
    assert made == {"a.png", "a_overlay.jpg", "a_2.png", "a_overlay_2.jpg", "b_2.png", "b_overlay_2.jpg"}
    assert (tmp_path / "two/b.png").read_bytes() == before  # the photo itself


def test_a_split_is_scored_as_in_training(tmp_path, run, folder, capsys, monkeypatch):
    words = ["evaluate", str(run), "--data", str(folder), "--device", "cpu"]
    assert main([*words, "--confusion", str(tmp_path / "confusion.png"), "--json", str(tmp_path / "scores.json")]) == 0
    scores, result = (json.loads(path.read_text()) for path in (tmp_path / "scores.json", run / "result.json"))
    assert scores["confusion"] == result["confusion"] and scores["miou"] == result["miou"]
    said = capsys.readouterr().out
    assert "miou" in said and "per_class:" in said and (tmp_path / "confusion.png").is_file()
    looks, label = set(), scoring.label_picture
    monkeypatch.setattr(scoring, "label_picture", lambda *given: looks.add(given[-1]) or label(*given))
    assert main([*words, "--scales", "1", "1.5", "--flip"]) == 0
    assert {(look.scales, look.flip) for look in looks} == {((1.0, 1.5), True)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segment", "RUN", "/nowhere/x.jpg"], "cannot be read .No such file"),
        (["evaluate", "--data", "DATA"], "which run.  Give the folder"),
        (["evaluate", "RUN", "--max_dets", "7"], "--max_dets is no option .*; it belongs to runs of detection"),
        (
            ["evaluate", "RUN", "--data", "DATA", "--split", "test"],
            "no test split; there is train, val",
        ),
        (
            ["evaluate", "RUN", "--data", "DATA", "--window", "100"],
            "window=100; choose a multiple of 32",
        ),
        (
            ["evaluate", "RUN", "--data", "OTHER"],
            "have other classes .2 and 3.; only in the run .*: 'square'; classes are compared by name",
        ),
    ],
)
def test_wrong_words_are_errors_without_a_traceback(tmp_path, run, folder, capsys, words, message):
    other = mask_folder(tmp_path / "other", classes=("noise", "stripe"), ignore=1)
    places = {"DATA": str(folder), "OTHER": str(other), "RUN": str(run)}
    assert main([places.get(w, w) for w in words]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said


def test_a_broken_folder_is_refused_before_the_first_step(tmp_path, folder, capsys):
    save(folder / "val_label" / "2.png", np.zeros((64, 70), np.uint8))
    words = ["--tiny", "--data", str(folder), "--output", str(tmp_path / "run")]
    assert main(["train", "segmentation.folder", *words]) == 2
    assert "2.png is 70x64 px, 2.png is 80x64 px upright" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*"))


def test_a_recipe_without_data_says_what_it_needs(capsys):
    assert main(["train", "segmentation.folder", "--tiny"]) == 2
    said = capsys.readouterr().err
    assert "give --data DIR" in said and "digits" not in said


# -- pictures --------------------------------------------------------------------------------


def test_an_overlay_mixes_the_photo_with_the_colours_of_its_classes():
    labels = np.array([[0, 1], [1, 255]], np.uint8)
    seen = np.asarray(
        overlay(Image.new("RGB", (2, 2), (100, 100, 100)), labels, [(200, 0, 0), (0, 200, 0)], opacity=0.5)
    )
    assert seen.tolist() == [[[150, 50, 50], [50, 150, 50]], [[50, 150, 50], [50, 50, 50]]]


def test_a_confusion_matrix_of_many_classes_can_be_drawn(tmp_path):
    matrix = torch.randint(0, 9, (150, 150))
    matrix[3] = 0
    names, ious = [f"class {i}" for i in range(150)], [0.5] * 149 + [None]
    with Image.open(draw_confusion(matrix.tolist(), names, tmp_path / "c.png", ious)) as drawn:
        assert min(drawn.size) > 1000
