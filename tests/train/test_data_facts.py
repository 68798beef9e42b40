"""A run goes on with the data it began with, or not at all."""

import pytest

from secvit.train.facts import data_facts, difference
from tests.train.small import Data, loop, run

NAMES = [f"d/train/{'ab'[i % 2]}/{i}.png" for i in range(50)]


@pytest.mark.parametrize(
    ("samples", "classes", "names", "message"),
    [
        (50, ("a", "c"), NAMES, r"other classes \(2, now 2; gone: 'b'; new: 'c'\)"),
        (50, ("b", "a"), NAMES, "the same 2 classes in another order"),
        (50, ("a", "b", "c"), NAMES, r"other classes \(2, now 3; new: 'c'\)"),
        (51, ("a", "b"), [*NAMES, "d/train/a/50.png"], "50 training samples, now 51"),
        (49, ("a", "b"), NAMES[:49], "50 training samples, now 49"),
        (
            50,
            ("a", "b"),
            [*NAMES[:49], "d/train/a/other.png"],
            r"as many training samples \(50\), but with other names",
        ),
        (50, ("a", "b"), [*NAMES[1:], NAMES[0]], "names, labels or order"),
    ],
)
def test_other_data_are_refused_at_a_resume(tmp_path, samples, classes, names, message):
    run(tmp_path, loop(steps=2), classes=("a", "b"), names=NAMES)
    with pytest.raises(ValueError, match=message + r".*give another --output|" + message) as error:
        run(tmp_path, data=Data(samples), classes=classes, names=names)
    assert "Give another --output" in str(error.value)


def test_data_may_move(tmp_path):
    run(tmp_path, loop(steps=2), names=NAMES)
    assert run(tmp_path, loop(steps=3), names=[f"/elsewhere/{name}" for name in NAMES])[1].step == 3


def test_what_one_side_does_not_know_is_not_compared():
    assert difference(data_facts(3), data_facts(3, "ab", "xyz")) == ""
    assert difference(data_facts(3, "ab", "xyz"), data_facts(3, "ab", iter("xyz"))) == ""
