"""The words of `secvit compare`: its own options, and changes of a recipe that hold for all variants."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvit import recipe_options
from secvit.compare import sweeps
from secvit.compare.report import first_process, markdown, reopen
from secvit.compare.training import compare
from secvit.signatures import explained, parse, summary

logger = logging.getLogger(__name__)
SEEDS = re.compile(r"-?\d+(,-?\d+)*")
FIXED = {  # entries that a comparison cannot vary
    "seed": "give --seeds 0 1 2 instead",
    "loop.seed": "give --seeds 0 1 2 instead",
    "output": "each run has a folder of its own in --output",
    "resume": "each run resumes by itself",
    "data": "scores on other data cannot be compared",
}
EXAMPLES = """\
secvit compare classification.folder --data DIR --vary model.args.partition=sec,window,random --output runs/compare
secvit compare segmentation.folder --data DIR --vary model.backbone=secvit_tiny,resnet18 --seeds 0 1 2 3 4
secvit compare vlm.small --data DIR --vary model.connector=sec,pool,random
secvit compare classification.digits --vary optim.lr=1e-3,3e-3 --loop.epochs 5      changes that hold for all
secvit compare vlm.small --data DIR --vary model.connector=sec,pool --vary optim.lr=2e-3,1e-3   each with its own
secvit compare classification.folder --data DIR --vary config=a.yaml,b.yaml         files of changes
secvit compare table10 --data imagenet                                              the paper's table, beside ours
secvit compare table7 --data mix665k.json --begins runs/table7.stage1               after `secvit compare table7.stage1`
secvit compare runs/compare --figure macro                                          tables and picture again"""

HELP = """\
usage: secvit compare RECIPE --vary ENTRY=VALUE,VALUE,... [options] [what secvit train RECIPE takes]
       secvit compare SWEEP [options] [what secvit train takes for its recipes]
       secvit compare DIR [--figure NAME]

{about}

{examples}

options:
{options}

sweeps, ablations of the paper: {sweeps}

secvit train RECIPE --help lists the entries of a recipe.
Exit codes: 0 all runs finished, 2 input that cannot be used or a run that failed, 130, 143 and 75 as of train."""


@dataclass(frozen=True)
class Own:
    """What words say that are not about the recipe."""

    vary: list[str]
    seeds: list[int]
    output: str | None
    figure: str | None
    begins: str | None


def own(
    vary: Sequence[str] = (), seeds: Sequence[int] = (0, 1, 2), output: str | None = None, figure: str | None = None,
    begins: str | None = None,
) -> Own:  # fmt: skip
    """Train variants of a recipe with the same seeds, all else equal, and say whether their scores differ.

    Finished runs are not trained again: the same command goes on, and more seeds or values may be added.

    vary: ENTRY=VALUE,VALUE,...: the entry of the recipe that differs; the others are compared with the first value.
        Given twice, the entries change together, value by value.
    seeds: of order, augmentation and initial weights; of fewer than three no claim is made.
    output: folder of the comparison; runs/compare.RECIPE.ENTRY if not given.
    figure: number of result.json to compare by; the task's main one if not given (top1, miou, mask_AP, loss).
    begins: of a sweep whose runs begin with those of another, the folder of that; runs/compare.SWEEP if not given.
    """
    return Own(list(vary), list(seeds), output, figure, begins)


def work(words: Sequence[str], codes: Mapping[str, int]) -> int:
    """The comparison that words ask for, printed -> an exit code.  codes: of runs that stopped early."""
    words = _imported(words)
    if not words or {"-h", "--help"} & set(words):
        print(_help())
        return 0
    if Path(words[0]).is_dir():
        output = Path(words[0])
        made = reopen(output, **parse("secvit compare DIR", words[1:], [again])[0])
    else:
        output, made = _compare(words)
    if first_process():
        print(markdown(made), end="")
        if sweep := sweeps.find(made["recipe"]):
            print(f"\n{sweeps.beside(sweep, made, output)}", end="")
    if not (stopped := made["stopped"]):
        return 2 if any(run["failed"] for run in made["runs"]) else 0
    if first_process():
        print(f"{stopped}: what is finished is kept, and the same command goes on", file=sys.stderr)
    return codes.get(stopped, codes["time limit"])


def _compare(words: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The comparison that words ask for, and its folder."""
    own_words, others = _taken(words)
    options = own(**parse("secvit compare RECIPE", own_words, [own])[0])
    name = next((word for word in others if sweeps.find(word)), None)
    if name is None and options.begins:
        raise ValueError(f"--begins {options.begins} is for a sweep that begins with another: {_begin_with_another()}")
    entry, name, orders = _of_recipe(options, others) if name is None else _of_sweep(name, options, others)
    first = next(iter(orders.values()))
    if any(order.data != first.data for order in orders.values()):
        raise ValueError(f"--vary {entry}: the values give other data; {FIXED['data']}")
    ending = "" if name in sweeps.SWEEPS else f".{entry.partition(', ')[0].rpartition('.')[2]}"
    output = Path(options.output or f"runs/compare.{name}{ending}")
    recipes = {label: order.recipe for label, order in orders.items()}
    figure = options.figure
    return output, compare(
        recipes, first.data, output, options.seeds, entry=entry, name=name, figure=figure, tell=logger.info
    )


