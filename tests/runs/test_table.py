"""The table that `secvit evaluate` prints."""

from secvit.progress import table


def test_no_figure_of_a_table_says_minus_one():
    scores = {
        "data": "x",
        "box_AP": 0.5,
        "box_AP_small": -1.0,
        "per_class": {"cat": None, "dog": -1.0},
        "confusion": [1],
    }
    lines = [line.split(maxsplit=1) for line in table(scores).splitlines()]
    none = "does not occur"
    assert lines == [
        ["data", "x"],
        ["box_AP", "0.5000"],
        ["box_AP_small", none],
        ["per_class:"],
        ["cat", none],
        ["dog", none],
    ]
