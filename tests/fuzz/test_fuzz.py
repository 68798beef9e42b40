"""A few odd inputs for every reader, and the harness itself: it finds what it looks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import AREAS
from tests.fuzz.case import FAILURES, Case, judge
from tests.fuzz.worker import Worker

INPUTS = {"options": 25}  # of an area; 50 of every other


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with Worker(seed=0, keep=tmp_path_factory.mktemp("failures"), limit=20, memory=4096) as made:
        yield made


@pytest.mark.parametrize("area", AREAS)
def test_odd_input_is_refused_by_name_or_read_as_meant(worker, area):
    results = list(worker.run(area, range(INPUTS.get(area, 50))))
    failed = [
        f"make fuzz AREA={area} ONE={one.index}: {one.kind}, {one.group}" for one in results if one.kind in FAILURES
    ]
    assert not failed
    assert {one.kind for one in results} >= {"right", "clear"}


@pytest.mark.slow
def test_same_seed_makes_the_same_input_in_another_process(worker, tmp_path):
    with Worker(seed=0, keep=tmp_path, limit=20, memory=4096, areas=["masks"]) as other:
        found, again = ([(one.kind, one.change) for one in some.run("masks", range(12))] for some in (worker, other))
    assert found == again


@pytest.mark.parametrize("kind, group", [("sleep", "over 2 s"), ("memory", "MemoryError"), ("abort", "ended with -6")])
def test_input_that_hangs_or_fills_memory_or_ends_its_process_is_counted_and_kept(tmp_path, kind, group):
    with Worker(seed=0, keep=tmp_path, limit=2, memory=4096, areas=["sick"]) as worker:
        (worker.room / "kind").write_text(kind)
        [sick] = worker.run("sick", [5])
        (worker.room / "kind").write_text("fine")
        [fine] = worker.run("sick", [6])
    assert (sick.kind, fine.kind) == ("hang", "right")
    assert group in sick.group
    assert [path.name for path in tmp_path.iterdir()] == ["sick-0-5-hang"]
    assert (tmp_path / "sick-0-5-hang" / "input" / "input.txt").read_text() == "x"


def _raise(error: Exception):
    def run(case: Case) -> str:
        raise error

    return run


@pytest.mark.parametrize("meant, run, kind", [
    ("harmless", lambda case: "", "right"),
    ("either", lambda case: "", "right"),
    ("wrong", lambda case: "", "silent"),
    ("harmless", lambda case: "another value", "silent"),
    ("wrong", _raise(ValueError("/data/x.json: annotation 3 has no box")), "clear"),
    ("harmless", _raise(ValueError("/data/x.json: annotation 3 has no box")), "refused"),
    ("wrong", _raise(ValueError("/data/x.json: broken")), "traceback"),
    ("wrong", _raise(ValueError("annotation 3 has no box")), "traceback"),
    ("wrong", _raise(KeyError("/data/x.json: annotation 3")), "traceback"),
    ("wrong", _raise(MemoryError()), "hang"),
])  # fmt: skip
def test_verdict(meant, run, kind):
    case = Case("a change", meant, (str(Path("/data/x.json")),), entries=("annotation 3",))
    assert judge(case, run).kind == kind
