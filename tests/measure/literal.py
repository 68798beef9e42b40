"""The literal network of benchmarks/literal.py, for tests; skips where the repository's benchmarks are absent."""

from pathlib import Path

import pytest

from secvit.measure.speed import load_literal

LITERAL = Path(__file__).parents[2] / "benchmarks" / "literal.py"


def literal_module():
    if not LITERAL.is_file():
        pytest.skip(f"no {LITERAL}: run from a checkout")
    return load_literal(LITERAL)
