"""What becomes of broken files in training and evaluation."""

import logging

import pytest

from secvit.classification.augment import Augment
from secvit.classification.data import EvalView, TrainView
from secvit.images import load_split
from tests.images.make import folder

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def test_broken_training_images_are_counted_named_once_and_replaced(tmp_path, caplog):
    root = folder(tmp_path, count=60)
    images = load_split(root)
    broken = images.names[5]
    with open(broken, "wb") as file:
        file.write(b"no image")
    view = TrainView(images, Augment(crop="resized"), 8, MEAN, STD)
    with caplog.at_level(logging.WARNING):
        for draw in range(3):
            batch = view.__getitems__([draw * len(images) + i for i in range(4, 8)])
    assert batch["image"].shape == (4, 3, 8, 8) and batch["image"].isfinite().all()
    assert batch["target"].tolist() == images.labels[[4, 6, 6, 7]].tolist()
    assert view.skipped == [broken] and caplog.text.count("skipped:") == 1


def test_too_many_broken_images_are_fatal(tmp_path):
    images = load_split(folder(tmp_path, count=20))
    for name in images.names[:3]:
        open(name, "wb").close()
    view = TrainView(images, Augment(crop="resized"), 8, MEAN, STD)
    with pytest.raises(ValueError, match="too many to go on"):
        view.__getitems__([0, 1, 2, 3])


def test_broken_images_drop_out_of_an_evaluation(tmp_path):
    images = load_split(folder(tmp_path, count=20))
    open(images.names[1], "wb").close()
    view = EvalView(images, 8, MEAN, STD)
    assert view.__getitems__([0, 1, 2])["image"].shape == (2, 3, 8, 8)
    assert view.skipped == [images.names[1]]
