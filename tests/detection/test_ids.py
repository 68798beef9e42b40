"""Images, annotations and categories have our own numbers, so that perfect detections have an AP of 1 or are refused."""

import json

import pytest

from secvit.detection.data import load
from secvit.detection.evaluate import average_precision, with_file_ids
from tests.detection.make import coco_folder, edit

KINDS = {
    "annotations from 0": lambda c: [a.update(id=i) for i, a in enumerate(c["annotations"])],
    "annotations again in each image": lambda c: [a.update(id=1 + i % 2) for i, a in enumerate(c["annotations"])],
    "annotations as text": lambda c: [a.update(id=f"a{i}") for i, a in enumerate(c["annotations"])],
    "annotations without": lambda c: [a.pop("id") for a in c["annotations"]],
    "annotations below 0": lambda c: [a.update(id=-i) for i, a in enumerate(c["annotations"])],
    "images from 0": lambda c: renumber(c, "images", "image_id", lambda i, _: i),
    "images as text": lambda c: renumber(c, "images", "image_id", lambda i, _: f"frame_{i}"),
    "images as large numbers": lambda c: renumber(c, "images", "image_id", lambda i, _: 2**52 + i),
    "categories from 0": lambda c: renumber(c, "categories", "category_id", lambda i, _: i),
    "categories as text": lambda c: renumber(c, "categories", "category_id", lambda i, _: f"kind {i}"),
    "references as text": lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
    "references as decimals": lambda c: [a.update(category_id=float(a["category_id"])) for a in c["annotations"]],
}


def renumber(content, entries, reference, new):
    ids = {one["id"]: new(i, one["id"]) for i, one in enumerate(content[entries])}
    for one in content[entries]:
        one["id"] = ids[one["id"]]
    for one in content["annotations"]:
        one[reference] = ids[one[reference]]


def perfect(c):
    return [
        {"image_id": e["id"], "category_id": o["category_id"], "bbox": o["bbox"], "score": 0.9}
        for e in c.images for o in c.objects[e["id"]]
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_detections_have_an_ap_of_one_whatever_the_ids(tmp_path, kind):
    edit(coco_folder(tmp_path), "val", KINDS[kind])
    c = load(tmp_path, "val")
    figures = average_precision(c, perfect(c))
    assert figures["AP"] == pytest.approx(1.0) and figures["per_class"] == pytest.approx({"square": 1, "triangle": 1})
    assert [entry["id"] for entry in c.images] == [1, 2, 3, 4]
    assert [o["id"] for some in c.objects.values() for o in some] == list(range(1, 9))


def test_what_goes_out_has_the_files_own_ids(tmp_path):
    coco_folder(tmp_path)
    c = load(tmp_path, "val")
    own = with_file_ids(c, perfect(c))
    truth = json.loads((tmp_path / "annotations/instances_val.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    assert [[one[k] for k in keys] for one in own] == [[one[k] for k in keys] for one in truth]
    edit(tmp_path, "val", KINDS["images as text"])
    c = load(tmp_path, "val")
    assert with_file_ids(c, perfect(c))[-1]["image_id"] == "frame_3"


TWICE = {
    "two images of one id": (lambda c: c["images"][1].update(id=10), "2 images have the id 10"),
    "two images of one id, as text": (lambda c: c["images"][1].update(id="10"), "2 images have the id 10"),
    "two categories of one id": (lambda c: c["categories"][0].update(id=3), "2 categories have the id 3"),
    "two categories of one name": (
        lambda c: c["categories"][0].update(name="square"), "2 categories have the name 'square'",
    ),
    "one file under two entries": (
        lambda c: c["images"][1].update(file_name="0.png"), "image 10 and image 11 are one file, .*0.png",
    ),
    "one file under two spellings": (
        lambda c: c["images"][1].update(file_name="images\\0.png"), "image 10 and image 11 are one file, .*0.png",
    ),
}  # fmt: skip


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("change", "message"), TWICE.values(), ids=TWICE)
def test_what_is_there_twice_is_refused_and_named(tmp_path, change, message, drop):
    edit(coco_folder(tmp_path), "train", change)
    with pytest.raises(ValueError, match=f"(?s)instances_train.json:.*{message}"):
        load(tmp_path, "train", drop_broken=drop)


def test_annotations_that_are_numbered_anew_are_counted(tmp_path, caplog):
    edit(coco_folder(tmp_path), "train", KINDS["annotations again in each image"])
    load(tmp_path, "train")
    assert "6 annotations have no id or one of another" in caplog.text


def test_detections_of_unknown_images_or_categories_are_refused(tmp_path):
    c = load(coco_folder(tmp_path), "val")
    for wrong in ({"image_id": 0}, {"image_id": 5}, {"category_id": 7}):
        with pytest.raises(ValueError, match="has images 1 to 4 and categories 1 to 2"):
            average_precision(c, [{**perfect(c)[0], **wrong}])


def test_classes_are_compared_by_name_and_not_by_place(tmp_path):
    edit(coco_folder(tmp_path), "val", lambda c: renumber(c, "categories", "category_id", lambda _, id: 10 - id))
    train, val = load(tmp_path, "train"), load(tmp_path, "val")
    assert val.classes == train.classes[::-1]
    moved = val.with_classes(train.classes, train.category_ids, "train")
    assert moved.classes == train.classes and moved.table.labels.tolist() == (1 - val.table.labels).tolist()
    with pytest.raises(ValueError, match="only in .*instances_val.json: 'square'"):
        val.with_classes(("triangle", "circle"), (1, 2), "the run")
