"""What annotation tools export is found, read as its classes, trained and scored; what is no pair is named."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from secvit.segmentation import evaluate_checkpoint, recipes, train
from secvit.segmentation.data import load, splits
from secvit.segmentation.standard_classes import CITYSCAPES, VOC_NAMES
from tests.segmentation import exports
from tests.segmentation.make import mask_folder, save, scene
from tests.segmentation.test_classes import striped

CITY = tuple(name for name, _, _ in CITYSCAPES)
# maker, classes, images of train and of val, whether two rows are ignored
EXPORTS = {
    exports.cvat: (exports.NAMES, 5, 5, True),
    exports.cvat_task: (exports.NAMES, 4, 1, True),
    exports.voc: (VOC_NAMES, 5, 5, True),
    exports.voc_in_colours: (VOC_NAMES, 5, 5, True),
    exports.roboflow: (exports.NAMES, 5, 5, False),
    exports.roboflow_train_alone: (exports.NAMES, 4, 1, False),
    exports.cityscapes: (CITY, 5, 5, True),
    exports.cityscapes_label_ids: (CITY, 5, 5, True),
}


@pytest.mark.parametrize("make", EXPORTS, ids=lambda make: make.__name__)
def test_an_export_is_read_as_its_classes(tmp_path, make):
    classes, *counts, ignored = EXPORTS[make]
    make(tmp_path)
    assert splits(tmp_path) == ("train", "val")
    found = [load(tmp_path, split) for split in ("train", "val")]
    assert [len(split) for split in found] == counts and {split.classes for split in found} == {classes}
    drawn = {i: mask for split, i, _, mask in exports.scenes() if split == "train"}
    for i, name in enumerate(found[0].images.names):
        expected = drawn[int(re.search(r"(\d)(_png|_000019_left|\.)", name)[1])]
        expected = expected if ignored else np.where(expected == 255, 0, expected)
        assert np.array_equal(found[0].mask(i), expected)


@pytest.mark.parametrize("make", EXPORTS, ids=lambda make: make.__name__)
def test_a_whole_export_warns_of_nothing_but_classes_that_never_occur(tmp_path, make, caplog):
    load(make(tmp_path) or tmp_path, "train")
    assert all("never occur" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("make", EXPORTS, ids=lambda make: make.__name__)
def test_an_export_trains_and_evaluates(tmp_path, make):
    make(tmp_path / "data")
    recipe = recipes.tiny(recipes.folder())
    recipe = replace(recipe, loop=replace(recipe.loop, device="cpu", steps=1))
    result = train(recipe, tmp_path / "data", tmp_path / "run")
    scores = evaluate_checkpoint(tmp_path / "run", tmp_path / "data", device="cpu")
    _, _, pictures, ignored = EXPORTS[make]
    assert np.sum(scores["confusion"]) == pictures * (64 - 2 * ignored) * 80
    assert scores["confusion"] == result["confusion"] and 0 <= scores["miou"] <= 1


@pytest.mark.parametrize(
    "layout",
    [
        ("images/Train", "masks/Train", "images/Val", "masks/Val"),
        ("Images/training", "Masks/TRAIN", "Images/validation", "Masks/valid"),
        ("train2017/images", "train2017/masks", "val2017/images", "val2017/masks"),
        ("Train", "Train_Label", "Dev", "Dev_Label"),
    ],
)
def test_words_of_splits_count_in_any_case(tmp_path, layout):
    for i, place in enumerate(layout):
        save(tmp_path / place / "0.png", scene(i // 2)[i % 2])
    assert splits(tmp_path) == ("train", "val")
    assert [len(load(tmp_path, split)) for split in ("train", "val")] == [1, 1]


def test_train_alone_is_divided(tmp_path):
    mask_folder(tmp_path, images=20, splits=("train",))
    names = [set(load(tmp_path, split).images.names) for split in ("train", "val")]
    assert [len(n) for n in names] == [17, 3] and not names[0] & names[1]


def test_val_alone_is_not_divided(tmp_path):
    mask_folder(tmp_path, images=5, splits=("val",))
    assert splits(tmp_path) == ("val",) and len(load(tmp_path, "val")) == 5


def test_cityscapes_labels_that_are_no_classes_are_ignored(tmp_path):
    found = load(exports.cityscapes_label_ids(tmp_path), "train")
    assert found.labels.values[:3] == (7, 8, 11) and {0, 4, 33} & set(found.labels.ignored) == {0, 4}


def test_a_labelmap_names_colours_in_any_layout(tmp_path):
    for split, i, pixels, mask in exports.scenes():
        save(tmp_path / "images" / split / f"{i}.png", pixels)
        save(tmp_path / "masks" / split / f"{i}.png", exports.coloured(mask, exports.COLOURS))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0\nsquare:250,50,83\nstripe:51,221,255\nvoid:224,224,192\n")
    found = load(tmp_path, "train")
    assert found.classes == exports.NAMES and found.palette == exports.COLOURS
    assert np.unique(found.mask(0)).tolist() == [0, 1, 2, 255]


# -- what is refused or left out -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("train", ("0.png", "0.jpg"), "0.jpg and 0.png"),
        ("train", ("deeper/a.png", "deeper/a.bmp", "deeper/a.tif"), "deeper/a.bmp and deeper/a.png"),
        ("train_label", ("2.tif",), "2.png and 2.tif"),
        ("train_label", ("1.bmp", "1.gif"), "1.bmp and 1.gif"),
    ],
)
def test_two_files_of_one_name_are_named(tmp_path, kind, files, message):
    mask_folder(tmp_path)
    for file in files:
        save(tmp_path / kind / file, scene(9)[0 if kind == "train" else 1])
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "train")


@pytest.mark.parametrize("stray", ["._0.png", ".hidden.png", "Thumbs.db", "__MACOSX/0.png", ".thumbs/0.png", "0.png~"])
def test_stray_files_are_no_data(tmp_path, stray, caplog):
    mask_folder(tmp_path)
    for folder in ("train", "train_label"):
        path = tmp_path / folder / stray
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\x16\7" * 20)
    with caplog.at_level(logging.INFO):
        assert len(load(tmp_path, "train")) == 4
    assert "train: used 8 of 10 files; left out: 2 hidden or stray" in caplog.text


def test_what_is_left_out_is_said(tmp_path, caplog):
    mask_folder(tmp_path)
    (tmp_path / "train" / "notes.txt").write_text("")
    save(tmp_path / "train_label" / "preview.jpg", scene(0)[0])
    load(tmp_path, "train")
    assert "train: used 8 of 10 files; left out: 1 of another ending (.txt), 1 of a lossy format" in caplog.text


def test_linked_folders_are_followed(tmp_path):
    mask_folder(tmp_path / "real", images=3, splits=("train",))
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind / "train").mkdir(parents=True)
        source = tmp_path / "real" / ("train" if kind == "images" else "train_label")
        (tmp_path / "set" / kind / "train" / "linked").symlink_to(source)
        (tmp_path / "set" / kind / "val").symlink_to(source)
    assert [len(load(tmp_path / "set", split)) for split in ("train", "val")] == [3, 3]


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".jfif"])
def test_jpg_masks_are_refused_with_that_reason(tmp_path, ending):
    mask_folder(tmp_path)
    for path in (tmp_path / "train_label").iterdir():
        path.rename(path.with_suffix(ending))
    with pytest.raises(ValueError, match=r"4 images without a mask .*: 0, 1, 2, \.\.\.; there are JPG files"):
        load(tmp_path, "train")


def test_webp_masks_are_not_called_jpg(tmp_path):
    mask_folder(tmp_path)
    for path in (tmp_path / "train_label").iterdir():
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(ValueError, match="there are WebP files of these names"):
        load(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", ""])
@pytest.mark.parametrize("other", ["labels", "annotations"])
def test_two_folders_of_masks_of_the_same_images_are_refused(tmp_path, split, other):
    for i in range(4):
        save(tmp_path / "images" / split / f"{i}.png", scene(i)[0])
        save(tmp_path / "masks" / split / f"{i}.png", scene(i)[1])
    (tmp_path / other / split).mkdir(parents=True)
    (tmp_path / other / split / "0.txt").write_text("0 .5 .5 .1 .1")  # boxes are no masks
    if other == "labels":
        load(tmp_path, "train")
    save(tmp_path / other / split / "0.png", 1 - scene(0)[1])
    with pytest.raises(ValueError, match=r"two folders of masks of images.*: .*(masks.* and|and masks).*; keep one"):
        load(tmp_path, "train")


def test_two_folders_for_one_split_are_named(tmp_path):
    mask_folder(tmp_path, splits=("train", "val", "Validation"))
    with pytest.raises(ValueError, match="2 folders for val: Validation, val"):
        load(tmp_path, "val")


def test_an_unknown_layout_says_what_was_looked_for(tmp_path):
    (tmp_path / "stuff").mkdir()
    with pytest.raises(ValueError, match="images/train.*JPEGImages.*train/NAME_mask.png.*leftImg8bit/train.*gtFine"):
        load(tmp_path, "train")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone", r"train.txt:\n  line 6: 'gone' has no image in .*JPEGImages"),
        ("../../etc/passwd", "line 6: '../../etc/passwd' has no image"),
        ("train_0_without.jpg", None),
    ],
)
def test_a_list_names_images(tmp_path, line, message, caplog):
    exports.voc(tmp_path)
    exports.write_list(tmp_path, "train", line)
    if message:
        with pytest.raises(ValueError, match=message):
            load(tmp_path, "train")
    else:
        with caplog.at_level(logging.INFO):
            assert len(load(tmp_path, "train")) == 5
        assert "1 without a mask" in caplog.text


def test_other_classes_in_another_split_of_an_export_are_refused(tmp_path):
    exports.roboflow(tmp_path)
    (tmp_path / "valid" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, stripe\n2, square\n")
    with pytest.raises(ValueError, match=r"valid.*_classes.csv: other classes than .*train"):
        load(tmp_path, "train")


def test_a_colour_that_no_label_has_is_named(tmp_path):
    exports.cvat(tmp_path)
    mask = np.asarray(exports.coloured(scene(0)[1], ((0, 0, 0), (1, 2, 3), (51, 221, 255))))
    save(tmp_path / "SegmentationClass" / "Train 1.png", mask)
    with pytest.raises(ValueError, match=r"Train 1.png: .*it holds the colour 1,2,3, which labelmap.txt does not list"):
        load(tmp_path, "train")


# -- sets that speak against themselves -----------------------------------------------------------


def pairs(root, images, masks, count=4, ends=".png", values=(0, 1, 2), first=0):
    """Images in one folder, masks of stripes in another."""
    for i in range(first, first + count):
        save(root / images / f"{i}.png", scene(i)[0][:30, :40])
        save(root / masks / f"{i}{ends}", striped(*values))
    return root


def voc_lists(root, **lists):
    pairs(root, "JPEGImages", "SegmentationClass", 8)
    for name, numbers in lists.items():
        file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(map(str, numbers)))
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


def test_two_lists_of_one_split_are_refused_with_both(tmp_path):
    voc_lists(tmp_path, train=range(4), val=(4, 5), valid=(6, 7))
    with pytest.raises(ValueError, match=r"val.txt and valid.txt both list val; join them, or keep one"):
        load(tmp_path, "train")


def test_trainval_is_train_where_there_is_none(tmp_path):
    voc_lists(tmp_path / "a", trainval=range(6), test=(6, 7))
    assert splits(tmp_path / "a") == ("train", "test")
    assert [len(load(tmp_path / "a", split)) for split in ("train", "test")] == [6, 2]
    voc_lists(tmp_path / "b", trainval=range(6), train=range(4), val=(4, 5))
    assert [len(load(tmp_path / "b", split)) for split in ("train", "val")] == [4, 2]
    voc_lists(tmp_path / "c", trainval=range(6))
    assert splits(tmp_path / "c") == ("train", "val") and len(load(tmp_path / "c", "val")) == 1
    voc_lists(tmp_path / "d", trainval=range(6), val=(4, 5))
    with pytest.raises(ValueError, match="trainval.txt is train and val together, and val is beside it, but no train"):
        load(tmp_path / "d", "train")


def test_a_list_that_is_a_link_to_nothing_is_named(tmp_path):
    voc_lists(tmp_path, train=range(4))
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").symlink_to(tmp_path / "annex" / "x")
    with pytest.raises(ValueError, match="val.txt: cannot be read"):
        load(tmp_path, "val")


HALVES = {
    "images alone": lambda root: save(root / "images" / "val" / "9.png", scene(9)[0]),
    "masks alone": lambda root: save(root / "masks" / "Validation" / "9.png", striped(0, 1)),
    "another layout": lambda root: save(root / "val" / "9.png", scene(9)[0]),
    "broken link": lambda root: (root / "images" / "val").symlink_to(root / "annex"),
    "broken link of test": lambda root: (root / "masks" / "test").symlink_to(root / "annex"),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_split_that_is_half_there_is_not_replaced_by_a_part_of_train(tmp_path, name):
    pairs(tmp_path, "images/train", "masks/train")
    assert len(load(tmp_path, "val")) == 1
    HALVES[name](tmp_path)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match="called like a (val|test) split, but it has no images with masks"):
            load(tmp_path, split)


def test_a_folder_that_may_be_val_is_not_replaced_by_a_part_of_train(tmp_path):
    pairs(tmp_path, "images/train", "masks/train"), pairs(tmp_path, "images/eval", "masks/eval")
    with pytest.raises(ValueError, match="no val split, but eval, which may be meant as val; rename it to val"):
        load(tmp_path, "train")


def test_a_test_without_masks_is_told_and_not_used(tmp_path, caplog):
    pairs(tmp_path, "images/train", "masks/train"), save(tmp_path / "images" / "test" / "9.png", scene(9)[0])
    assert splits(tmp_path) == ("train", "val")
    assert f"{tmp_path}/images/test: no masks of test, so it is not used" in caplog.text


def test_two_sets_in_one_folder_are_refused_with_both(tmp_path):
    pairs(tmp_path / "a", "images/train", "masks/train"), pairs(tmp_path / "a", "train/images", "train/masks")
    with pytest.raises(ValueError, match=r"of train with masks: images/train \+ masks/train and train/images \+ train"):
        load(tmp_path / "a", "train")
    pairs(tmp_path / "b", "images", "masks"), pairs(tmp_path / "b", "JPEGImages", "SegmentationClass")
    with pytest.raises(ValueError, match=r"two sets in one folder, images \+ masks and JPEGImages \+ Segm"):
        load(tmp_path / "b", "train")


def test_data_one_folder_deeper_are_pointed_at(tmp_path):
    pairs(tmp_path / "inside", "images", "masks")
    with pytest.raises(ValueError, match=f"{tmp_path}/inside has them: give it as the data"):
        load(tmp_path, "train")


# -- layouts of well-known sets -------------------------------------------------------------------


def camvid(root):
    colours = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
    for split in ("train", "val"):
        for i in range(3):
            save(root / split / f"{i}.png", scene(i)[0][:30, :40])
            save(root / f"{split}_labels" / f"{i}_L.png", colours[striped(0, 1, 2)])
    (root / "class_dict.csv").write_text("name,r,g,b\nVoid,0,0,0\nCar,128,0,0\nTree,0,128,0\n")


def pets(root):
    pairs(root, "images", "annotations/trimaps", 10, values=(1, 2, 3))
    (root / "annotations" / "xmls").mkdir()
    for name, numbers in (("trainval", range(6)), ("test", (6, 7)), ("list", range(8))):
        (root / "annotations" / f"{name}.txt").write_text("".join(f"{i} 1 2 1\n" for i in numbers))


def labelme(root):
    pairs(root, "JPEGImages", "SegmentationClassPNG")
    (root / "SegmentationClass").mkdir()
    np.save(root / "SegmentationClass" / "0.npy", striped(0, 1, 2))
    (root / "class_names.txt").write_text("_background_\ncat\ndog\n")


KNOWN = {
    "camvid": (camvid, ("Void", "Car", "Tree"), ("train", "val"), [3, 3]),
    "pets": (pets, ("1", "2", "3"), ("train", "test"), [6, 2]),
    "labelme": (labelme, ("_background_", "cat", "dog"), ("train", "val"), [3, 1]),
    "carvana": (lambda root: pairs(root, "train", "train_masks", ends="_mask.gif"), ("0", "1", "2"), ("train", "val"),
                [3, 1]),
    "masks that end in _mask": (lambda root: pairs(root, "images", "masks", ends="_mask.png"), ("0", "1", "2"),
                                ("train", "val"), [3, 1]),
    "mmsegmentation": (lambda root: pairs(root, "img_dir/train", "ann_dir/train", ends="_labelTrainIds.png"),
                       ("0", "1", "2"), ("train", "val"), [3, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_sets_are_read_as_they_come(tmp_path, name):
    make, classes, parts, counts = KNOWN[name]
    make(tmp_path)
    assert splits(tmp_path) == parts
    found = [load(tmp_path, split) for split in parts]
    assert [len(split) for split in found] == counts and {split.classes for split in found} == {classes}
    for split in found:
        for i in range(len(split)):
            assert np.array_equal(split.mask(i), striped(0, 1, 2))


def test_masks_with_several_endings_stay_unpaired(tmp_path):
    pairs(tmp_path, "images", "masks", ends="_mask.png"), pairs(tmp_path, "images", "masks", ends="_color.png")
    with pytest.raises(ValueError, match="4 images without a mask of that name"):
        load(tmp_path, "train")


def test_one_missing_mask_of_masks_with_an_ending_is_named(tmp_path):
    pairs(tmp_path, "images", "masks", ends="_mask.png")
    (tmp_path / "masks" / "2_mask.png").unlink()
    with pytest.raises(ValueError, match="1 images without a mask of that name in .*masks: 2$"):
        load(tmp_path, "train")


def test_a_photo_beside_its_missing_mask_is_not_taken_for_a_lossy_mask(tmp_path):
    exports.roboflow(tmp_path)
    next((tmp_path / "train").glob("*_mask.png")).unlink()
    with pytest.raises(ValueError, match="1 images without a mask") as found:
        load(tmp_path, "train")
    assert "JPG" not in str(found.value)
