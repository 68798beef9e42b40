"""COCO-format folders: what is read, and what is refused before the first step."""

import json
import shutil

import pytest
import torch
from PIL import ExifTags, Image

from secvit.detection.data import load
from secvit.detection.evaluate import average_precision
from secvit.detection.view import TrainView
from secvit.images import read_image, upright_size
from tests.conftest import slow_but
from tests.detection.make import coco_folder, edit


@pytest.fixture
def folder(tmp_path):
    return coco_folder(tmp_path)


def test_boxes_labels_and_masks_belong_together(folder):
    coco = load(folder, "train")
    assert coco.classes == ("square", "triangle") and coco.category_ids == (3, 7)
    target = coco.target(0)
    assert target["labels"].tolist() == [0, 1]
    for box, mask in zip(target["boxes"].tolist(), target["masks"]):
        rows, columns = torch.where(mask > 0)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert all(abs(float(a) - b) <= 1 for a, b in zip(found, box))


def test_roboflows_layout_is_found(folder):
    for split, name in (("train", "train"), ("val", "valid")):
        (folder / split).rename(folder / name)
        (folder / "annotations" / f"instances_{split}.json").rename(folder / name / "_annotations.coco.json")
    assert [len(load(folder, split).images) for split in ("train", "val")] == [4, 4]


def test_a_flip_moves_boxes_and_masks_alike(folder):
    coco = load(folder, "train")
    (plain, before), (flipped, after) = (TrainView(coco, True, flip).pair(0) for flip in (0.0, 1.0))
    assert torch.equal(flipped, plain.flip(-1)) and torch.equal(after["masks"], before["masks"].flip(-1))
    assert torch.equal(after["boxes"][:, 0], 80 - before["boxes"][:, 2])


def test_a_sample_depends_on_seed_and_key_alone(folder):
    view, again = (TrainView(load(folder, "train"), True, 0.5, seed=3) for _ in range(2))
    batch = view.__getitems__([2, 5, 9])
    for i, key in enumerate((2, 5, 9)):
        torch.rand(7)
        image, target = again.pair(key)
        assert torch.equal(image, batch["images"][i])
        assert all(torch.equal(target[name], batch["targets"][i][name]) for name in target)


def test_crowds_and_empty_images_are_not_learned_from(folder):
    edit(folder, "train", lambda c: [a.update(iscrowd=1) for a in c["annotations"] if a["image_id"] == 10])
    edit(folder, "train", lambda c: c["annotations"].pop())
    view = TrainView(load(folder, "train"), True)
    assert len(view) == 3 and len(view.coco.images) == 4


NAN = float("nan")


def polygon(content, points):
    content["annotations"][0].update(segmentation=[points])


def runs(content, counts):
    content["annotations"][0].update(segmentation={"size": [64, 80], "counts": counts})


