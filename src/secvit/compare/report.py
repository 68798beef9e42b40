"""What a comparison says: comparison.json, a table in comparison.md, and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from secvit.compare.figures import MAIN, Figure, choose
from secvit.compare.paired import CONFIDENCE, FEWEST, difference
from secvit.fields import Entry, any_text, integer, items, mapping, read_json, text
from secvit.files import write_atomically

JSON, PAGE, PICTURE = "comparison.json", "comparison.md", "comparison.png"
SHOWN_SEEDS = 5  # up to which a table has each seed's score
MADE_WITH = ("hardware", "versions", "commit")  # of result.json


def write(output: Path, comparison: Mapping[str, Any], wanted: str | None = None) -> dict[str, Any]:
    """What the runs of a comparison tell, written to its three files.  Without a finished run nothing is written.

    comparison: "task", "entry", "variants", "seeds", and "runs" with "variant", "seed" and "result", None where a run
    is not finished.  wanted: the figure to compare by.
    """
    results = [run["result"] for run in comparison["runs"] if run["result"]]
    if not results:
        return {**comparison, "figure": None}
    figure = choose(comparison["task"], results, wanted)
    made = {**comparison, **_told(comparison, figure), "notes": _notes(output, comparison, figure)}
    made |= {key: results[-1].get(key) for key in (*MADE_WITH, "date")}
    if first_process():
        from secvit.compare.picture import draw_comparison

        write_atomically(output / JSON, json.dumps(made, indent=2).encode())
        write_atomically(output / PAGE, _page(made).encode())
        draw_comparison(made, output / PICTURE)
    return made


def reopen(output: str | os.PathLike[str], figure: str | None = None) -> dict[str, Any]:
    """The comparison in a folder, told and drawn again from its runs as they are now, maybe by another figure."""
    output = Path(output)
    if not (output / JSON).is_file():
        raise ValueError(f"{output}: no {JSON}; give the folder of a comparison with a finished run")
    report = Entry(str(output / JSON), read_json(output / JSON))
    about: dict[str, Any] = {key: report.get(key, text) for key in ("task", "data")}
    about |= {key: report.get(key, any_text, "") for key in ("recipe", "entry", "stopped")}
    if about["task"] not in MAIN:
        raise ValueError(f"{report.where}: task is {about['task']!r}, expected one of {', '.join(MAIN)}")
    entries = [Entry(f"{report.where}: run {i}", run) for i, run in enumerate(report.get("runs", items), 1)]
    runs = []
    for entry in entries:
        run: dict[str, Any] = {"variant": entry.get("variant", text), "seed": entry.get("seed", integer)}
        run |= {"folder": entry.get("folder", text), "failed": entry.get("failed", any_text, "")}
        runs.append({**run, "result": finished(output / run["folder"])})
    about |= {f"{key}s": list(dict.fromkeys(run[key] for run in runs)) for key in ("variant", "seed")}
    return write(output, {**about, "runs": runs}, figure)


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that came to its end."""
    if not (folder / "result.json").is_file() or not (folder / "model.safetensors").is_file():
        return None
    result = read_json(folder / "result.json")
    Entry(str(folder / "result.json"), result).get("recipe", mapping)
    return None if result.get("stopped") else result


def first_process() -> bool:
    """Of many processes, one writes."""
    return os.environ.get("RANK", "0") == "0"


# -- what is told ------------------------------------------------------------------------------


def _told(comparison: Mapping[str, Any], figure: Figure) -> dict[str, Any]:
    """Scores by variant, and the paired differences from the first variant."""
    scores = {
        variant: {
            run["seed"]: score
            for run in comparison["runs"]
            if run["variant"] == variant and run["result"] and (score := figure.of(run["result"])) is not None
        }
        for variant in comparison["variants"]
    }
    summary = [
        {"variant": variant, "by_seed": its_scores}
        | (
            {"mean": fmean(its_scores.values()), "low": min(its_scores.values()), "high": max(its_scores.values())}
            if its_scores
            else {}
        )
        | {key: _mean(comparison, variant, key) for key in ("seconds", "parameters")}
        for variant, its_scores in scores.items()
    ]
    first, *others = comparison["variants"]
    differences = []
    comparable = _comparable([run["result"] for run in comparison["runs"] if run["result"]])
    for other in others if comparable else ():
        by_seed = {seed: scores[other][seed] - scores[first][seed] for seed in scores[other] if seed in scores[first]}
        if by_seed:
            paired = asdict(difference(list(by_seed.values()), figure.higher, len(others)))
            differences.append({"variant": other, "against": first, "by_seed": by_seed, **paired})
    about = {"name": figure.name, "title": figure.title, "better": "higher" if figure.higher else "lower"}
    return {"figure": about, "summary": summary, "differences": differences}


def _mean(comparison: Mapping[str, Any], variant: str, key: str) -> float | None:
    values = [run["result"].get(key) for run in comparison["runs"] if run["variant"] == variant and run["result"]]
    return fmean(values) if values and None not in values else None


