"""Shapes of the learning rate."""

import pytest

from secvit.train import Schedule, learning_rate


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_is_the_fields_formula(power):
    """mmsegmentation's poly policy: (peak - min) * (1 - step / total) ** power + min."""
    schedule = Schedule("poly", power=power, min_lr=1e-6)
    rates = [learning_rate(step, 80, 1e-4, schedule) for step in range(80)]
    assert rates == pytest.approx([(1e-4 - 1e-6) * (1 - step / 80) ** power + 1e-6 for step in range(80)])


def test_poly_of_power_one_is_linear():
    poly, linear = (Schedule(kind, warmup_steps=5) for kind in ("poly", "linear"))
    assert [learning_rate(s, 40, 1.0, poly) for s in range(40)] == [
        learning_rate(s, 40, 1.0, linear) for s in range(40)
    ]


def test_a_power_of_zero_is_refused():
    with pytest.raises(ValueError, match="power=0; give a number above 0"):
        Schedule("poly", power=0)


def test_step_falls_to_a_tenth_at_each_part_of_the_run():
    schedule = Schedule("step", warmup_steps=2, decay_at=(8 / 12, 11 / 12))
    rates = [learning_rate(step, 24, 1.0, schedule) for step in range(2, 24)]
    assert rates == pytest.approx([1.0] * 14 + [0.1] * 6 + [0.01] * 2)


@pytest.mark.parametrize(("kind", "decay_at"), [("step", ()), ("cosine", (0.5,)), ("step", (1.5,))])
def test_parts_of_the_run_belong_to_step_alone(kind, decay_at):
    with pytest.raises(ValueError, match="step wants parts of the run"):
        Schedule(kind, decay_at=decay_at)
