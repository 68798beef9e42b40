"""What paired differences can tell: Student's t, and nothing from too few seeds."""

import pytest
import torch

from secvit.compare.paired import difference, quantile

CLOSE = "too close to tell apart"


@pytest.mark.parametrize(
    "freedom, confidence, expected",
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.99, 3.250), (120, 0.95, 1.980)],
)
def test_quantiles_are_those_of_printed_tables(freedom, confidence, expected):
    assert quantile(confidence, freedom) == pytest.approx(expected, abs=5e-4)  # half of the last printed digit


def test_a_difference_beyond_its_interval_is_called_and_its_sign_means_what_the_figure_means():
    differences = [0.02, 0.03, 0.025]
    found = difference(differences, higher=True)
    half = 4.302653 * 0.005 / 3**0.5
    assert (found.low, found.high) == pytest.approx((0.025 - half, 0.025 + half), abs=1e-8)
    assert found.verdict == "better" and difference(differences, higher=False).verdict == "worse"
    assert difference([-d for d in differences], higher=True).verdict == "worse"


def test_a_difference_within_its_interval_is_too_close():
    assert difference([0.02, -0.01, 0.015], higher=True).verdict == CLOSE
    assert difference([0.0, 0.0, 0.0], higher=True).verdict == CLOSE


@pytest.mark.parametrize("differences", [[0.5], [0.5, 0.51], [0.1, 0.1, 0.1]])
def test_no_claim_is_made_where_the_spread_is_not_known(differences):
    found = difference(differences, higher=True)
    assert found.verdict.startswith("no claim") and found.low is None and found.high is None
    assert found.mean == pytest.approx(sum(differences) / len(differences))


def test_several_comparisons_together_are_wrong_as_rarely_as_one():
    """Where nothing differs: 2,000 comparisons of three variants with four seeds, each of them one of chance."""
    scores = torch.randn(2000, 3, 4, dtype=torch.float64).tolist()
    wrong = 0
    for first, *others in scores:
        pairs = [[b - a for a, b in zip(first, other)] for other in others]
        wrong += any(difference(pair, True, len(others)).verdict != CLOSE for pair in pairs)
    assert wrong / 2000 <= 0.05 + 2 * (0.05 * 0.95 / 2000) ** 0.5  # two standard errors
