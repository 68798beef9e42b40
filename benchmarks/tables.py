"""Write the tables of benchmarks/README.md and of the front page from the results beside it.

python benchmarks/tables.py
"""

import json
from pathlib import Path
from typing import Any

from secvit.measure.report import report

HERE = Path(__file__).parent
PAGES = (HERE / "README.md", HERE.parent / "README.md")


def results(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and contents of the results of one kind, the latest first."""
    found = [(path.name, json.loads(path.read_text())) for path in sorted((HERE / "results").glob("*.json"))]
    chosen = [(name, result) for name, result in found if isinstance(result, dict) and result.get("kind") == kind]
    return sorted(chosen, key=lambda item: item[1]["date"], reverse=True)


def speeds() -> str:
    """The tables of every result of `secvit bench`."""
    texts = [f"## {name}\n\n{report(result)}" for name, result in results("secvit bench")]
    return "\n".join(texts) or "No result yet.\n"


def trainings() -> str:
    """A row for every kept training run."""
    rows = [
        "| recipe | data | top-1 | always the most frequent class | images | seed | minutes | hardware | date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, result in results("secvit train"):
        for split in ("test", "val"):
            if scores := result.get(split) if split != result["split"] else result:
                count = scores["images"] if split != result["split"] else result["images"][split]
                rows.append(
                    f"| `{result['name']}` | {result['data']}, {split} | {100 * scores['top1']:.2f} % "
                    f"| {100 * scores['majority_floor']:.2f} % | {count} | {result['recipe']['loop']['seed']} "
                    f"| {result['seconds'] / 60:.0f} | {result['hardware']} | {result['date']} |"
                )
    return "\n".join(rows) + "\n" if len(rows) > 2 else "No result yet.\n"


SECTIONS = {"speeds": speeds, "trainings": trainings}


def with_tables(page: str) -> str:
    """The page with each of its marked sections written anew."""
    for name, write in SECTIONS.items():
        start, end = f"<!-- {name}: written by benchmarks/tables.py -->", f"<!-- end of {name} -->"
        if start in page:
            before, rest = page.split(start)
            page = f"{before}{start}\n{write()}{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_tables(path.read_text()))
