import pytest

from secvit.measure.rounds import NULL, interleave, is_quiet, speed_ratio


class Machine:
    """Calls that take known times, and the clock that sees them."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def candidate(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds

        return call

    def clock(self):
        return self.now


def test_ratios_are_those_of_the_times():
    machine = Machine()
    candidates = {"a": machine.candidate("a", 1.0), "b": machine.candidate("b", 4.0)}
    seconds = interleave(candidates, "a", rounds=3, clock=machine.clock)
    assert seconds == {"a": [1.0] * 3, "b": [4.0] * 3, "a" + NULL: [1.0] * 3}
    ratio = speed_ratio(seconds, "b", "a")
    assert (ratio.median, ratio.low, ratio.high) == (0.25, 0.25, 0.25)
    assert is_quiet(seconds, "a")


def test_each_round_starts_with_another_candidate():
    machine = Machine()
    interleave({"a": machine.candidate("a", 1), "b": machine.candidate("b", 1)}, "a", 3, machine.clock)
    warm_up = 2 * 3
    assert machine.calls[warm_up:] == ["a", "b", "a", "b", "a", "a", "a", "a", "b"]


def test_quick_candidates_are_called_often_enough_to_be_seen():
    machine = Machine()
    seconds = interleave({"a": machine.candidate("a", 0.001)}, "a", 2, machine.clock, min_seconds=0.01)
    assert len(machine.calls) == 2 * (2 + 2 * 10)
    assert seconds["a"] == pytest.approx([0.001, 0.001])


def test_a_ratio_is_taken_within_a_round():
    # the machine is three times slower in the second round; the ratio does not notice
    seconds = {"a": [1.0, 3.0, 1.0], "b": [2.0, 6.0, 2.0]}
    ratio = speed_ratio(seconds, "b", "a")
    assert (ratio.low, ratio.high) == (0.5, 0.5)


def test_a_null_pair_that_disagrees_is_not_quiet():
    assert not is_quiet({"a": [1.0, 1.0, 1.0], "a" + NULL: [1.1, 1.1, 1.0]}, "a")


def test_a_base_that_is_not_timed_is_refused():
    with pytest.raises(ValueError, match="base 'c' is not timed; choose one of a, b"):
        interleave({"a": int, "b": int}, "c")
