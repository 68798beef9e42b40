"""Scores of labels: those of scikit-learn, and what becomes of classes that do not occur."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from secvit.segmentation.scoring import confusion, scores

CASES = {
    "random": (5, 5, 0.1),
    "classes that are neither there nor predicted": (8, 4, 0.1),
    "two classes": (2, 2, 0.0),
    "most ignored": (4, 4, 0.95),
}


@pytest.mark.parametrize(("classes", "used", "ignored"), CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:.*y_pred contains classes not in y_true.*")
def test_scores_are_scikit_learns(classes, used, ignored):
    random = np.random.default_rng(classes)
    target, labels = (random.integers(0, used, (40, 50)).astype(np.uint8) for _ in range(2))
    target[random.random(target.shape) < ignored] = 255
    kept = target != 255
    matrix = confusion(target, labels, classes)
    assert np.array_equal(matrix, confusion_matrix(target[kept], labels[kept], labels=range(classes)))
    found = scores(matrix)
    occurring = sorted({*target[kept].tolist(), *labels[kept].tolist()})
    expected = jaccard_score(target[kept], labels[kept], labels=occurring, average=None)
    assert found["miou"] == pytest.approx(expected.mean(), abs=1e-12)
    assert [found["per_class"][i] for i in occurring] == pytest.approx(expected, abs=1e-12)
    assert all(math.isnan(found["per_class"][i]) for i in range(classes) if i not in occurring)
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(target[kept], labels[kept]), abs=1e-12)
    assert found["mean_accuracy"] == pytest.approx(balanced_accuracy_score(target[kept], labels[kept]), abs=1e-12)


def test_a_class_that_is_only_predicted_counts_as_zero_in_the_iou_and_not_in_the_accuracy():
    found = scores(confusion(np.array([[0, 0, 1]], np.uint8), np.array([[0, 2, 1]], np.uint8), 4))
    assert found["per_class"][:3] == [0.5, 1.0, 0.0] and found["miou"] == 0.5
    assert found["mean_accuracy"] == 0.75


def test_where_all_is_ignored_there_is_no_score():
    found = scores(confusion(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), 3))
    assert all(math.isnan(found[name]) for name in ("miou", "pixel_accuracy", "mean_accuracy"))


def test_the_matrix_of_two_parts_is_that_of_the_whole():
    target, labels = (torch.randint(0, 6, (30, 20)).byte().numpy() for _ in range(2))
    parts = confusion(target[:11], labels[:11], 6) + confusion(target[11:], labels[11:], 6)
    assert torch.equal(parts, confusion(target, labels, 6))
