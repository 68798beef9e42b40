"""A split that is there by its name is read or refused; of two that contradict each other none is chosen by chance."""

import json
import os
import shutil

import pytest

from secvit.detection import recipes, train
from secvit.detection.data import find, load, splits
from secvit.detection.training import check_overlap
from tests.detection.test_layouts import (
    ALL,
    NAMES,
    TRAIN,
    VAL,
    coco,
    cvat_task,
    roboflow,
    voc,
    voc_files,
    voc_of_roboflow,
    write_images,
    yolo,
    yolo_labels,
    yolo_undivided,
)


def coco_train(root, file="annotations/instances_train.json", folder="images/train", seeds=TRAIN):
    write_images(root / folder, seeds)
    coco(root / file, seeds)


def coco_both(root):
    coco_train(root)
    coco_train(root, "annotations/instances_val.json", "images/val", VAL)


def lists(root, **seeds):
    """Pascal VOC with these lists alone."""
    voc(root)
    for file in (root / "ImageSets/Main").iterdir():
        file.unlink()
    for name, some in seeds.items():
        (root / f"ImageSets/Main/{name}.txt").write_text("".join(f"{seed}\n" for seed in some))


def yaml(root, **places):
    """YOLO with these entries alone."""
    yolo(root)
    lines = [f"{key}: {value}" for key, value in {**places, "names": list(NAMES)}.items()]
    (root / "data.yaml").write_text("\n".join(lines) + "\n")


def read(root, split):
    """The seeds of a split's images."""
    found = load(root, split, divide=True)
    return sorted(int("".join(filter(str.isdigit, found.path(i).stem))) for i in range(len(found)))