def _notes(output: Path, comparison: Mapping[str, Any], figure: Figure) -> list[str]:
    """What a reader has to know to judge the numbers."""
    runs = comparison["runs"]
    results = [run["result"] for run in runs if run["result"]]
    notes = []
    if floor := figure.floor(results[0]):
        beyond = any(
            (figure.of(r) or 0) > floor[0] if figure.higher else (figure.of(r) or 0) < floor[0] for r in results
        )
        nothing = "" if beyond else " No run is better than that: nothing was learned."
        notes.append(f"Without learning: {figure.shown(floor[0])} ({floor[1]}).{nothing}")
    if len(results) < len(runs):
        notes.append(f"{len(results)} of {len(runs)} runs are finished; the others are left out.")
    notes += [f"Failed: {run['variant']}, seed {run['seed']}: {run['failed']}" for run in runs if run["failed"]]
    if count := sum(figure.of(result) is None for result in results):
        notes.append(f"{count} finished runs have no {figure.name}, and are left out.")
    for key in MADE_WITH:
        if len({json.dumps(result.get(key), sort_keys=True) for result in results}) > 1:
            notes.append(f"Not all runs were made with the same {key}: see {JSON}.")
    if more := {path.parent for path in output.glob("*/seed_*/result.json")} - {output / run["folder"] for run in runs}:
        notes.append(f"{len(more)} more runs in {output} were not asked for, and are not in these tables.")
    if not _comparable(results):
        notes.append("**Not all runs were scored on the same data**, so no differences are shown.")
    return notes


def _comparable(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all were scored on the same split, of as many samples."""
    return len({(result.get("split"), _held_out(result)) for result in results}) == 1


def _held_out(result: Mapping[str, Any]) -> int | None:
    counts = result.get("images") or result.get("samples") or {}
    return counts.get(result.get("split"), counts.get("val"))


def _rule(comparison: Mapping[str, Any]) -> str:
    """How differences are judged, in the words of this comparison."""
    seeds, others = len(comparison["seeds"]), len(comparison["variants"]) - 1
    pairs = "A difference is between two runs of one seed: the same order of the data, the same augmentation."
    if seeds < FEWEST:
        subject = "One seed does" if seeds == 1 else "Two seeds do"
        return f"{pairs}\n{subject} not show how much seeds differ. So no claim is made; give at least {FEWEST} seeds."
    together = f"; the {others} intervals hold together, by Bonferroni's rule" if others > 1 else ""
    return (
        f"{pairs}\nThe {100 * CONFIDENCE:.0f} % interval is for the mean difference over seeds: Student's t of the "
        f"paired differences{together}.\nToo close to tell apart: the interval contains 0.\n"
        "Seeds vary weights, order and augmentation. The held-out data stay the same; nothing is said about other data."
    )


# -- Markdown ----------------------------------------------------------------------------------


def markdown(comparison: Mapping[str, Any]) -> str:
    """The tables of a comparison, for a terminal and for a page."""
    if not comparison["figure"]:
        return "No run is finished yet.\n"
    figure, seeds = Figure(comparison["figure"]["name"], comparison["task"]), comparison["seeds"]
    shown = seeds if len(seeds) <= SHOWN_SEEDS else []
    entry, summary = comparison["entry"] or "variant", comparison["summary"]
    sizes = len({row["parameters"] for row in summary} - {None}) > 1
    columns = [entry, "seeds", f"{figure.title}: mean", "least .. greatest", *(f"seed {seed}" for seed in shown)]
    rows = []
    for row in summary:
        scores = [figure.shown(row["by_seed"].get(seed)) for seed in shown]
        some = len(row["by_seed"]) > 0
        cells = (
            [figure.shown(row["mean"]), f"{figure.shown(row['low'])} .. {figure.shown(row['high'])}"] if some else []
        )
        cells = [row["variant"], str(len(row["by_seed"])), *(cells or ["none", ""]), *scores]
        cells.append("" if row["seconds"] is None else f"{row['seconds']:.0f}")
        rows.append(cells + ([f"{row['parameters']:,.0f}"] if sizes and row["parameters"] else [""] * sizes))
    blocks = [_table([*columns, "seconds a run", *["parameters"] * sizes], rows)]
    if differences := comparison["differences"]:
        against = f"difference from {differences[0]['against']}"
        unit = ", points" if figure.higher else ""
        columns = [
            against,
            f"mean{unit}",
            *(f"seed {seed}" for seed in shown),
            f"{100 * CONFIDENCE:.0f} % interval",
            "",
        ]
        blocks.append(_table(columns, [_cells(row, figure, shown) for row in differences]))
    return "\n\n".join(filter(None, [*blocks, "\n".join(comparison["notes"]), _rule(comparison)])) + "\n"


def _cells(row: Mapping[str, Any], figure: Figure, shown: Sequence[int]) -> list[str]:
    by_seed = [figure.shown(row["by_seed"].get(seed), signed=True) for seed in shown]
    bounds = "" if row["low"] is None else f"{figure.shown(row['low'], True)} .. {figure.shown(row['high'], True)}"
    return [row["variant"], figure.shown(row["mean"], signed=True), *by_seed, bounds, row["verdict"]]


def _page(comparison: Mapping[str, Any]) -> str:
    return "\n".join(_lines(comparison))


def _lines(comparison: Mapping[str, Any]) -> Iterator[str]:
    named = " of ".join(filter(None, (comparison["entry"], comparison["recipe"])))
    yield f"# Comparison{': ' * bool(named)}{named}\n"
    yield markdown(comparison)
    yield f"![Scores by seed, their mean and range]({PICTURE})\n"
    versions = comparison["versions"] or {}
    made_with = ", ".join(f"{name} {versions[name]}" for name in ("secvit", "torch", "timm") if name in versions)
    yield (
        f"Data: {Path(comparison['data']).name}. {comparison['hardware']}; {made_with}; commit "
        f"{comparison['commit'] or 'unknown'}; {str(comparison['date'])[:10]}. Each run's recipe and figures: {JSON}."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [cells[0], ["-" * max(width, 3) for width in widths], *cells[1:]]
    return "\n".join("| " + " | ".join(cell.ljust(max(w, 3)) for cell, w in zip(line, widths)) + " |" for line in lines)
