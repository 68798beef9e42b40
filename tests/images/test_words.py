"""One table of words for splits, one order of classes, one comparison by name."""

from __future__ import annotations

import pytest

from secvit.images.words import class_names, match_classes, split_inside, split_of


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
