import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_tables_in_the_pages_are_those_of_the_results(monkeypatch):
    if not (BENCHMARKS / "tables.py").is_file():
        pytest.skip(f"no {BENCHMARKS}: run from a checkout")
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("tables", BENCHMARKS / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for path in tables.PAGES:
        page = path.read_text()
        assert tables.with_tables(page) == page, "run python benchmarks/tables.py"
