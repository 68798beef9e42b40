"""Seeds for every test, and where the conformance data and the small data sets are looked for."""

import os
import random
from collections.abc import Callable, Container, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def since(library: str, oldest: str, what: str) -> pytest.MarkDecorator:
    """Skips a test of what a library does from its version `oldest` on; pyproject.toml allows older ones."""
    return pytest.mark.skipif(Version(version(library)) < Version(oldest), reason=f"{library} {what} since {oldest}")


def slow_but(fast: Container[str], every: Iterable[str]) -> list[Any]:
    """Parameters of which `make test` runs those in `fast`, and `make test-all` each."""
    return slow_if(lambda name: name not in fast, every)


def slow_if(slow: Callable[[Any], bool], every: Iterable[Any]) -> list[Any]:
    """Parameters, or rows of them, of which `make test` leaves out those that are `slow`."""
    rows = ((row, row if isinstance(row, tuple) else (row,)) for row in every)
    return [pytest.param(*values, marks=pytest.mark.slow) if slow(row) else row for row, values in rows]


@pytest.fixture
def warnings_of_this_run(pytestconfig) -> list[str]:
    """What pytest was told of warnings, -W by -W, for a process that a test starts."""
    return [word for given in pytestconfig.getoption("pythonwarnings") or () for word in ("-W", given)]


@pytest.fixture
def benchmarks(monkeypatch) -> None:
    """The scripts of benchmarks/ can be imported by name; skips where only the package is installed."""
    folder = ROOT / "benchmarks"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: run from a checkout")
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and data sets: $SECVIT_SHARED, else ../shared; skips where there is none."""
    folder = Path(os.environ.get("SECVIT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set SECVIT_SHARED to the folder with golden/ and data/")
    return folder
