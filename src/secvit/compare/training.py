"""The runs of a comparison: each variant of a recipe with each seed, in a folder of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from secvit import recipes, runs
from secvit.compare import report
from secvit.fields import read_json, read_yaml
from secvit.progress import duration
from secvit.train import latest
from secvit.train.config import changes

logger = logging.getLogger(__name__)
FREE = {  # entries of a recipe that do not change what a run ends with
    *(f"loop.{name}" for name in ("log_every", "evaluate_every", "save_every", "keep_last", "workers")),
    *(f"loop.{name}" for name in ("data_timeout_minutes", "time_limit_minutes", "trackers")),
}


@dataclass(frozen=True)
class Run:
    """One training of a comparison."""

    variant: str
    seed: int
    folder: Path
    recipe: Any


def compare(
    variants: Mapping[str, Any],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    entry: str = "",
    name: str = "",
    figure: str | None = None,
    tell: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Train each variant of a recipe with each seed, all else equal, and return what comparison.json says.

    Args:
        variants: recipes by what they are called in the table; the others are compared with the first.
        data: as for training.
        output: folder of the comparison: OUTPUT/VARIANT/seed_N for each run, and comparison.json, .md and .png.
        seeds: of order, augmentation and initial weights; of fewer than three no claim is made.
        entry: what the variants differ in, for the table.
        name: of the recipe.
        figure: name of a number in result.json to compare by; None for the task's main one.
        tell: is given a line before and after each run.

    Finished runs are not trained again, others resume.  "stopped" in the result is "", or why the last run stopped
    early: "interrupted", "terminated", "time limit".  "failed" lists the runs that diverged.
    ValueError, before the first training, for a variant that cannot be trained, and for a folder that holds a run of
    another recipe or of other data.
    """
    output, data = Path(output), str(data)
    _check(variants, seeds)
    _check_output(output, entry, name)
    task = recipes.task_of(next(iter(variants.values())))
    planned, place = _plan(variants, data, output, seeds, tell)
    for run in planned:
        _check_same(run, place)
    about = {
        "task": task, "recipe": name, "entry": entry, "data": place,
        "seeds": list(seeds), "variants": list(variants),
    }  # fmt: skip
    comparison = Comparison(output, about, planned, figure)
    before = f", {len(comparison.results)} finished before" if comparison.results else ""
    tell(f"{len(planned)} runs: {len(variants)} variants with {_seeds(seeds)}{before}")
    comparison.train(data, name, tell)
    return comparison.write()


class Comparison:
    """The planned runs, and what those gave that are finished or failed."""

    def __init__(self, output: Path, about: Mapping[str, Any], planned: Sequence[Run], figure: str | None) -> None:
        self.output, self.about, self.planned, self.figure = output, about, planned, figure
        results = {run.folder: report.finished(run.folder) for run in planned}
        self.results = {folder: result for folder, result in results.items() if result is not None}
        self.failed: dict[Path, str] = {}
        self.stopped = ""

    def train(self, data: str, name: str, tell: Callable[[str], None]) -> None:
        """The runs that are left, until one of them stops early."""
        left = [run for run in self.planned if run.folder not in self.results]
        for number, run in enumerate(left, len(self.results) + 1):
            seconds = [result["seconds"] for result in self.results.values()]
            rest = f"; about {duration(fmean(seconds) * (len(self.planned) - number + 1))} left" if seconds else ""
            tell(f"run {number} of {len(self.planned)}: {run.variant}, seed {run.seed}{rest}")
            try:
                result = runs.train(run.recipe, data, run.folder, name=name)
            except KeyboardInterrupt:
                self.stopped = "interrupted"
                return
            except ArithmeticError as error:  # it diverged, which is a result of this variant
                self.failed[run.folder] = str(error)
                tell(f"  failed: {error}")
                continue
            if result["stopped"]:
                self.stopped = result["stopped"]
                return
            self.results[run.folder] = result
            tell(f"  {result['summary'] or 'not scored'}, in {duration(result['seconds'])}")
            _draw(run.folder)
            self.write()

    def write(self) -> dict[str, Any]:
        """comparison.json and its table and picture, as far as it is."""
        entries = [
            {"variant": run.variant, "seed": run.seed, "folder": run.folder.relative_to(self.output).as_posix()}
            | {"result": self.results.get(run.folder), "failed": self.failed.get(run.folder, "")}
            for run in self.planned
        ]
        return report.write(self.output, {**self.about, "stopped": self.stopped, "runs": entries}, self.figure)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


