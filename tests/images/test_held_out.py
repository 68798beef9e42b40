"""What is held out of an undivided set is fixed by names alone."""

import numpy as np
import pytest

from secvit.splits import held_out


@pytest.mark.parametrize(("total", "count"), [(1, 0), (2, 1), (3, 1), (10, 2), (100, 15)])
def test_a_part_is_held_out_and_never_all(total, count):
    names = [f"{i}.jpg" for i in range(total)]
    found = held_out(names)
    assert len(found) == count and list(found) == sorted(set(found))
    backwards = held_out(names[::-1])
    assert {names[i] for i in found} == {names[::-1][i] for i in backwards}


def test_each_class_gives_its_part():
    labels = np.repeat([0, 1, 2], [20, 1, 40])
    found = held_out((f"{i}" for i in range(61)), labels)
    assert np.bincount(labels[found], minlength=3).tolist() == [3, 0, 6]


def test_the_part_is_that_of_earlier_versions():
    # a set that was divided once is divided so for good: the lowest SHA-1 of 0.jpg to 9.jpg
    assert held_out(f"{i}.jpg" for i in range(10)).tolist() == [2, 5]