BROKEN = {
    "no file": (lambda c: c["images"][0].update(file_name="gone.png"), "image 10: no file gone.png"),
    "other size": (lambda c: c["images"][0].update(width=70), "0.png is 80x64 px upright, the entry says 70x64"),
    "no size": (lambda c: c["images"][0].pop("height"), "image 10: entry without height"),
    "negative box": (lambda c: c["annotations"][1].update(bbox=[9, 9, -3, 5]), r"annotation 2: of 0.png has a box .* of a negative size"),
    "two points": (lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4]]), "a polygon of 2 points"),
    "category": (lambda c: c["annotations"][2].update(category_id=99), "annotation 3: of 1.png has unknown category_id 99"),
    "image": (lambda c: c["annotations"][2].update(image_id=5), "annotation 3: unknown image_id 5"),
    "outside": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 300, 4, 5, 6]]), "a mask outside its 80x64 px"),
    "box outside": (lambda c: c["annotations"][0].update(bbox=[100, 2, 5, 5]), "outside its 80x64 px"),
    "mask size": (
        lambda c: c["annotations"][0].update(segmentation={"size": [9, 9], "counts": "x"}), "a mask of size .9, 9. on",
    ),
    "no numbers": (lambda c: c["annotations"][0].update(bbox=None), "no box of four numbers"),
    "text in a box": (lambda c: c["annotations"][0].update(bbox=["1", "1", "9", "9"]), "annotation 1: .* no box of four numbers"),
    "NaN in a box": (lambda c: c["annotations"][0].update(bbox=[1, NAN, 9, 9]), "annotation 1: .* no box of four numbers"),
    "a giant in a box": (lambda c: c["annotations"][0].update(bbox=[1, 1, 10**400, 9]), "no box of four numbers"),
    "box 100 times the image": (lambda c: c["annotations"][0].update(bbox=[0, 0, 8000, 6400]), "of which 0% lies in its 80x64 px"),
    "NaN in a polygon": (lambda c: polygon(c, [1, 1, 9, 1, 9, NAN]), "annotation 1: .* a polygon with NaN, expected a number of px"),
    "a giant in a polygon": (lambda c: polygon(c, [1, 1, 9, 1, 9, 10**400]), "annotation 1: .* a polygon with 1000"),
    "text in a polygon": (lambda c: polygon(c, [1, 1, 9, 1, 9, "9"]), "annotation 1: .* a polygon with '9'"),
    "a polygon that is null": (lambda c: polygon(c, None), "annotation 1: .* a polygon null, expected a list of numbers"),
    "points in pairs": (lambda c: c["annotations"][0].update(segmentation=[[1, 1], [9, 1], [9, 9]]), "a polygon of 1 points"),
    "a mask that is a number": (lambda c: c["annotations"][0].update(segmentation=7), "has a mask 7, expected polygons"),
    "no mask": (lambda c: c["annotations"][0].update(segmentation=[]), "annotation 1: of 0.png has no mask\n.*args"),
    "run lengths too short": (lambda c: runs(c, [500, 20, 28]), "annotation 1: .* run lengths of 548 px for an image of 5,120 px"),
    "run lengths below 0": (lambda c: runs(c, [5121, -1]), "annotation 1: .* run lengths below 0"),
    "run lengths of text": (lambda c: runs(c, ["a"]), "annotation 1: .* a mask of counts"),
    "compressed run lengths too short": (lambda c: runs(c, "d?d0l0"), "annotation 1: .* run lengths of 548 px"),
    "compressed run lengths of other characters": (lambda c: runs(c, "d~d0"), "annotation 1: .* no run lengths"),
    "compressed run lengths that break off": (lambda c: runs(c, "d?P"), "annotation 1: .* in the middle of a number"),
    "compressed run lengths of a giant": (lambda c: runs(c, "PPPPPPPPPP0"), "annotation 1: .* beyond any image"),
    "a mask far from its box": (lambda c: polygon(c, [70, 50, 75, 50, 75, 55]), "its mask lies elsewhere, at .71.0, 50.0, 4.0, 4.0"),
    "an annotation that is text": (lambda c: c["annotations"].insert(0, "x"), "annotation at place 1 of the list: 'x', expected an object"),
    "an image that is a list": (lambda c: c["images"].insert(0, [1]), "image at place 1 of the list: .1., expected an object"),
    "an id that is a list": (lambda c: c["images"][0].update(id=[0]), "image at place 1 of the list: id is .0., expected"),
    "an annotation's id that is a list": (lambda c: c["annotations"][0].update(id=[0]), "annotation at place 1 .*: id is .0."),
    "a name that is a list": (lambda c: c["images"][0].update(file_name=["0.png"]), "image 10: file_name is .*, expected text"),
    "a size that is text": (lambda c: c["images"][0].update(width="wide"), "image 10: width is 'wide', expected a number"),
    "a reference that is a list": (lambda c: c["annotations"][0].update(image_id=[10]), "annotation 1: image_id is .10., expected"),
    "a crowd of two": (lambda c: c["annotations"][0].update(iscrowd=2), "annotation 1: iscrowd is 2, expected 0 or 1"),
    "an area below 0": (lambda c: c["annotations"][0].update(area=-1), "annotation 1: area is -1, expected an area in px"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_entry_is_named_with_its_file(folder, change, message):
    edit(folder, "train", change)
    with pytest.raises(ValueError, match=rf"(?s)instances_train.json:.*{message}"):
        load(folder, "train")
    left = load(folder, "train", drop_broken=True)
    assert len(left.dropped) >= 1 and sum(map(len, left.objects.values())) >= 5


def test_all_broken_entries_are_named_at_once(folder):
    edit(folder, "train", lambda c: [a.update(bbox=[1, 2, -1, 0]) for a in c["annotations"][:3]])
    (folder / "train" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="(?s)image 13: .*3.png.*annotation 1: .*annotation 2: .*annotation 3: "):
        load(folder, "train")


def test_a_photo_that_exif_turns_is_as_large_as_it_is_read(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(folder / "train" / "0.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(folder / "train" / "0.png", exif=exif)
    assert read_image(folder / "train" / "0.png").size == upright_size(folder / "train" / "0.png") == (80, 64)
    load(folder, "train")


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no val split; looked for COCO: annotations/instances_val.json"):
        load(tmp_path, "val")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(ValueError, match="not its folder of images"):
        load(tmp_path, "val")
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="not a readable COCO file"):
        load(tmp_path, "val")


FATAL = {
    "images are text": (lambda c: c.update(images="abc"), "not a readable COCO file .the file: images is 'abc'"),
    "no annotations": (lambda c: c.pop("annotations"), "not a readable COCO file .the file: no 'annotations'"),
    "no images": (lambda c: c.update(images=[]), "no images"),
    "no categories": (lambda c: c.update(categories=[]), "no categories"),
    "a category without a name": (lambda c: c["categories"][0].pop("name"), "category 7: no 'name'"),
    "a category without an id": (lambda c: c["categories"][0].pop("id"), "category at place 1 of the list: no 'id'"),
    "a category that is text": (lambda c: c["categories"].insert(0, "x"), "category at place 1 of the list: 'x'"),
    "boxes as shares of the image": (
        lambda c: [a.update(bbox=[0.2, 0.2, 0.5, 0.4]) for a in c["annotations"]], "all 8 boxes lie within the first pixel",
    ),
    "boxes as corners": (
        lambda c: [a.update(bbox=[10, 8, 80, 64 - i]) for i, a in enumerate(c["annotations"])],
        "8 of 8 boxes end outside their image, and all are x1, y1, x2, y2",
    ),
    "boxes as corners that end in their image": (
        lambda c: [a.update(bbox=[5 + i, 4, 25 + i, 14], area=200) for i, a in enumerate(c["annotations"])],
        "areas of all 8 annotations are those of boxes x1, y1, x2, y2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("change", "message"), FATAL.values(), ids=FATAL)
def test_what_is_wrong_with_a_whole_file_is_refused_and_never_dropped(folder, change, message, drop):
    edit(folder, "train", change)
    with pytest.raises(ValueError, match=rf"(?s)instances_train.json:.*{message}"):
        load(folder, "train", False, drop)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", "null", '{"images":' + "[" * 100000 + "]" * 100000 + "}", '{"images": ' + "9" * 5000 + "}"],
    ids=range(7),
)
def test_a_file_of_any_shape_is_refused_by_name(folder, content):
    (folder / "annotations/instances_train.json").write_text(content)
    with pytest.raises(ValueError, match="instances_train.json: not a readable COCO file"):
        load(folder, "train")


MEANT = {
    "sizes as decimals": lambda c: [e.update(width=80.0, height="64") for e in c["images"]],
    "crowds as text": lambda c: [a.update(iscrowd="0") for a in c["annotations"]],
    "crowds left out": lambda c: [a.pop("iscrowd") for a in c["annotations"]],
    "areas as text": lambda c: [a.update(area=str(a["area"])) for a in c["annotations"]],
    "polygons as flat lists": lambda c: [a.update(segmentation=a["segmentation"][0]) for a in c["annotations"]],
}


@pytest.mark.parametrize("change", MEANT.values(), ids=MEANT)
def test_what_is_meant_is_read(folder, change):
    before = load(folder, "train")
    edit(folder, "train", change)
    after = load(folder, "train")
    for i in range(4):
        one, other = before.target(i), after.target(i)
        assert len(one["labels"]) == 2 and all(torch.equal(one[name], other[name]) for name in one)


# instances_train2017.json as it is (cocodataset/cocoapi#355, visionml/pytracking#18)
FLAT = [
    {"segmentation": [[296.65, 388.33, 296.65, 388.33, 297.68, 388.33, 297.68, 388.33]], "area": 0.0, "iscrowd": 0,
     "image_id": 200365, "bbox": [296.65, 388.33, 1.03, 0.0], "category_id": 58, "id": 918},
    {"segmentation": [[9.98, 188.56, 15.52, 188.56, 15.52, 188.56, 11.09, 188.56]], "area": 0.0, "iscrowd": 0,
     "image_id": 550395, "bbox": [9.98, 188.56, 5.54, 0.0], "category_id": 1, "id": 2206849},
]  # fmt: skip


@pytest.fixture
def real(tmp_path):
    """COCO's own layout with these two entries and a whole object beside each."""
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        images, annotations = [], list(FLAT)
        for one in FLAT:
            name = f"{one['image_id']:012}.jpg"
            Image.new("RGB", (640, 480)).save(tmp_path / split / name)
            images.append({"id": one["image_id"], "file_name": name, "width": 640, "height": 480})
            whole = {"id": one["id"] + 1, "bbox": [20, 30, 40, 50], "area": 2000.0}
            annotations.append({**one, **whole, "segmentation": [[20, 30, 60, 30, 60, 80, 20, 80]]})
        categories = [{"id": 1, "name": "person"}, {"id": 58, "name": "hot dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("masks", [True, False])
def test_cocos_flat_objects_are_left_out_of_train_and_counted(real, masks, caplog):
    coco = load(real, "train", masks)
    assert [o["bbox"] for some in coco.objects.values() for o in some] == [[20, 30, 40, 50]] * 2
    assert [fault.split(":")[0] for fault in coco.dropped] == ["annotation 918", "annotation 2206849"]
    assert "train: used 2 of 4 objects; left out: 2 without area" in caplog.text
    assert len(TrainView(coco, masks)) == 2


def test_cocos_flat_objects_stay_in_the_truth_of_val(real, caplog):
    coco = load(real, "val", drop_broken=True)
    found = [{**o, "score": 1.0} for some in coco.objects.values() for o in some if o["area"]]
    # of the two objects of each class one cannot be found: 51 of 101 recalls are reached
    assert len(coco.table) == 4 and average_precision(coco, found)["AP"] == pytest.approx(51 / 101)
    assert "2 objects of no area stay in the score" in caplog.text


def test_an_object_whose_polygon_covers_no_pixel_is_left_out_of_train_and_counted(folder, caplog):
    edit(folder, "train", lambda c: polygon(c, [10, 10, 10, 10, 10, 10]))
    edit(folder, "train", lambda c: c["annotations"][0].update(bbox=[5, 5, 9, 9]))
    assert len(load(folder, "train").table) == 7 and "left out: 1 without area" in caplog.text


def test_broken_entries_of_val_are_never_dropped(folder):
    edit(folder, "val", lambda c: c["annotations"][0].update(bbox=None))
    with pytest.raises(ValueError, match="annotation 1: .*\nRepair them$"):
        load(folder, "val", drop_broken=True)


def test_boxes_that_end_outside_are_said_with_their_share(folder, caplog):
    edit(folder, "train", lambda c: c["annotations"][2].update(bbox=[60, 40, 24, 20]))
    load(folder, "train", False)
    assert "1 of 8 boxes end outside their image and are cut there (12.5 %), annotation 3 for one" in caplog.text


def test_boxes_that_do_not_lie_around_their_masks_are_said_with_their_share(folder, caplog):
    edit(folder, "train", lambda c: c["annotations"][2].update(bbox=[2, 2, 60, 60]))
    load(folder, "train")
    assert "1 of 8 boxes do not lie around their masks (12.5 %), annotation 3 for one" in caplog.text


def test_images_without_objects_are_said_and_learned_from_when_asked(folder, caplog):
    edit(folder, "train", lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] == 10]))
    edit(folder, "train", lambda c: c["annotations"].append({**c["annotations"][0], "image_id": 11, "iscrowd": 1}))
    coco = load(folder, "train")
    assert len(TrainView(coco, True)) == 1
    assert "train: used 1 of 4 images; left out: 2 without objects" in caplog.text
    assert "1 with nothing but crowds" in caplog.text
    view = TrainView(coco, True, background=True)
    image, target = view.pair(2)
    assert len(view) == 3 and image.shape == (3, 64, 80)
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 64, 80) and not len(target["labels"])