# -- before the first training -----------------------------------------------------------------


def _check(variants: Mapping[str, Any], seeds: Sequence[int]) -> None:
    labels = list(variants)
    if len(labels) < 2:
        raise ValueError(f"one variant ({', '.join(labels)}): nothing to compare; give two or more")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: {', '.join(map(str, seeds)) or 'none'}; give different ones, like 0 1 2")
    if len({type(recipe) for recipe in variants.values()}) > 1:
        raise ValueError(f"{', '.join(labels)}: recipes of different tasks, whose scores cannot be compared")
    for at, label in enumerate(labels):
        for other in labels[:at]:
            if variants[other] == variants[label]:
                raise ValueError(f"{other} and {label} give the same recipe; give different values")


def _check_output(output: Path, entry: str, name: str) -> None:
    """A ValueError if the folder holds another comparison, whose tables would be lost."""
    if not (output / report.JSON).is_file():
        return
    existing = read_json(output / report.JSON)
    if (
        isinstance(existing, dict)
        and "runs" in existing
        and [existing.get(key) for key in ("entry", "recipe")] != [entry, name]
    ):
        raise ValueError(
            f"{output} holds a comparison of {existing.get('entry')} of {existing.get('recipe')}; give another --output"
        )


def _plan(
    variants: Mapping[str, Any], data: str, output: Path, seeds: Sequence[int], tell: Callable[[str], None]
) -> tuple[list[Run], str]:
    """The runs, seed by seed, so that pairs are complete early, and where their data are.

    Each variant is set up once, without training: a wrong value should not be found hours later.
    """
    ready: dict[str, Any] = {}
    place = ""
    folders: list[Path] = []
    for label, recipe in variants.items():
        folders.append(output / _folder(label) / f"seed_{seeds[0]}")
        tell(f"setting up {label}")
        try:
            job = runs.prepare(_with_seed(recipe, seeds[0]), data, folders[-1])
        except ValueError as error:
            _remove_empty(folders)
            raise ValueError(f"{label}: {error}") from None
        ready[label], place = job.recipe, job.about["data"]
        del job  # its network, before the next one is made
    planned = [
        Run(label, seed, output / _folder(label) / f"seed_{seed}", _with_seed(recipe, seed))
        for seed in seeds
        for label, recipe in ready.items()
    ]
    return planned, place


def _with_seed(recipe: Any, seed: int) -> Any:
    return replace(recipe, loop=replace(recipe.loop, seed=seed))


def _folder(label: str) -> str:
    """A variant's name as a folder's: where signs had to go, a checksum keeps it apart from others."""
    plain = re.sub(r"[^\w.+-]+", "_", label, flags=re.ASCII).strip("._-")[:60]
    return plain if plain == label else f"{plain or 'variant'}_{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def _check_same(run: Run, data: str) -> None:
    """A ValueError if the run's folder holds a run that was trained with anything else."""
    places = [run.folder, *filter(None, [latest(run.folder)])]
    config = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
    remedy = "give another --output, or the options that it was trained with"
    if config is None:
        if (run.folder / "result.json").exists():
            raise ValueError(f"{run.folder}: a run without config.yaml, which says what it is; give another --output")
        return
    wanted = json.loads(json.dumps(asdict(run.recipe)))
    began = read_yaml(config) or {}
    other = [c for c in changes({key: began.get(key) for key in wanted}, wanted) if c.partition(" was ")[0] not in FREE]
    if other:
        raise ValueError(
            f"{run.folder} holds a run with other options: {'; '.join(other)}. For a fair comparison {remedy}"
        )
    if os.path.realpath(str(began.get("data"))) != os.path.realpath(data):
        raise ValueError(f"{run.folder} holds a run on other data, {began.get('data')}, not {data}; {remedy}")


# -- after a training --------------------------------------------------------------------------


def _draw(folder: Path) -> None:
    from secvit.draw.curves import draw_curves

    if not report.first_process():
        return
    try:
        draw_curves(folder / "log.csv", folder / "curves.png")
    except (ValueError, OSError) as error:
        logger.info("no curves were drawn: %s", error)


def _remove_empty(folders: Sequence[Path]) -> None:
    """The folders that a refused variant would leave."""
    for path in (path for folder in folders for path in (folder, folder.parent, folder.parent.parent)):
        with contextlib.suppress(OSError):  # not empty, or another process was faster
            path.rmdir()
