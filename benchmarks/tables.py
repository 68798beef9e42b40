"""Write the tables of benchmarks/README.md from the results beside it.

python benchmarks/tables.py
"""

import json
from pathlib import Path

from secvit.measure.report import report

HERE = Path(__file__).parent
README = HERE / "README.md"
START, END = "<!-- tables: written by tables.py -->", "<!-- end of tables -->"


def tables() -> str:
    """The tables of every result of `secvit bench`, the latest first."""
    results = []
    for path in sorted((HERE / "results").glob("*.json")):
        result = json.loads(path.read_text())
        if isinstance(result, dict) and result.get("kind") == "secvit bench":
            results.append((result["date"], f"## {path.name}\n\n{report(result)}"))
    return "\n".join(text for _, text in sorted(results, reverse=True)) or "No result yet.\n"


def with_tables(page: str) -> str:
    before, rest = page.split(START)
    return f"{before}{START}\n{tables()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
