import importlib.util
from pathlib import Path

import pytest

from tests.conftest import slow_if

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("slow", slow_if(bool, [False, True]), ids=["results", "networks"])
def test_the_tables_in_the_pages_are_those_of_the_results(monkeypatch, slow):
    """Counting the detectors' networks takes half a minute; their numbers are tested in tests/detection, too."""
    if not (BENCHMARKS / "tables.py").is_file():
        pytest.skip(f"no {BENCHMARKS}: run from a checkout")
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("tables", BENCHMARKS / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    sections = [name for name in tables.SECTIONS if (name == "detector_sizes") == slow]
    for path in tables.PAGES:
        page = path.read_text()
        assert tables.with_tables(page, sections) == page, "run python benchmarks/tables.py"
