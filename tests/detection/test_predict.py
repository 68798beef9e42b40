"""A run's folder becomes a detector; what it finds has the photo's size, whatever lies beside it, and opens as COCO."""

import contextlib
import io
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image

from secvit.cli import main
from secvit.detection import load_detector, predict, recipes
from secvit.detection.data import load
from secvit.detection.prediction import add_image, lay, new_coco
from secvit.detection.saved import create
from secvit.weights import weight_bytes

CLASSES = ("cat", "dog", "naïve bird")


def write_run(folder, recipe):
    """What `train` leaves behind, without the training: a detector that is sure of something everywhere."""
    recipe = recipes.tiny(recipe)
    threshold = "score_thresh" if recipe.model.detector == "retinanet" else "box_score_thresh"
    recipe = replace(recipe, model=replace(recipe.model, args={**recipe.model.args, threshold: 0.0}))
    torch.manual_seed(0)
    model = create(recipe.model, len(CLASSES))
    if recipe.model.detector == "mask_rcnn":
        tell_boxes_apart(model)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weight_bytes(model.state_dict()))
    config = json.loads(json.dumps({"data": "DIR", "classes": CLASSES, **asdict(recipe)}))  # lists for tuples
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@torch.no_grad()
def tell_boxes_apart(model):
    """A new predictor gives every box the same scores; this one decides by how a box differs from the others."""
    predictor, features = model.roi_heads.box_predictors[0].cls_score, []
    hook = predictor.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    model.eval()([torch.rand(3, 70, 90)])
    hook.remove()
    predictor.weight.mul_(1000)
    predictor.bias.copy_(-predictor.weight @ features[0].mean(0))
    predictor.bias[0] = -1000  # the background


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "run"
    yield write_run(folder, recipes.mask_rcnn_1x_secvit_tiny())
    shutil.rmtree(folder)


def photo(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(90, 70), (60, 100), (33, 33)]):
        photo(*size, i).save(folder / f"{i}.png")
    return folder


SIZES = [(90, 70), (60, 100), (90, 70), (1, 1), (300, 40), (88, 69)]


def test_images_of_different_sizes_together_are_those_one_by_one(run):
    model, _ = load_detector(run, device="cpu")
    images = [photo(*size, seed) for seed, size in enumerate(SIZES)]
    together = predict(model, images, score=0.0)
    for image, found in zip(images, together, strict=True):
        (alone,) = predict(model, [image], score=0.0)
        assert len(found["boxes"]) == len(alone["boxes"]) > 0
        # float32 sums in another order for batches of 1, 2 and 3
        torch.testing.assert_close(found["boxes"], alone["boxes"], atol=1e-2, rtol=0)
        torch.testing.assert_close(found["scores"], alone["scores"], atol=1e-3, rtol=0)
        assert (found["masks"] != alone["masks"]).float().mean() < 0.01
        assert found["masks"].shape[1:] == (image.height, image.width)
        assert (found["boxes"] >= 0).all() and (found["boxes"][:, 2] <= image.width).all()
        assert (found["boxes"][:, 3] <= image.height).all()


def test_objects_are_those_of_the_detector_itself_and_its_state_is_left_alone(run):
    model, _ = load_detector(run, device="cpu")
    image = torch.rand(3, 70, 90)
    before = model([image])[0]
    (found,) = predict(model, [image], score=0.0)
    after = model([image])[0]
    assert found["masks"].any()
    for expected in (before, after):
        assert torch.equal(found["labels"], expected["labels"])
        # px; torchvision's boxes may end a rounding error outside the image
        torch.testing.assert_close(found["boxes"], expected["boxes"], atol=1e-4, rtol=0)
        assert torch.equal(found["masks"], expected["masks"][:, 0] > 0.5)


def test_a_mask_laid_around_its_box_is_torchvisions_wherever_the_box_lies():
    random = torch.Generator().manual_seed(0)
    for height, width in [(50, 70), (300, 200), (1, 9)]:
        corners = torch.rand(60, 2, 2, generator=random).sort(1).values * torch.tensor([width, height])
        boxes, smalls = corners.flatten(1), torch.rand(60, 1, 28, 28, generator=random)
        boxes[:10] = torch.tensor([0.0, 0, width, height])
        expected = paste_masks_in_image(smalls, boxes, (height, width))[:, 0] > 0.5
        masks = torch.zeros(60, height, width, dtype=torch.bool)
        for mask, box, small in zip(masks, boxes, smalls, strict=True):
            lay(mask, box, small)
        assert torch.equal(masks, expected) and masks.any()


def test_opened_images_bytes_and_numbers_in_0_to_1_are_the_same(run):
    model, _ = load_detector(run, device="cpu")
    image = photo(90, 70)
    in_bytes = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    first, *others = predict(model, [image, in_bytes, in_bytes / 255], score=0.0)
    assert all(torch.allclose(first["scores"], other["scores"], atol=1e-6) for other in others)  # division, float32


