"""The documentation names what exists."""

import importlib
import re

import pytest

from tests.conftest import ROOT

MAP = (ROOT / "docs" / "paper_map.md").read_text()
DIFFERENCES = (ROOT / "docs" / "differences.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in MAP.splitlines() if line.startswith("| ")][1:]
SYMBOL = re.compile(r"`(secvit(?:\.\w+)+)`")


def resolve(name: str):
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[i:]:
            found = getattr(found, attribute)
        return found
    raise ImportError(name)


def test_map_has_a_row_for_every_equation_figure_and_table():
    expected = [f"Eq. {n}" for n in range(1, 7)] + [f"Figure {n}" for n in range(1, 5)]
    expected += [f"Table {n}" for n in range(1, 12)] + [f"Table S{n}" for n in range(1, 4)] + ["Figure S1"]
    assert sorted(row[0] for row in ROWS) == sorted(expected)


@pytest.mark.parametrize("tag, symbol", [(row[0], name) for row in ROWS for name in SYMBOL.findall(row[2])])
def test_docstring_of_a_mapped_symbol_names_its_place_in_the_paper(tag, symbol):
    text = resolve(symbol).__doc__ or ""
    kind, number = tag.split(" ")
    numbers = expand(text, kind, supplement=number.startswith("S"))
    assert int(number.lstrip("S")) in numbers, f"{symbol} does not name {tag}"


def expand(text: str, kind: str, supplement: bool) -> set[int]:
    """Numbers that a docstring names for a kind: "Eqs. 1, 2", "Eqs. 1 to 4", "supplement table 1", "figure 3 (a)"."""
    plural = {"Eq.": r"Eqs?\.", "Table": "tables?", "Figure": "figures?"}[kind]
    before = r"supplement " if supplement else r"(?<!supplement )"
    found: set[int] = set()
    for match in re.finditer(rf"{before}{plural} (\d+(?:(?:, | and | to )\d+)*)", text, re.IGNORECASE):
        for part in re.split(r", | and ", match[1]):
            first, _, last = part.partition(" to ")
            found.update(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("symbol", sorted(set(SYMBOL.findall(DIFFERENCES))))
def test_difference_names_a_symbol_that_exists(symbol):
    resolve(symbol)


def test_readme_tree_is_true():
    tree = re.search(r"```text\n(secvit/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    folders = [ROOT]
    for line in tree.splitlines()[1:]:
        indent = (len(line) - len(line.lstrip())) // 2
        for name in line.split("  #")[0].split():
            path = folders[indent - 1] / name
            assert path.exists(), f"README's tree names {path.relative_to(ROOT)}, which does not exist"
        folders[indent:] = [path]


def test_readme_code_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(code, names)
    assert [f.shape[1:] for f in names["features"]] == [(64, 63, 84), (128, 32, 42), (256, 16, 21), (512, 8, 11)]
    assert names["z"].shape == (2, 4, 144, 32)