@pytest.mark.parametrize(
    "detector", slow_but(("mask_rcnn", "retinanet"), ("mask_rcnn", "cascade_mask_rcnn", "retinanet"))
)
def test_every_detector_learns_from_an_image_without_objects(detector):
    from secvit.detection import models

    small = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 4, 4], "stem_stride": 4}
    model = getattr(models, detector)("secvit_nano", 2, backbone_args=small, min_size=64, max_size=96)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = model([torch.rand(3, 64, 80)], [{**target, "masks": torch.zeros(0, 64, 80, dtype=torch.uint8)}])
    loss = sum(losses.values())
    loss.backward()
    assert torch.isfinite(loss) and loss > 0


def test_a_jpeg_that_breaks_off_is_replaced_and_counted(folder, caplog):
    file = folder / "train" / "1.png"
    Image.effect_noise((80, 64), 90).convert("RGB").save(file, "JPEG", quality=95)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    view = TrainView(load(folder, "train"), True, flip=0.0)
    (broken, target), (following, other) = view.pair(1), view.pair(2)
    assert torch.equal(broken, following) and torch.equal(target["boxes"], other["boxes"])
    assert view.skipped == [str(file)] and caplog.text.count("skipped: ") == 1


@pytest.mark.parametrize("name", ["coco286", "pets599", "nuclei471"])
def test_real_sets_are_whole(name, shared):
    for split in ("train", "val"):
        assert not load(shared / "data" / name, split).dropped


def test_boxes_of_the_areas_that_the_file_says_are_no_corners(folder):
    edit(folder, "train", lambda c: [a.update(bbox=[5, 4, 25, 14], area=25 * 14) for a in c["annotations"]])
    assert load(folder, "train", False).table.boxes[0].tolist() == [5, 4, 25, 14]


@pytest.mark.parametrize("name", ["../train/0.png", "./0.png", "link.png"])
def test_one_file_under_two_entries_is_refused_however_its_path_is_spelled(folder, name):
    (folder / "train" / "link.png").symlink_to("0.png")
    edit(folder, "train", lambda c: c["images"][1].update(file_name=name))
    with pytest.raises(ValueError, match="image 10 and image 11 are one file, .*put their annotations under one"):
        load(folder, "train")
    with pytest.raises(ValueError, match="image 10 and image 11 are one file"):
        (folder / "annotations/instances_val.json").unlink()
        shutil.rmtree(folder / "val")
        load(folder, "val", divide=True)
