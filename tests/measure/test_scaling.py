import math

import pytest
import torch

from secvit.measure import scaling
from secvit.measure.bench_results import BenchResult, LengthTimes
from secvit.measure.report import report
from tests.measure.test_bench import ONLY_INFERENCE


def test_clustering_is_timed_against_its_rivals():
    found = scaling.bench_operation(196, rounds=1)
    assert found.num_clusters == 2
    rivals = {
        "Lloyd, 10 iterations",
        "balanced k-means",
        "ToMe matching",
        "ToMe matching, each head",
        "window copy",
        "sec (again)",
    }
    assert rivals <= found.times_sec.keys()
    with pytest.raises(ValueError, match="square"):
        scaling.bench_operation(200)


@pytest.mark.slow
def test_attention_is_timed_and_its_memory_measured():
    found = scaling.bench_attention(784, heads=1, rounds=1)
    assert {"windows", "global"} <= found.times_sec.keys()
    assert found.peak_bytes.keys() == {"sec", "windows", "global"}
    assert all(count > 784 * 32 * 4 for count in found.peak_bytes.values())  # an output at least


@pytest.mark.parametrize("length, size", [(784, 7), (1024, 8)])
def test_windows_are_attention_inside_squares(length, size):
    q, k, v = (x[:, :2].double() for x in scaling.tokens(length, 3))
    side = math.isqrt(length)
    row, column = torch.arange(length) // side, torch.arange(length) % side
    square = row // size * side + column // size
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(square[:, None] != square, -math.inf)
    torch.testing.assert_close(scaling.windows(q, k, v), scores.softmax(-1) @ v)


def test_growth_is_the_exponent_of_time():
    lengths = (100, 400, 1600, 6400)
    seconds = {n: {"sec": [3.0 * n] * 2, "global": [n**2.0], "sec (again)": [1]} for n in lengths}
    found = [LengthTimes(n, True, {}, seconds[n]) for n in lengths]
    assert scaling.growth(found) == pytest.approx({"sec": 1.0, "global": 2.0})
    assert scaling.growth(found[:2]) == {}


def test_rivals_that_would_take_minutes_are_left_out_and_said_so(monkeypatch):
    monkeypatch.setattr(scaling, "LONGEST", {"balanced k-means": 100})
    found = [scaling.bench_operation(length, rounds=1) for length in (64, 196)]
    result = BenchResult(EMPTY, 0.0, "", operation=found)
    line = next(line for line in report(result).splitlines() if line.startswith("| 196"))
    assert "not run" in line and "balanced k-means" in report(result)


EMPTY = {
    "recipe": {"rounds": 1, **ONLY_INFERENCE}, "versions": {}, "environment": {}, "hardware": "", "commit": None,
    "date": "",
}  # fmt: skip