def dangle(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to("/nonexistent/store/x")


# -- Named, and not to be read -------------------------------------------------------------------


def no_link(path, make):
    return lambda root: (make(root), dangle(root / path))


def no_annotations(root):
    coco_train(root)
    write_images(root / "images/val", VAL)


def other_word(word):
    def make(root):
        coco_train(root)
        coco_train(root, f"annotations/instances_{word}.json", f"images/{word}", VAL)

    return make


def no_labels(root):
    yolo(root)
    shutil.rmtree(root / "labels/val")


def no_labels_and_no_yaml(root):
    no_labels(root)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("\n".join(NAMES))


def train_in(name):
    def make(root):
        roboflow(root)
        dangle(root / name)

    return make


REFUSED = {
    "a broken link for the JSON": (no_link("annotations/instances_val.json", coco_both), "instances_val.json: a broken link"),
    "a broken link for Roboflow's JSON": (no_link("valid/_annotations.coco.json", roboflow), "valid/_annotations.coco.json: a broken link"),
    "a broken link for the folder": (no_link("valid", roboflow), "valid: a val split by its name, but a broken link"),
    "a broken link in Pascal VOC": (no_link("ImageSets/Main/val.txt", voc), "Main/val.txt: a broken link; restore it, or remove"),
    "a broken link in YOLO": (no_link("images/val", yolo), "data.yaml: val: images/val is not there"),
    "images without annotations": (no_annotations, "images/val: a val split by its name, but images without annotations"),
    "a JSON of another word": (other_word("minival"), "instances_minival.json: a val split by its name.*call it instances_val.json"),
    "a JSON of two words": (other_word("val_small"), "instances_val_small.json: a val split by its name"),
    "a list of another word": (lambda root: lists(root, train=TRAIN, minival=VAL), "minival.txt: a val split .*call it val.txt"),
    "images without labels": (no_labels, "data.yaml: val: no label file for .*images/val"),
    "images without labels nor YAML": (no_labels_and_no_yaml, "images/val: a val split by its name, but images without"),
    "a folder that is not there": (lambda root: yaml(root, train="images/train", val="images/valid_B"), "data.yaml: val: images/valid_B is not there"),
    "no path": (lambda root: yaml(root, train="images/train", val=7), "data.yaml: val: .7., expected the path of a folder"),
    "a list beside an undivided JSON": (lambda root: (cvat_task(root), (root / "val.txt").write_text("1.png")), "val.txt: a val split by its name, but a list that is not read"),
    "a list beside Pascal VOC": (lambda root: (lists(root), (root / "val.txt").write_text("1")), "val.txt: a val split by its name, but a list"),
    "train and val in one list": (lambda root: lists(root, train=TRAIN, trainval=ALL), "trainval.txt: holds train and val, and only .*train.txt"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_no_part_of_train_takes_the_place_of_a_val_that_is_there_by_its_name(tmp_path, make, message):
    make(tmp_path / "data")
    assert "val" in splits(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data", "val", divide=True)
    with pytest.raises(ValueError, match=message):
        train(recipes.tiny(recipes.folder()), tmp_path / "data", tmp_path / "run")


REFUSED_TRAIN = {
    "a folder that is not there": (lambda root: yaml(root, train="images/trainX", val="images/val"), "train: images/trainX is not there"),
    "one of two folders": (lambda root: yaml(root, train="[images/train, images/b]", val="images/val"), "train: images/b is not there"),
    "a broken link": (no_link("annotations/instances_train.json", coco_both), "instances_train.json: a broken link"),
    "val and trainval": (lambda root: lists(root, val=VAL, trainval=ALL), "trainval.txt: holds train and val, and only .*val.txt"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED_TRAIN.values(), ids=REFUSED_TRAIN)
def test_no_other_folder_and_no_part_takes_the_place_of_train(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "train", divide=True)


def test_images_called_test_without_annotations_are_no_split(tmp_path):
    coco_train(tmp_path)
    write_images(tmp_path / "images/test", VAL)
    assert len(read(tmp_path, "train")) == 5 and len(read(tmp_path, "val")) == 1


def test_a_part_of_train_is_said_to_be_one_for_lack_of_val(tmp_path, caplog):
    caplog.set_level("INFO")
    coco_train(tmp_path)
    load(tmp_path, "val", divide=True)
    assert "instances_train.json: no val split; val is a fixed part of 1 of 6 images" in caplog.text


def test_a_json_that_is_not_used_is_said(tmp_path, caplog):
    coco_both(tmp_path)
    coco(tmp_path / "annotations/instances_old.json", TRAIN)
    assert read(tmp_path, "train") == list(TRAIN) and "train: not used: " in caplog.text
    assert "instances_old.json" in caplog.text


# -- Two for one ---------------------------------------------------------------------------------


def both_layouts(root):
    coco_both(root)
    coco(root / "train/_annotations.coco.json", TRAIN)


def two_inside(root):
    roboflow(root)
    coco(root / "train/annotations.json", TRAIN)


def two_years(root):
    coco_train(root, "annotations/instances_train2014.json", "train2014")
    coco_train(root, "annotations/instances_train2012.json", "train2012")
    coco_train(root, "annotations/instances_val.json", "val", VAL)


def two_formats(first, second):
    return lambda root: (first(root), second(root))


TWO = {
    "instances_train.json and train.json": (lambda root: (coco_both(root), coco(root / "annotations/train.json", TRAIN)), "instances_train.json and .*annotations/train.json are both a train split"),
    "a JSON beside annotations": (lambda root: (coco_both(root), coco(root / "train.json", TRAIN)), "instances_train.json and .*train.json are both a train"),
    "a JSON in the split's folder": (both_layouts, "instances_train.json and .*train/_annotations.coco.json are both a train"),
    "two JSONs in it": (two_inside, "_annotations.coco.json and .*train/annotations.json are both a train"),
    "two years": (two_years, "instances_train2012.json and .*instances_train2014.json are both a train"),
    "two lists": (lambda root: lists(root, train=TRAIN, Train=VAL, val=VAL), "Train.txt and .*train.txt are both a train"),
    "two words": (lambda root: lists(root, train=TRAIN, val=VAL, valid=[5]), "val.txt and .*valid.txt are both a val"),
    "lists of two years": (lambda root: lists(root, train2007=TRAIN, train2012=VAL, val=VAL), "both a train"),
    "two entries of a YAML": (lambda root: yaml(root, train="images/train", val="images/val", valid="images/train"), "data.yaml: val and .*data.yaml: valid are both a val"),
    "YOLO and Pascal VOC": (two_formats(yolo, voc), "annotations of YOLO .*data.yaml. and Pascal VOC .*; keep those of one"),
    "COCO and YOLO": (two_formats(coco_both, yolo), "annotations of COCO .*json. and YOLO .*data.yaml.; keep"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), TWO.values(), ids=TWO)
def test_of_two_for_one_split_none_is_read(tmp_path, make, message):
    make(tmp_path)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=message):
            find(tmp_path, split)


def test_the_years_of_train_and_val_are_the_same(tmp_path, caplog):
    for year, seeds in (("2014", TRAIN), ("2017", range(3))):
        coco_train(tmp_path, f"annotations/instances_train{year}.json", f"train{year}", seeds)
    coco_train(tmp_path, "annotations/instances_val2014.json", "val2014", VAL)
    assert read(tmp_path, "train") == list(TRAIN) and read(tmp_path, "val") == list(VAL)
    assert "not used: " in caplog.text and "instances_train2017.json" in caplog.text
    coco_train(tmp_path, "annotations/instances_val2017.json", "val2017", [7])
    assert read(tmp_path, "train") == [0, 1, 2] and read(tmp_path, "val") == [7]


# -- Read now ------------------------------------------------------------------------------------


def test_trainval_is_train_where_there_is_none(tmp_path, caplog):
    lists(tmp_path / "a", trainval=range(5), test=VAL)
    assert splits(tmp_path / "a") == ("train", "test") and read(tmp_path / "a", "train") == [0, 1, 2, 3, 4]
    assert "trainval.txt is read as train" in caplog.text
    lists(tmp_path / "b", trainval=range(5))
    assert splits(tmp_path / "b") == ("train", "val")
    assert sorted(read(tmp_path / "b", "train") + read(tmp_path / "b", "val")) == [0, 1, 2, 3, 4]
    lists(tmp_path / "c", train=range(3), val=[3], trainval=range(4), train_val=[7], train_trainval=[6])
    assert read(tmp_path / "c", "train") == [0, 1, 2] and read(tmp_path / "c", "val") == [3]
    coco_train(tmp_path / "d", "annotations/instances_trainval.json", "images/trainval")
    coco_train(tmp_path / "d", "annotations/instances_test.json", "images/test", VAL)
    assert read(tmp_path / "d", "train") == list(TRAIN)


@pytest.mark.parametrize("rest", ["person_keypoints_{}2017", "lvis_v1_{}", "{}_boxes"])
def test_files_whose_names_differ_in_the_split_alone_are_its_splits(tmp_path, rest):
    for split, seeds in (("train", TRAIN), ("val", VAL)):
        name = rest.format(split)
        coco_train(tmp_path, f"annotations/{name}.json", f"{split}2017" if "2017" in name else f"images/{split}", seeds)
    assert read(tmp_path, "train") == list(TRAIN) and read(tmp_path, "val") == list(VAL)


def test_points_of_the_same_images_are_no_split_beside_instances(tmp_path):
    coco_both(tmp_path)
    for split in ("train", "val"):
        coco(tmp_path / f"annotations/person_keypoints_{split}.json", [7])
    assert read(tmp_path, "train") == list(TRAIN)


def test_cvats_yolo_with_subsets_is_read_by_its_lists_and_else_by_its_folders(tmp_path):
    for name, seeds in (("train", TRAIN), ("Validation", VAL)):
        write_images(tmp_path / f"obj_{name}_data", seeds)
        yolo_labels(tmp_path / f"obj_{name}_data", seeds)
        lines = "".join(f"data/obj_{name}_data/{seed}.png\n" for seed in seeds)
        (tmp_path / f"{name}.txt").write_text(lines)
    (tmp_path / "obj.names").write_text("\n".join(NAMES))
    (tmp_path / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/Validation.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    assert read(tmp_path, "train") == list(TRAIN) and read(tmp_path, "val") == list(VAL)
    (tmp_path / "obj.data").unlink()
    assert read(tmp_path, "train") == list(TRAIN) and read(tmp_path, "val") == list(VAL)


@pytest.mark.parametrize("prefix", ["./", "data/", "/content/some/set/", "C:\\sets\\mine\\"])
def test_lists_of_another_machine_are_resolved(tmp_path, prefix):
    yaml(tmp_path, path=".", Train="Train.txt", Validation="Validation.txt")
    for word, split, seeds in (("Train", "train", TRAIN), ("Validation", "val", VAL)):
        lines = [f"{prefix}images/{split}/{seed}.png" for seed in seeds]
        (tmp_path / f"{word}.txt").write_text("\n".join(lines) + "\n")
    assert read(tmp_path, "train") == list(TRAIN) and read(tmp_path, "val") == list(VAL)
    (tmp_path / "Train.txt").write_text("\n".join([*lines, f"{prefix}images/val/99.png"]))
    with pytest.raises(ValueError, match=r"(?s)99.png \(Train.txt line 3\): no such file"):
        load(tmp_path, "train")


def test_lists_are_read_where_no_yaml_names_them(tmp_path):
    yolo_undivided(tmp_path)
    for name, seeds in (("train", TRAIN), ("val", VAL)):
        (tmp_path / f"{name}.txt").write_text("".join(f"images/{seed}.png\n" for seed in seeds))
    assert read(tmp_path, "train") == list(TRAIN) and read(tmp_path, "val") == list(VAL)


def test_an_image_called_train_is_none(tmp_path):
    flat_yolo(tmp_path)
    for ending in ("png", "txt"):
        (tmp_path / f"3.{ending}").rename(tmp_path / f"train.{ending}")
    assert len(load(tmp_path, "train")) == 7 and splits(tmp_path) == ("train", "val")


@pytest.mark.parametrize("place", ["ImageSets/Main", "ImageSets"])
def test_lists_of_pascal_voc_that_are_not_used_are_said(tmp_path, place, caplog):
    lists(tmp_path)
    for name, seeds in (("train", TRAIN), ("val", VAL), ("fold_1", [3]), ("best", [3])):
        (tmp_path / place / f"{name}.txt").write_text("".join(f"{seed}\n" for seed in seeds))
    assert read(tmp_path, "train") == list(TRAIN) and "not used: " in caplog.text
    assert "best.txt" in caplog.text


def flat_voc(root):
    write_images(root, ALL)
    voc_files(root, ALL)


def lower_voc(root):
    write_images(root / "images", ALL)
    voc_files(root / "annotations", ALL)


def beside_voc(root):
    write_images(root / "images", ALL)
    voc_files(root / "images", ALL)


def flat_yolo(root):
    write_images(root, ALL)
    yolo_labels(root, ALL)
    (root / "classes.txt").write_text("\n".join(NAMES))


def capital_yolo(root):
    write_images(root / "Images", ALL)
    yolo_labels(root / "Labels", ALL)
    (root / "classes.txt").write_text("\n".join(NAMES))


@pytest.mark.parametrize("make", [flat_voc, lower_voc, beside_voc, flat_yolo, capital_yolo], ids=lambda f: f.__name__)
def test_labels_beside_images_and_folders_in_any_case_are_read(tmp_path, make, caplog):
    make(tmp_path)
    assert sorted(read(tmp_path, "train") + read(tmp_path, "val")) == list(ALL)
    assert load(tmp_path, "train").classes == NAMES and len(load(tmp_path, "train").table) == 14
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_supercategory_of_the_same_name_is_left_out(tmp_path):
    classes = [{"id": 0, "name": "plate", "supercategory": "none"}]
    classes += [{"id": 1, "name": "plate", "supercategory": "plate"}]
    for name, seeds in (("train", TRAIN), ("valid", VAL)):
        write_images(tmp_path / name, seeds)
        coco(tmp_path / name / "_annotations.coco.json", seeds, categories=classes, category_id=lambda one: 1)
    c = load(tmp_path, "train")
    assert c.classes == ("plate",) and c.category_ids == (1,) and c.table.labels.tolist() == [0] * 12
    classes[0]["supercategory"] = classes[1]["supercategory"] = "none"
    coco(tmp_path / "train/_annotations.coco.json", TRAIN, categories=classes, category_id=lambda one: 1)
    with pytest.raises(ValueError, match="2 categories have the name 'plate'"):
        load(tmp_path, "train")


def test_the_folder_inside_of_a_folder_is_named(tmp_path):
    coco_both(tmp_path / "set")
    with pytest.raises(ValueError, match="no train split; looked for COCO: .*the folder .*/set has one: give that"):
        load(tmp_path, "train")


# -- Names and labels of YOLO --------------------------------------------------------------------


CONTRADICT = {
    "more classes than names": (lambda root: (root / "data.yaml").write_text("nc: 3\nnames: [square, triangle]"), "nc is 3, but names has 2"),
    "fewer classes than names": (lambda root: (root / "data.yaml").write_text("nc: 1\nnames: [square, triangle]"), "nc is 1, but names has 2"),
    "a list of other names": (lambda root: (root / "classes.txt").write_text("triangle\nsquare"), "data.yaml and .*classes.txt have other names for class 0, 'square' and 'triangle'"),
    "a list of other names beside the labels": (lambda root: (root / "labels/train/classes.txt").write_text("square\ncircle"), "classes.txt have other names for class 1"),
    "a YAML that is a broken link": (lambda root: ((root / "classes.txt").write_text("triangle\nsquare"), dangle(root / "data.yaml")), "data.yaml: a broken link"),
    "yes and no": (lambda root: (root / "data.yaml").write_text("names: [yes, no]"), "class 0 is true, expected text; put it in quotes: YAML reads yes, no"),
    "numbers": (lambda root: (root / "data.yaml").write_text("names: [1.5, 2.0]"), "class 0 is 1.5, expected text; put it in quotes"),
    "objects": (lambda root: (root / "data.yaml").write_text("names: [{0: square}, {1: triangle}]"), "class 0 is .*write names: .cat, dog.,"),
    "a file": (lambda root: (root / "data.yaml").write_text("names: coco.names"), "names is 'coco.names', expected a list of classes; write"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONTRADICT.values(), ids=CONTRADICT)
def test_names_of_classes_that_contradict_each_other_or_are_none_are_refused(tmp_path, change, message):
    yolo(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "train")


@pytest.mark.parametrize("said", ["nc: 2", "nc: '2'", "nc: 3\nnames: {0: square, 2: triangle}"])
def test_a_number_of_classes_that_agrees_is_read(tmp_path, said):
    yolo(tmp_path)
    names = "" if "names" in said else f"names: {list(NAMES)}\n"
    (tmp_path / "data.yaml").write_text(f"{names}{said}\n")
    for file in (tmp_path / "labels/train").iterdir():
        file.write_text("0 0.5 0.5 0.25 0.25\n")
    assert load(tmp_path, "train").classes == NAMES


def test_a_list_of_the_same_names_and_more_is_none_that_contradicts(tmp_path, caplog):
    yolo(tmp_path)
    (tmp_path / "labels/train/classes.txt").write_text("\n".join([*NAMES, "circle"]))
    assert load(tmp_path, "train").classes == NAMES and "label files" not in caplog.text


def test_another_yaml_that_is_not_used_is_said(tmp_path, caplog):
    yolo(tmp_path)
    (tmp_path / "dataset.yaml").write_text("train: images/val\nval: images/train\nnames: [triangle, square]\n")
    assert load(tmp_path, "train").classes == NAMES and "not used: " in caplog.text and "dataset.yaml" in caplog.text


def test_label_files_are_read_with_an_ending_in_any_case(tmp_path):
    yolo(tmp_path)
    for seed in range(3):
        (tmp_path / f"labels/train/{seed}.txt").rename(tmp_path / f"labels/train/{seed}.TXT")
    assert len(load(tmp_path, "train").table) == 12


def test_a_label_file_that_is_a_broken_link_is_no_background(tmp_path):
    yolo(tmp_path)
    dangle(tmp_path / "labels/train/3.txt")
    with pytest.raises(ValueError, match="(?s)image images/train/3.png: .*labels/train/3.txt: cannot be read"):
        load(tmp_path, "train")
    assert len(load(tmp_path, "train", drop_broken=True)) == 5


def test_images_without_a_label_file_are_counted(tmp_path, caplog):
    yolo(tmp_path)
    (tmp_path / "labels/train/3.txt").unlink()
    assert load(tmp_path, "train").blank.sum() == 1
    assert "train: 1 of 6 images have no label file" in caplog.text


def list_without_labels(root):
    yaml(root, train="images/train", val="val.txt")
    write_images(root / "more", VAL)
    (root / "val.txt").write_text("".join(f"more/{seed}.png\n" for seed in VAL))


def labels_of_other_names(root):
    yolo(root)
    for seed in VAL:
        (root / f"labels/val/{seed}.txt").rename(root / f"labels/val/{seed}.png.txt")


def xml_of_other_names(root):
    voc(root)
    shutil.rmtree(root / "ImageSets")
    (root / "Annotations/xmls").mkdir()
    for file in (root / "Annotations").glob("*.xml"):
        file.rename(root / "Annotations/xmls" / file.name)


NONE = {
    "a list": (list_without_labels, "none of 2 images has a label file; of more/6.png it would be more/6.txt"),
    "other names": (labels_of_other_names, "none of 2 images has a label file; of images/val/6.png it .* labels/val/6.txt"),
    "Pascal VOC": (xml_of_other_names, "Annotations: no images; add some; 8 without an XML file"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), NONE.values(), ids=NONE)
def test_a_split_of_which_no_image_is_labelled_is_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "val", divide=True)


def test_data_are_read_from_inside_their_folder(tmp_path, monkeypatch):
    yaml(tmp_path, train="[images/train, images/val]", val="val.txt")
    (tmp_path / "val.txt").write_text("images/val/6.png\nimages/val/7.png\n")
    monkeypatch.chdir(tmp_path / "images")
    found = load("..", "train"), load("..", "val")
    monkeypatch.chdir("/")
    assert [found[0].image(i).size for i in range(8)] == [(80, 64)] * 8 and len(check_overlap(*found)) == 2


def test_images_that_are_broken_links_are_counted(tmp_path, caplog):
    yolo(tmp_path / "yolo")
    dangle(tmp_path / "yolo/images/train/3.png")
    voc_of_roboflow(tmp_path / "voc")
    dangle(tmp_path / "voc/train/3.png")
    assert [len(load(tmp_path / name, "train")) for name in ("yolo", "voc")] == [5, 5]
    assert caplog.text.count("train: used 5 of 6 images; left out: 1 broken links") == 2


def test_two_images_do_not_share_a_label_file(tmp_path):
    yolo(tmp_path / "yolo")
    shutil.copy(tmp_path / "yolo/images/train/3.png", tmp_path / "yolo/images/train/3.jpg")
    with pytest.raises(
        ValueError, match="image images/train/3.png: labels/train/3.txt is the label file of 3.jpg, too"
    ):
        load(tmp_path / "yolo", "train")
    voc(tmp_path / "voc")
    shutil.copy(tmp_path / "voc/JPEGImages/3.png", tmp_path / "voc/JPEGImages/3.jpg")
    with pytest.raises(ValueError, match="image 3: 3.jpg and 3.png would have one XML file"):
        load(tmp_path / "voc", "train")


@pytest.mark.parametrize("make", [yolo_undivided, voc], ids=lambda make: make.__name__)
def test_linked_folders_are_followed_for_images_and_labels_alike(tmp_path, make):
    make(tmp_path / "store")
    images, labels = ("images", "labels") if make is yolo_undivided else ("JPEGImages", "Annotations")
    for name in (images, labels):
        (tmp_path / "set" / name).mkdir(parents=True)
        os.symlink(tmp_path / "store" / name, tmp_path / "set" / name / "more")
        os.symlink(tmp_path / "set", tmp_path / "set" / name / "loop")
    (tmp_path / "set/classes.txt").write_text("\n".join(NAMES))
    assert len(load(tmp_path / "set", "train").table) == 14
    assert sorted(read(tmp_path / "set", "train") + read(tmp_path / "set", "val")) == list(ALL)


# -- Lists and XML files of Pascal VOC -----------------------------------------------------------


def test_names_of_a_list_have_spaces_quotes_endings_and_columns(tmp_path):
    lists(tmp_path, train=["my photo 0", "  my photo 1.png", '"my photo 2"', "'a.b'"], val=["5  1", "6 -1", "7  0"])
    for seed, name in ((0, "my photo 0"), (1, "my photo 1"), (2, "my photo 2"), (3, "a.b")):
        (tmp_path / f"JPEGImages/{seed}.png").rename(tmp_path / f"JPEGImages/{name}.png")
        (tmp_path / f"Annotations/{seed}.xml").rename(tmp_path / f"Annotations/{name}.xml")
    train_split = load(tmp_path, "train")
    assert [train_split.path(i).stem for i in range(4)] == ["my photo 0", "my photo 1", "my photo 2", "a.b"]
    assert read(tmp_path, "val") == [5, 6, 7]


@pytest.mark.parametrize("name", ["3.99", "3.v2", "3 1"])
def test_a_name_of_a_list_is_not_cut_to_that_of_another_image(tmp_path, name):
    lists(tmp_path, train=[0, 1, name], val=VAL)
    with pytest.raises(ValueError, match=rf"image {name} \(train.txt line 3\): no file of that name"):
        load(tmp_path, "train")


def test_an_image_of_a_list_without_an_xml_file_is_no_background(tmp_path):
    voc(tmp_path)
    (tmp_path / "Annotations/3.xml").unlink()
    with pytest.raises(ValueError, match=r"image 3 \(train.txt line 4\): no 3.xml in .*Annotations; add it"):
        load(tmp_path, "train")


def test_images_without_an_xml_file_are_left_out_and_counted(tmp_path, caplog):
    voc_of_roboflow(tmp_path)
    (tmp_path / "train/3.xml").unlink()
    assert read(tmp_path, "train") == [0, 1, 2, 4, 5]
    assert "train: used 5 of 6 images; left out: 1 without an XML file" in caplog.text


def test_cvats_list_of_a_set_without_splits_is_what_is_divided(tmp_path):
    lists(tmp_path, default=range(5))
    assert sorted(read(tmp_path, "train") + read(tmp_path, "val")) == [0, 1, 2, 3, 4]


def test_what_is_difficult_is_not_learned_though_all_of_it_is(tmp_path, caplog):
    voc(tmp_path)
    for file in (tmp_path / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    assert load(tmp_path, "train").table.crowd.all() and "brush" not in caplog.text


def test_a_wrong_difficult_is_named(tmp_path):
    voc(tmp_path)
    file = tmp_path / "Annotations/3.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>Unspecified", 1))
    with pytest.raises(ValueError, match="3.xml object 1: difficult is 'Unspecified', expected 0 or 1"):
        load(tmp_path, "train")


def test_two_sets_of_pascal_voc_are_both_named(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        voc(tmp_path / "VOCdevkit" / year)
    with pytest.raises(ValueError, match="VOC2007 and .*VOC2012 are each a Pascal VOC set; give the folder of one"):
        load(tmp_path, "train")
    assert read(tmp_path / "VOCdevkit/VOC2007", "train") == list(TRAIN)


# -- Undivided -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["file_name", "width", "height"])
def test_what_all_images_lack_is_said_before_that_none_can_be_held_out(tmp_path, lacking):
    cvat_task(tmp_path)
    file = tmp_path / "annotations/instances_default.json"
    content = json.loads(file.read_text())
    for one in content["images"]:
        del one[lacking]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"(?s)instances_default.json:.*image 1: entry without {lacking}"):
        load(tmp_path, "train")
