"""Our own few numbers, for places without the authors' (tests/golden/make_own.py writes them)."""

import json

import pytest

from tests.golden.make_own import OWN, RUNS, filled, label, measure

NUMBERS = json.loads(OWN.read_text())


@pytest.mark.parametrize("name", RUNS)
def test_network_gives_the_numbers_it_gave(name):
    network = filled(name)
    assert {label(size) for size in RUNS[name]} == NUMBERS[name].keys()
    for size in RUNS[name]:
        expected, found = NUMBERS[name][label(size)], measure(network, size)
        assert found["order_crc32"] == expected["order_crc32"]
        scale = max(map(abs, expected["logits"]))
        # float64 sums in another order, as in the conformance to the authors' network
        for key in ("logits", "logits_mean_std"):
            assert found[key] == pytest.approx(expected[key], rel=0, abs=1e-9 * scale)
        for a, b in zip(found["stages_mean_std"], expected["stages_mean_std"], strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-9 * b[1])
        assert found["input_gradient_norm"] == pytest.approx(expected["input_gradient_norm"], rel=1e-9)
