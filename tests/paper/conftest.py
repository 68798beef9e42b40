import importlib
import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def reproduction(benchmarks):
    """benchmarks/reproduction.py and the modules beside it."""
    names = ("reproduction", "reproduction_cells", "counts")
    page, cells, counts = map(importlib.import_module, names)
    yield SimpleNamespace(page=page, cells=cells, counts=counts)
    for name in names:
        sys.modules.pop(name, None)
