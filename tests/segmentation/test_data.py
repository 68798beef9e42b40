"""Folders of images and masks: what is read, and what is refused before the first step."""

import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from secvit.segmentation.augment import distort, training_view
from secvit.segmentation.config import Augment
from secvit.segmentation.data import EvalView, TrainView, load, splits
from tests.segmentation.make import mask_folder, save, scene

PLAIN = Augment(short_side=0, scale=(1.0, 1.0), crop=64, max_share=1.0, flip=0.0, distort=False)
ZERO, ONE = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)


@pytest.fixture
def folder(tmp_path):
    return mask_folder(tmp_path)


LAYOUTS = {
    "ade20k": ("images/training", "annotations/training", "images/validation", "annotations/validation"),
    "images and masks": ("images/train", "masks/train", "images/val", "masks/val"),
    "split first": ("train/images", "train/masks", "val/images", "val/masks"),
    "mmsegmentation": ("img_dir/train", "ann_dir/train", "img_dir/val", "ann_dir/val"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_are_found(tmp_path, layout):
    for i, place in enumerate(layout):
        save(tmp_path / place / "deeper" / "0.png", scene(i // 2)[i % 2])
    assert splits(tmp_path) == ("train", "val")
    assert [len(load(tmp_path, split)) for split in ("train", "val")] == [1, 1]


def test_ade20ks_masks_count_from_one_and_its_table_names_the_classes(tmp_path):
    pixels, _ = scene(0)
    mask = np.zeros((64, 80), np.uint8)
    mask[10:20], mask[20:] = 1, 150
    for part in ("training", "validation"):
        save(tmp_path / "images" / part / "a.jpg", pixels)
        save(tmp_path / "annotations" / part / "a.png", mask)
    rows = ["Idx\tRatio\tTrain\tVal\tName"] + [f"{i}\t0.1\t1\t1\tthing {i}, or so" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    found = load(tmp_path, "val")
    assert len(found.classes) == 150 and found.classes[149] == "thing 150"
    assert np.unique(found.mask(0)).tolist() == [0, 149, 255] and found.mask(0)[0, 0] == 255


def test_an_ignored_value_between_classes_is_no_class(tmp_path):
    found = load(mask_folder(tmp_path, classes=("noise", "stripe"), ignore=1), "train")
    assert np.unique(found.mask(0)).tolist() == [0, 1, 255]  # 0, 2 and the squares


def test_without_names_the_training_masks_say_how_many_classes_there_are(tmp_path):
    found = load(mask_folder(tmp_path, classes=()), "val")
    assert found.classes == ("0", "1", "2") and len(set(found.palette)) == 3


def test_an_indexed_mask_brings_its_colours(tmp_path):
    mask_folder(tmp_path, classes=())
    for path in (tmp_path / "train_label").iterdir():
        mask = Image.open(path).convert("L")
        mask.putpalette([9, 9, 9, 1, 2, 3, 4, 5, 6] + [0] * 759)
        mask.save(path)
    found = load(tmp_path, "train")
    assert found.palette == ((9, 9, 9), (1, 2, 3), (4, 5, 6)) and found.mask(0).max() == 255


def test_an_undivided_folder_holds_the_same_images_out_each_time(tmp_path):
    for i in range(20):
        pixels, mask = scene(i)
        save(tmp_path / "images" / f"{i}.png", pixels)
        save(tmp_path / "masks" / f"{i}.png", mask)
    names = [set(load(tmp_path, split).images.names) for split in ("train", "val", "val")]
    assert [len(n) for n in names] == [17, 3, 3] and not names[0] & names[1] and names[1] == names[2]


def test_real_sets_are_whole(shared):
    camvid = {split: load(shared / "data" / "camvid", split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in camvid.items()} == {"train": 331, "val": 91, "test": 210}
    assert camvid["test"].classes[:2] == ("Sky", "Building") and camvid["test"].palette[0] == (128, 128, 128)
    pets = load(shared / "data" / "pets599", "val")
    assert len(pets) == 120 and pets.classes == ("0", "1")


# -- what is refused ---------------------------------------------------------------------------


def other_size(folder):
    save(folder / "train_label" / "1.png", np.zeros((64, 70), np.uint8))


def other_label(folder):
    save(folder / "train_label" / "2.png", np.full((64, 80), 7, np.uint8))


def colours(folder):
    save(folder / "train_label" / "1.png", np.zeros((64, 80, 3), np.uint8))


def deep(folder):
    save(folder / "train_label" / "1.png", np.full((64, 80), 3000, np.uint16))


def no_image(folder):
    (folder / "train" / "0.png").write_bytes(b"no image")


def cut_mask(folder):
    path = folder / "train_label" / "0.png"
    path.write_bytes(path.read_bytes()[:90])


def lonely_image(folder):
    (folder / "train_label" / "3.png").unlink()


def lonely_mask(folder):
    (folder / "train" / "3.png").unlink()


def blank(folder):
    for path in (folder / "train_label").iterdir():
        save(path, np.full((64, 80), 255, np.uint8))


def one_class(folder):
    (folder / "classes.json").write_text(json.dumps({"classes": ["thing"]}))


def no_json(folder):
    (folder / "classes.json").write_text("{")


def few_colours(folder):
    (folder / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "palette": [[1, 2, 3]]}))


BROKEN = {
    other_size: "1.png is 70x64 px, 1.png is 80x64 px upright",
    other_label: "2.png holds 7, which is none of 3 classes",
    colours: "1.png: not a mask that can be read .its pixels are RGB colours",
    deep: "1.png: holds the value 3000",
    no_image: "train.0.png: not an image",
    cut_mask: "train_label.0.png: not a mask that can be read",
    lonely_image: "1 images without a mask of that name in .*train_label: 3",
    lonely_mask: "1 masks without an image of that name in .*train: 3",
    blank: "train_label: no pixel of any mask has a class",
    one_class: "classes.json: 1 classes; expected 2 to 255",
    no_json: "classes.json: expected",
    few_colours: "classes.json: a palette needs red, green, blue",
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda f: f.__name__)
def test_what_is_broken_is_named_with_its_file(folder, breaks):
    breaks(folder)
    with pytest.raises(ValueError, match=f"(?s){BROKEN[breaks]}"):
        load(folder, "train")


def test_all_faults_are_named_at_once(folder):
    other_size(folder), other_label(folder), no_image(folder)
    with pytest.raises(ValueError, match="(?s)0.png: .*1.png is 70x64.*2.png holds 7"):
        load(folder, "train")


@pytest.mark.parametrize(
    ("split", "message"), [("test", "no test split; there is train, val"), ("other", "no other split; there is")]
)
def test_a_split_that_is_not_there_is_an_error(folder, split, message):
    with pytest.raises(ValueError, match=message):
        load(folder, split)


def test_a_folder_of_something_else_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no train split; looked for folders images/train . annotations/train"):
        load(tmp_path, "train")


def test_a_photo_that_exif_turns_wants_an_upright_mask(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(folder / "train" / "0.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(folder / "train" / "0.png", exif=exif)
    load(folder, "train")


# -- what training sees ------------------------------------------------------------------------


def test_without_changes_training_sees_the_image_and_its_mask():
    pixels, mask = scene(3)
    image, target = training_view(Image.fromarray(pixels[:, :64]), mask[:, :64], PLAIN, ZERO, ONE)
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(pixels[:, :64]).permute(2, 0, 1))
    assert torch.equal(target, torch.from_numpy(mask[:, :64]))


@pytest.mark.parametrize("change", [{"scale": (0.5, 2.0)}, {"flip": 1.0}, {"short_side": 90, "crop": 48}])
def test_a_pixel_keeps_its_class_through_every_change(change):
    pixels, mask = scene(4)
    mask, pixels = mask.copy(), pixels.copy()
    pixels[mask == 0], pixels[mask == 1], pixels[mask == 2] = (0, 0, 0), (255, 0, 0), (0, 0, 255)
    augment = Augment(**{"short_side": 0, "scale": (1.0, 1.0), "crop": 64, "flip": 0.0, "distort": False, **change})
    for seed in range(8):
        torch.manual_seed(seed)
        image, target = training_view(Image.fromarray(pixels), mask, augment, ZERO, ONE)
        assert image.shape[1:] == target.shape == (augment.crop,) * 2
        inside = target != 255
        seen = torch.where(image[0] > 0.5, 1, torch.where(image[2] > 0.5, 2, 0))
        assert (seen == target)[inside].float().mean() > 0.93  # borders are blended in one and not in the other
        assert (image[:, ~inside] == 0).all()


def test_resizing_the_crop_alone_is_resizing_the_whole_and_cropping():
    pixels, mask = scene(5, side=160)
    augment = Augment(short_side=100, scale=(1.0, 1.0), crop=64, max_share=1.0, flip=0.0, distort=False)
    torch.manual_seed(1)
    image, _ = training_view(Image.fromarray(pixels), mask, augment, ZERO, ONE)
    whole = np.asarray(Image.fromarray(pixels).resize((110, 100), Image.Resampling.BILINEAR))
    parts = np.lib.stride_tricks.sliding_window_view(whole, (64, 64), (0, 1))
    difference = np.abs(parts - (image * 255).round().numpy()).max((2, 3, 4))
    assert difference.min() <= 2  # of 255: the box is in fractions of a pixel


def test_crops_avoid_a_class_that_fills_them():
    mask = np.zeros((64, 400), np.uint8)
    mask[:, 350:] = 1
    picture = Image.fromarray(np.zeros((64, 400, 3), np.uint8))

    def both(share):
        augment = Augment(short_side=0, scale=(1.0, 1.0), crop=64, max_share=share, flip=0.0, distort=False)
        views = [training_view(picture, mask, augment, ZERO, ONE)[1] for _ in range(60)]
        return sum(len(target.unique()) == 2 for target in views)

    assert both(0.9) > 1.5 * both(1.0)


def test_distortion_keeps_the_range_and_the_shape():
    image = torch.rand(3, 20, 30)
    seen = [distort(image) for _ in range(20)]
    assert all(x.shape == image.shape and x.min() >= 0 and x.max() <= 1 for x in seen)
    assert len({float(x.mean()) for x in seen}) > 10


def test_a_sample_depends_on_seed_and_key_alone(folder):
    view, again = (TrainView(load(folder, "train"), Augment(64, crop=48), (0.5,) * 3, (0.25,) * 3, 3) for _ in range(2))
    batch = view.__getitems__([2, 5, 9])
    for i, key in enumerate((2, 5, 9)):
        torch.rand(7)
        image, target = again.pair(key)
        assert torch.equal(image, batch["image"][i]) and torch.equal(target, batch["target"][i])


def test_an_image_that_breaks_later_is_replaced_with_its_mask(tmp_path):
    split = load(mask_folder(tmp_path, images=6), "train")
    view, whole = (TrainView(split, PLAIN, (0.0,) * 3, (1.0,) * 3) for _ in range(2))
    torch.manual_seed(0)
    expected = whole.pair(2)
    path = tmp_path / "train" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    assert view.open_or_next(1)[1] == 2 and view.skipped == [str(path)]
    assert torch.equal(view.pair(2)[1], expected[1])
    assert len(EvalView(split).__getitems__([0, 1, 2])["target"]) == 2


@pytest.mark.parametrize("wrong", [{"scale": (2.0, 1.0)}, {"scale": (0.0, 1.0)}, {"crop": 0}, {"short_side": -1}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="give"):
        Augment(**wrong)