def test_scores_fall_and_none_is_below_the_threshold(run):
    model, _ = load_detector(run, device="cpu")
    scores = predict(model, [photo(90, 70)], score=0.0)[0]["scores"]
    assert (scores.diff() <= 0).all() and scores[0] > scores[-1]
    threshold = float(scores[[0, -1]].mean())
    (some,) = predict(model, [photo(90, 70)], score=threshold)
    assert len(some["labels"]) == len(some["masks"]) and torch.equal(some["scores"], scores[scores >= threshold])


def test_retinanet_counts_labels_from_0_and_has_no_masks(tmp_path):
    folder = write_run(tmp_path / "run", recipes.retinanet_1x_secvit_tiny())
    model, classes = load_detector(folder, device="cpu")
    bias = model.head.classification_head.cls_logits.bias
    (found,) = predict(model, [photo(90, 70)], score=0.0)
    assert "masks" not in found and len(found["boxes"]) and found["labels"].max() < len(classes)
    with torch.no_grad():
        bias.view(-1, len(classes))[:, 0] += 100  # the first class everywhere
    (found,) = predict(model, [photo(90, 70)], score=0.9)
    assert len(found["labels"]) and (found["labels"] == 0).all()


def test_a_run_and_its_weight_file_are_one_detector(run, tmp_path):
    image = [photo(90, 70)]
    expected = predict(load_detector(run, device="cpu")[0], image, score=0.0)[0]
    model, categories = load_detector(run / "model.safetensors", device="cpu")
    assert categories == dict(enumerate(CLASSES, 1)) and not model.training
    assert torch.equal(predict(model, image, score=0.0)[0]["boxes"], expected["boxes"])


def test_a_larger_size_moves_the_limit_of_the_long_side_too(run):
    model, _ = load_detector(run, min_size=128, device="cpu")
    assert (model.transform.min_size, model.transform.max_size) == ((128,), 192)  # the run's: 64, 96


def edited(run, folder, change):
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_category_ids_are_those_of_the_data_where_the_run_knows_them(run, tmp_path):
    _, categories = load_detector(edited(run, tmp_path / "run", lambda c: c.update(category_ids=[3, 7, 90])))
    assert list(categories.items()) == list(zip((3, 7, 90), CLASSES, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(model={"name": "secvit_nano"}), "not that of a detector"),
        (lambda c: c.update(classes=None), "not that of a detector"),
        (lambda c: c["model"].update(colour="red"), "does not fit this version.*colour"),
        (lambda c: c["classes"].append("cow"), "does not fit MaskRCNN.*of another shape"),
    ],
)
def test_a_run_that_is_no_detectors_is_refused(run, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_detector(edited(run, tmp_path / "run", change))


def test_what_cannot_be_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="no such run"):
        load_detector(tmp_path / "none")
    shutil.copy(run / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"no config.yaml beside the weights"):
        load_detector(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="min_size=0"):
        load_detector(run, min_size=0)
    model, _ = load_detector(run, device="cpu")
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\); give \(3, H, W\)"):
        predict(model, [torch.rand(1, 8, 8)])
    with pytest.raises(ValueError, match="2x5000 px is too thin"):
        predict(model, [Image.new("RGB", (2, 5000))])
    with pytest.raises(ValueError, match="score=50"):
        predict(model, [], score=50)


# -- in COCO's format --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_pycocotools_opens_the_file_and_finds_the_masks_in_it_again(run):
    pycocotools = pytest.importorskip("pycocotools.coco")
    model, categories = load_detector(run, device="cpu")
    images = [photo(90, 70), photo(60, 100, 1)]
    results = predict(model, images, score=0.3)
    coco = new_coco(categories)
    for i, (image, found) in enumerate(zip(images, results, strict=True)):
        add_image(coco, f"{i}.png", image.size, found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = pycocotools.COCO()
        truth.dataset = json.loads(json.dumps(coco))
        truth.createIndex()
        again = truth.loadRes(truth.dataset["annotations"])
    for opened in (truth, again):
        masks = [opened.annToMask(one) for one in opened.loadAnns(opened.getAnnIds())]
        expected = torch.cat([mask.flatten() for found in results for mask in found["masks"]])
        assert len(masks) and np.array_equal(np.concatenate([mask.ravel() for mask in masks]), expected.numpy())
    first, box = coco["annotations"][0], results[0]["boxes"][0]
    assert first["area"] == int(results[0]["masks"][0].sum())
    assert first["bbox"] == pytest.approx([*box[:2].tolist(), *(box[2:] - box[:2]).tolist()])
    assert truth.loadCats(first["category_id"])[0]["name"] == CLASSES[int(results[0]["labels"][0])]


def test_detections_without_masks_have_the_area_of_their_boxes():
    coco = new_coco({1: "cat", 2: "dog", 17: "bird"})
    found = {"boxes": torch.tensor([[1.0, 2, 5, 9]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.5])}
    add_image(coco, "a.png", (10, 12), found)
    assert coco["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 17, "bbox": [1, 2, 4, 7], "score": 0.5, "area": 28, "iscrowd": 0,
         "segmentation": []}
    ]  # fmt: skip


