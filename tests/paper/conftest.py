import importlib
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def reproduction(monkeypatch):
    """benchmarks/reproduction.py and the modules beside it."""
    if not (BENCHMARKS / "reproduction.py").is_file():
        pytest.skip(f"no {BENCHMARKS}: run from a checkout")
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("reproduction", "reproduction_cells", "counts")
    page, cells, counts = map(importlib.import_module, names)
    yield SimpleNamespace(page=page, cells=cells, counts=counts)
    for name in names:
        sys.modules.pop(name, None)