def _of_sweep(name: str, options: Own, others: Sequence[str]) -> tuple[str, str, dict[str, recipe_options.Order]]:
    """What the variants of a sweep have in common, the sweep's name, and the order of each variant."""
    sweep = sweeps.find(name)
    assert sweep
    if options.vary:
        raise ValueError(f"--vary {options.vary[0]}: {name} says itself what varies; leave it out, or name a recipe")
    if options.begins and not sweep.begins:
        raise ValueError(f"--begins {options.begins}: {name} begins with no runs; leave it out")
    begins = options.begins or f"runs/compare.{sweep.begins}"
    if sweep.begins and not Path(begins).is_dir():
        raise ValueError(
            f"{name} begins with the runs of {sweep.begins}, and {begins} is no folder; run `secvit compare "
            f"{sweep.begins}` before, or give its folder with --begins"
        )
    common = [word for word in others if word != name]
    orders = {
        variant.label: recipe_options.read([*(word.replace("{begins}", begins) for word in variant.words), *common])
        for variant in sweep.variants
    }
    return sweep.about, name, orders


def _begin_with_another() -> str:
    return ", ".join(name for name, make in sweeps.SWEEPS.items() if make().begins)


def _of_recipe(options: Own, others: Sequence[str]) -> tuple[str, str, dict[str, recipe_options.Order]]:
    """What is varied, the recipe's name, and the order of each variant."""
    entries, variants = _varied(options.vary)
    for option in (word.partition("=")[0] for word in others if word.startswith("--")):
        if option[2:] in {*FIXED, *entries} - {"data"}:
            raise ValueError(f"{option}: {FIXED.get(option[2:], 'it is what --vary varies')}")
    orders = {}
    for label, values in variants.items():
        changes = [f"{entry}={value}" for entry, value in zip(entries, values)]
        try:
            orders[label] = recipe_options.read([*others, *(f"--{change}" for change in changes)])
        except ValueError as error:
            raise ValueError(f"{', '.join(changes)}: {error}") from None
    return ", ".join(entries), next(iter(orders.values())).name, orders


def again(figure: str | None = None) -> None:
    """Draw the tables and the picture of a comparison again.

    figure: number of result.json to compare by; the task's main one if not given.
    """


def _help() -> str:
    options = {**explained(own), "import": "a Python module to import before, here or installed (your partitions)."}
    lines = [f"  --{name} {name.upper()}\n      {about}" for name, about in options.items()]
    return HELP.format(about=summary(own), examples=EXAMPLES, options="\n".join(lines), sweeps=", ".join(sweeps.SWEEPS))


def _taken(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of this command's own options, each option once, and the other words."""
    own_options: dict[str, list[str]] = {}
    others: list[str] = []
    waiting = list(words)
    while waiting:
        option, equals, value = (word := waiting.pop(0)).partition("=")
        option = "--output" if option == "-o" else option
        if not option.startswith("--") or option[2:] not in explained(own):
            others.append(word)
            continue
        values = [value] if equals else [waiting.pop(0)] if waiting else []
        while option == "--seeds" and not equals and waiting and SEEDS.fullmatch(waiting[0]):
            values.append(waiting.pop(0))
        if option == "--seeds":
            if not all(map(SEEDS.fullmatch, values or [""])):
                raise ValueError(f"--seeds {' '.join(values)}: expected whole numbers, like 0 1 2")
            values = [seed for value in values for seed in value.split(",")]
        if option in own_options and option != "--vary":
            raise ValueError(f"{option} is given twice")
        own_options.setdefault(option, []).extend(values)
    return [word for option, values in own_options.items() for word in (option, *values)], others


def _varied(vary: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Entries, and their values for each variant: "a.b=1,[2,3]" -> ["a.b"], {"1": ("1",), "[2,3]": ("[2,3]",)}."""
    columns: dict[str, list[str]] = {}
    for one in vary or [""]:
        entry, equals, values = one.partition("=")
        entry = entry.strip().lstrip("-").replace("-", "_")
        if not entry or not equals:
            raise ValueError(
                f"{f'--vary {one}' if one else 'what differs?  --vary'}: expected ENTRY=VALUE,VALUE,..., like "
                "model.args.partition=sec,window,random; to see a comparison again, give its folder and nothing else"
            )
        if entry in FIXED or entry in columns:
            raise ValueError(f"--vary {entry}: {FIXED.get(entry, 'given twice')}")
        columns[entry] = _split(values)
        if len(columns[entry]) < 2 or "" in columns[entry]:
            raise ValueError(f"--vary {one}: expected two or more different values with commas between")
    counts = [f"{entry} has {len(values)} values" for entry, values in columns.items()]
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"--vary: {', '.join(counts)}; entries that change together need equally many")
    rows = list(zip(*columns.values()))
    if len(set(rows)) < len(rows):
        raise ValueError(f"--vary {' '.join(vary)}: the same values twice; expected different ones")
    plain = len({row[0] for row in rows}) == len(rows)
    return list(columns), {row[0] if plain else ", ".join(row): row for row in rows}


def _split(values: str) -> list[str]:
    """At the commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in values:
        if quote or sign in "\"'":
            quote = "" if sign == quote else quote or sign
        depth += 0 if quote else (sign in "[{(") - (sign in ")}]")
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _imported(words: Sequence[str]) -> list[str]:
    """The words without --import MODULE, which is imported: from this folder, or installed."""
    left: list[str] = []
    waiting = list(words)
    while waiting:
        option, equals, value = (word := waiting.pop(0)).partition("=")
        if option != "--import":
            left.append(word)
            continue
        name = value if equals else waiting.pop(0) if waiting else ""
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--import {name}: expected the name of a Python module, like my_partitions")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(f"--import {name}: {error}; run it in the folder of {name.partition('.')[0]}.py") from None
        except Exception as error:  # whatever is wrong in it; --debug shows where
            raise ValueError(f"--import {name}: {type(error).__name__}: {error}; --debug shows where") from error
    return left
