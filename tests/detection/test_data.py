"""COCO-format folders: what is read, and what is refused before the first step."""

import pytest
import torch
from PIL import ExifTags, Image

from secvit.detection.data import TrainView, load
from secvit.images import read_image, upright_size
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


BROKEN = {
    "no file": (lambda c: c["images"][0].update(file_name="gone.png"), "image 10: no file gone.png"),
    "other size": (lambda c: c["images"][0].update(width=70), "0.png is 80x64 px upright, the entry says 70x64"),
    "no size": (lambda c: c["images"][0].pop("height"), "image 10: entry without height"),
    "empty box": (lambda c: c["annotations"][1].update(bbox=[3, 4, 0, 5]), r"annotation 2: of 0.png has an empty box"),
    "two points": (lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4]]), "a polygon of 2 points"),
    "category": (lambda c: c["annotations"][2].update(category_id=99), "annotation 3: of 1.png has unknown category_id 99"),
    "image": (lambda c: c["annotations"][2].update(image_id=5), "annotation 3: unknown image_id 5"),
    "outside": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 300, 4, 5, 6]]), "a mask outside its 80x64 px"),
    "box outside": (lambda c: c["annotations"][0].update(bbox=[100, 2, 5, 5]), "outside its 80x64 px"),
    "mask size": (
        lambda c: c["annotations"][0].update(segmentation={"size": [9, 9], "counts": "x"}), "a mask of size .9, 9. on",
    ),
    "no numbers": (lambda c: c["annotations"][0].update(bbox=None), "no box of four numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_entry_is_named_with_its_file(folder, change, message):
    edit(folder, "train", change)
    with pytest.raises(ValueError, match=rf"(?s)instances_train.json:.*{message}"):
        load(folder, "train")
    left = load(folder, "train", drop_broken=True)
    assert len(left.dropped) >= 1 and sum(map(len, left.objects.values())) >= 5


def test_all_broken_entries_are_named_at_once(folder):
    edit(folder, "train", lambda c: [a.update(bbox=[1, 2, 0, 0]) for a in c["annotations"][:3]])
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
    with pytest.raises(ValueError, match="no val split in COCO's format; looked for annotations/instances_val.json"):
        load(tmp_path, "val")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(ValueError, match="not its folder of images"):
        load(tmp_path, "val")
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="not a readable COCO file"):
        load(tmp_path, "val")


@pytest.mark.parametrize("name", ["coco286", "pets599", "nuclei471"])
def test_real_sets_are_whole(name, shared):
    for split in ("train", "val"):
        assert not load(shared / "data" / name, split).dropped
