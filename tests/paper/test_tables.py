"""The paper's numbers as typed are those of the paper's text."""

import re
from itertools import pairwise

import pytest

from secvit import paper
from tests.conftest import ROOT

TEXT = ROOT.parent / "shared" / "paper"
LOST = {"Table 3": ["81.7"]}  # cells that the text of the paper lacks, where its print has them
REFERENCES = {"Table 10": "98", "Table 11": "576+1"}  # rows that differences are marked against; else the row above


def printed(file):
    """Cells that begin with a digit, a bracket or a lone dash, by table, in the order of the text."""
    cells, found = [], {}
    for line in file.read_text().splitlines():
        if caption := re.match(r"Table (\d+)\. ", line):
            found[caption[1]], cells = cells, []
        elif "\t" in line:
            cells += numbers(line.split("\t"))
    return found


def numbers(cells):
    plain = (re.sub(r"</?b>|\s*\[\d+\]$", "", cell.strip()).strip() for cell in cells)
    return [cell for cell in plain if re.match(r"\d+B LLM", cell) is None and re.match(r"[\[\d]|-$", cell)]


@pytest.mark.parametrize("file, prefix", [("paper.md", ""), ("supplement.md", "S")])
def test_every_number_is_that_of_the_papers_text(file, prefix):
    if not TEXT.is_dir():
        pytest.skip(f"no {TEXT}: the paper's text is not here")
    wanted = {f"Table {prefix}{number}": cells for number, cells in printed(TEXT / file).items()}
    assert wanted.keys() == {
        name for name in paper.tables() if name.startswith(f"Table {prefix}"[:7]) and ("S" in name) == bool(prefix)
    }
    for name, cells in wanted.items():
        typed = [cell for row in paper.tables()[name].rows for cell in numbers([*row.label, *row.cells.values()])]
        for cell in LOST.get(name, []):
            typed.remove(cell)
        assert typed == cells, name


def test_there_is_no_empty_cell():
    for table in paper.tables().values():
        for row in table.rows:
            assert len(row.label) + len(row.cells) == len(table.columns) and all([*row.label, *row.cells.values()])


def marks():
    """Cells with a marked difference, and the cell that it is against."""
    for table in paper.tables().values():
        first = {row.name: row for row in table.rows}.get(REFERENCES.get(table.name, ""))
        for above, row in pairwise(table.rows):
            if table.name == "Table 2":
                above = next(other for other in table.rows if other.label == row.label)
            elif table.name == "Table 1" and above.name.startswith("EViT"):
                above = table.rows[0]
            for column, cell in row.cells.items():
                if (difference := paper.marked(cell)) is not None:
                    yield row, column, difference, (first or above).cells[column]


def test_marked_differences_are_right_but_for_those_that_the_ledger_names(reproduction):
    wrong = {
        (row.table, row.heading, row.name, column)
        for row, column, difference, other in marks()
        if abs(paper.number(row.cells[column]) - paper.number(other) - difference) > 0.051
    }
    named = reproduction.cells.CONTRADICTIONS
    assert wrong == {key for key, reason in named.items() if "is marked" in reason}
    assert len(list(marks())) == 62


@pytest.mark.parametrize("cell, number, marked", [("80.5 (+0.7)", 80.5, 0.7), ("-", None, None), ("52.8(-7.3)", 52.8, -7.3),
                                                  ("1.0×", 1.0, None), ("[2, 2]", None, None)])  # fmt: skip
def test_a_cell_is_read(cell, number, marked):
    assert (paper.number(cell), paper.marked(cell)) == (number, marked)