# -- the command -------------------------------------------------------------------------------


def detect(run, *words):
    return main(["detect", str(run), "--device", "cpu", "--score", "0.3", *map(str, words)])


def test_the_command_leaves_a_picture_of_each_photo_and_a_file_that_training_reads(run, photos, tmp_path, capsys):
    output = tmp_path / "found"
    assert detect(run, photos, "--output", output) == 0
    assert sorted(p.name for p in output.iterdir()) == ["0_detections.jpg", "1_detections.jpg", "2_detections.jpg",
                                                        "detections.json"]  # fmt: skip
    coco = json.loads((output / "detections.json").read_text())
    assert f"{len(coco['annotations'])} objects in 3 photos" in capsys.readouterr().out and coco["annotations"]
    assert [(one["file_name"], one["width"], one["height"]) for one in coco["images"]] == [
        ("0.png", 90, 70), ("1.png", 60, 100), ("2.png", 33, 33)
    ]  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(photos, data / "train")
    (data / "annotations").mkdir()
    shutil.copy(output / "detections.json", data / "annotations" / "instances_train.json")
    again = load(data, "train")
    seen = [one["bbox"] for one in coco["annotations"] if one["area"]]  # what has no pixel cannot be learned
    assert again.classes == CLASSES and [o["bbox"] for some in again.objects.values() for o in some] == seen


def test_batches_do_not_change_what_the_command_writes(run, photos, tmp_path):
    for size in (1, 4):
        assert detect(run, photos, "--output", tmp_path / str(size), "--batch_size", size) == 0
    one, four = (json.loads((tmp_path / str(size) / "detections.json").read_text()) for size in (1, 4))
    assert one["images"] == four["images"] and len(one["annotations"]) == len(four["annotations"])
    for a, b in zip(one["annotations"], four["annotations"], strict=True):
        assert b["bbox"] == pytest.approx(a["bbox"], abs=1e-2)  # px; float32 sums in another order


def test_photos_of_one_name_get_pictures_of_their_own_and_no_photo_is_overwritten(run, tmp_path):
    for name in ("a/x.png", "b/x.png", "b/x.JPG", "b/x_detections.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(40, 40).save(tmp_path / name)
    before = (tmp_path / "b/x_detections.jpg").read_bytes()
    names = [tmp_path / "a/x.png", tmp_path / "b/x.png", tmp_path / "b/x.JPG", tmp_path / "b/x_detections.jpg"]
    assert detect(run, *names, names[0], "--output", tmp_path / "b", "--json", tmp_path / "found.json") == 0
    assert (tmp_path / "b/x_detections.jpg").read_bytes() == before
    new = {p.name for p in (tmp_path / "b").iterdir()} - {"x.png", "x.JPG", "x_detections.jpg"}
    assert new == {"x_detections_2.jpg", "x_detections_3.jpg", "x_detections_4.jpg", "x_detections_detections.jpg"}
    images = json.loads((tmp_path / "found.json").read_text())["images"]
    assert [one["file_name"] for one in images] == ["a/x.png", "b/x.png", "b/x.JPG", "b/x_detections.jpg"]


def test_a_photo_that_cannot_be_read_is_named_and_the_rest_goes_on(run, photos, tmp_path, capsys):
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:-40])
    Image.new("RGB", (2, 5000)).save(photos / "thin.png")
    assert detect(run, photos, tmp_path / "missing.jpg", "--output", tmp_path / "found") == 2
    said = capsys.readouterr().err
    assert all(f"left out {path}" in said for path in (photos / "1.png", photos / "thin.png", tmp_path / "missing.jpg"))
    images = json.loads((tmp_path / "found" / "detections.json").read_text())["images"]
    assert [one["file_name"] for one in images] == ["photos/0.png", "photos/2.png"]
    assert detect(run, tmp_path / "missing.jpg", "--output", tmp_path / "none") == 2
    assert "missing.jpg: cannot be read" in capsys.readouterr().err
    assert not list((tmp_path / "none").iterdir())


def test_the_command_refuses_what_would_destroy_or_come_to_nothing(run, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([photos, "--output", photos], "choose another output"),
        ([photos, "--json", photos / "0.png"], "one of the photos"),
        ([photos, "--json", photos], "a folder"),
        ([tmp_path / "empty"], "folder without images"),
        ([photos, "--batch_size", 0], "batch_size=0"),
        ([photos, "--score", 2, "--output", tmp_path / "found"], "score=2"),
    ):
        assert detect(run, *words) == 2
        assert message in capsys.readouterr().err
    assert len(list(photos.iterdir())) == 3
