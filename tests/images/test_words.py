"""One table of words for splits, one order of classes, one comparison by name."""

from __future__ import annotations

import pytest

from secvit.detection.data import load
from secvit.images.classes import check_names, class_names, match_classes
from secvit.splits import check_like, is_joint, joint_is_train, split_inside, split_of
from tests.detection.make import coco_folder, edit


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("Train", "train"), ("TRAINING", "train"), ("train2017", "train"), ("train_2014", "train"),
        ("Valid", "val"), ("validation", "val"), ("dev", "val"), ("Testing", "test"), ("cat", None), ("trainer", None),
    ],
)  # fmt: skip
def test_a_split_has_one_meaning_in_any_case(word, split):
    assert split_of(word) == split


def test_classes_that_are_numbers_are_in_order_of_their_values():
    assert class_names(["10", "2", "1"]) == ("1", "2", "10")
    assert class_names(["b10", "b2", "10"]) == ("10", "b10", "b2")


def test_classes_are_matched_by_name_whatever_their_order():
    assert match_classes(["cat", "dog", "eel"], ["eel", "cat"], "the run", "the data") == [2, 0]


@pytest.mark.parametrize(
    ("known", "given", "whole", "message"),
    [
        (["cat", "dog"], ["dog", "eel"], False, "only in the data: 'eel'; only in the run: 'cat'"),
        (["cat", "dog"], ["dog"], True, "only in the run: 'cat'"),
        (["cat", "cat"], ["cat"], False, "the run: class 'cat' occurs twice"),
        (["cat"], ["dog", "dog"], False, "the data: class 'dog' occurs twice"),
    ],
)
def test_other_classes_are_refused_with_their_names(known, given, whole, message):
    with pytest.raises(ValueError, match=message):
        match_classes(known, given, "the run", "the data", all_of_them=whole)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("seg_train", ("train", "seg")), ("val-images", ("val", "images")), ("training_set", ("train", "set")),
        ("TestImages", ("test", "images")), ("trainset", ("train", "")), ("train.2017", ("train", "")),
        ("cat", None), ("trainer", None), ("contest", None), ("train_val", None),
    ],
)  # fmt: skip
def test_a_longer_name_speaks_of_one_split_and_of_something_else(name, found):
    assert split_inside(name) == found


@pytest.mark.parametrize(
    "names",
    [("dog", "dog "), ("dog", "dog\u00a0"), ("dog", "do\u200bg"), ("caf\u00e9", "cafe\u0301"), ("a b", "a  b"),
     ("1", "01"), ("0", "0.0"), ("2", "+2")],
)  # fmt: skip
def test_classes_that_look_the_same_are_refused_with_both_names(names):
    with pytest.raises(ValueError, match="DATA: classes under two names each: ") as found:
        check_names(("x", *names), "DATA")
    assert f"{names[0]!a} and {names[1]!a}" in str(found.value)


@pytest.mark.parametrize("names", [("a", "A"), ("True", "TRUE"), ("1.1", "1.10"), ("dog ", "Dog")])
def test_classes_that_may_be_meant_are_told(names, caplog):
    check_names(("x", *names), "DATA")
    assert caplog.messages == [f"DATA: are these one class each? {names[0]!r} and {names[1]!r}; each name is a class "
                               "of its own"]  # fmt: skip


@pytest.mark.parametrize(
    "names", [("cat", "dog"), ("1", "10", "2"), ("9007199254740992", "9007199254740993"), ("1e3", "1000"), ("-1", "1")]
)
def test_different_classes_are_not_told(names, caplog):
    check_names(names, "DATA")
    assert not caplog.messages


def test_a_class_of_missing_labels_is_told(caplog):
    check_names(("cat", "nan"), "DATA")
    assert caplog.messages == ["DATA: class 'nan': if that is a missing label, leave such entries out"]


def test_detection_holds_its_categories_against_each_other(tmp_path, caplog):
    coco_folder(tmp_path)
    edit(tmp_path, "train", lambda content: content["categories"][0].update(name="Square"))
    load(tmp_path, "train")
    assert "are these one class each? 'square' and 'Square'" in caplog.text
    edit(tmp_path, "train", lambda content: content["categories"][0].update(name="square "))
    with pytest.raises(ValueError, match="instances_train.json: classes under two names each: 'square' and 'square '"):
        load(tmp_path, "train")


@pytest.mark.parametrize("word", ["trainval", "TrainVal", "train_val", "trainval2007", "train-valid"])
def test_train_and_val_together_are_train_where_both_are_absent(word):
    assert is_joint(word) and split_of(word) is None
    assert joint_is_train(word, {"test"}, "DATA") and not joint_is_train(word, {"train", "val"}, "DATA")
    for there, other in (("train", "val"), ("val", "train")):
        with pytest.raises(ValueError, match=f"DATA: {word} is .*, and {there} is beside it, but no {other}"):
            joint_is_train(word, {there}, "DATA")


def test_what_may_be_meant_as_a_split_is_not_passed_over():
    for name in ("eval", "validate", "val_images", "minival2014", "my_valid.csv"):
        with pytest.raises(ValueError, match=f"DATA: no val split, but {name}, which may be meant as val; rename"):
            check_like({"train": "train", name: name.removesuffix(".csv")}, {"train"}, "DATA")
        check_like({"train": "train", name: name.removesuffix(".csv")}, {"train", "val"}, "DATA")
    check_like({"train_extra": "train_extra", "photos": "photos", "trainval": "trainval"}, {"train"}, "DATA")
