"""A recipe as options: every number of it can be changed by a word, or in a YAML file."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from secvit import recipes
from secvit.fields import Entry, read_yaml, shown
from secvit.signatures import explained, from_files, new_parser

# what --data is where digits are of no use
FOLDERS = {
    "detection": "a folder in COCO's, YOLO's or Pascal VOC's format (docs/detection.md)",
    "segmentation": "a folder of images and masks (docs/segmentation.md)",
    "vlm": "a JSON of LLaVA's conversations, or a folder with train.json (docs/vlm_training.md)",
}


@dataclass(frozen=True)
class Order:
    """What `secvit train` was told to do."""

    recipe: Any
    name: str
    data: str
    output: str
    resume: str


def read(words: Sequence[str]) -> Order:
    """The order in words: a recipe's name, and changes of it, anywhere among them."""
    name, words = _taken_name(words)
    make = recipes.find(name)
    recipe, any_data = make(), name.endswith(".digits")
    part = recipes.task_of(recipe)
    if "--tiny" in words:
        words.remove("--tiny")
        if part in recipes.TASKS:
            raise ValueError(f"{name} has no --tiny; for a short run: --loop.steps 4")
        any_data = part not in FOLDERS
        recipe = importlib.import_module(f"secvit.{part}").tiny(recipe)
    parser = parser_of(name, recipe, make, any_data)
    # before jsonargparse reads them, without a limit
    files = {file: _config(file) for _, file in _given(words, "--config")}
    parser.files, parser.words = tuple(files), words
    try:
        parsed = parser.parse_args(words)
    except (OverflowError, RecursionError) as error:  # a number of hundreds of digits, brackets in brackets
        line = " ".join(word if len(word) <= 60 else f"{word[:60]}..." for word in words)
        raise ValueError(f"{line}: {error}") from None
    for entry, kind in get_type_hints(type(recipe)).items():
        _check_values(parsed[entry], kind, entry, files)
    if parsed.loop.epochs is not None and parsed.loop.steps is not None:
        parsed.loop[_earlier_length(words, files, recipe)] = None
    try:
        options = parser.instantiate(parsed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}{from_files(files)}") from None
    if not options.data:
        digits = "" if part in FOLDERS else ", or --data digits for a try without a download"
        raise ValueError(f"{name} needs images: give --data DIR{digits}")
    changed = type(recipe)(**{entry.name: options[entry.name] for entry in fields(recipe)})
    changed = recipes.adjusted(recipe, changed, _entries(words, files))
    return Order(changed, name, options.data, options.output, options.resume)


def parser_of(name: str, recipe: Any, make: Any, any_data: bool) -> Any:
    """An option for each number of a recipe, explained by the docstrings of its dataclasses."""
    parser = new_parser(
        f"secvit train {name}",
        f"{make.__doc__ or ''}\n\nEvery number of the recipe can be changed:",
        f"secvit train {name} [--data DIR] [--output DIR] [--tiny] [--optim.lr 1e-3 ...]",
    )
    parser.add_argument("--config", action="config", help="YAML file with changes of the recipe")
    about = FOLDERS.get(recipes.task_of(recipe), 'images: a path, wds/..., hfds/... or "digits" (docs/data.md)')
    parser.add_argument("--data", type=str | None, default="digits" if any_data else None, help=about)
    parser.add_argument("--output", type=str, default=f"runs/{name}", help="folder of the run")
    parser.add_argument("--resume", type=str, default="auto", help="auto, never or a checkpoint")
    for entry, kind in get_type_hints(type(recipe)).items():
        parser.add_argument(f"--{entry}", type=kind, default=getattr(recipe, entry))
        _explain(parser, entry, kind if isinstance(kind, type) and is_dataclass(kind) else type(recipe))
    return parser


def overview() -> str:
    """The recipes by name, in two parts: those to begin with, and those of the paper's tables."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for name, make in recipes.every().items():
        first = next(iter((make.__doc__ or "").strip().splitlines()), "")
        lines[name in recipes.ADDED or name.rpartition(".")[2] in BEGIN].append(f"  {name}\n      {first}")
    return HELP.format(begin="\n".join(lines[True]), others="\n".join(lines[False]))


BEGIN = ("digits", "folder", "finetune", "small")
HELP = """\
usage: secvit train RECIPE [--data DIR] [--output DIR] [--tiny] [changes]

Train by a recipe, and score on what was held out.

Recipes to begin with:
{begin}

Recipes of the paper's tables and of our results:
{others}

Examples:
  secvit train classification.digits --output runs/digits     1,797 real digits, no download
  secvit train classification.digits --tiny                   four steps, to see that it runs
  secvit train classification.finetune --data DIR             DIR/CLASS/*.jpg, DIR/train/CLASS/*.jpg and
                                                              DIR/val/..., tables, shards: docs/data.md
  secvit train RECIPE --optim.lr 1e-3 --loop.epochs 50         change any number of the recipe
  secvit train RECIPE --print_config > my.yaml                 all of them, to edit ...
  secvit train RECIPE --config my.yaml                         ... and to use
  secvit train RECIPE --help                                   what each of them means
  torchrun --nproc-per-node 2 -m secvit.cli train RECIPE       many processes

The same command again goes on from the newest checkpoint in the output folder.
Ctrl-C saves and stops after the current step.  --debug shows tracebacks.
Exit codes: 0 finished, 2 input that cannot be used, 130 stopped by Ctrl-C, 143 by SIGTERM, 75 by the time limit;
after the last three the same command goes on.
"""


def _taken_name(words: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe's name, the first word that is no option or value of one, and the others."""
    for at, word in enumerate(words):
        before = words[at - 1] if at else ""
        if not word.startswith("-") and (not before.startswith("--") or "=" in before or before in ("--tiny",)):
            return word, [*words[:at], *words[at + 1 :]]
    raise ValueError(
        "which recipe?  secvit train --help lists them; for a first try: secvit train classification.digits"
    )


def _given(words: Sequence[str], *options: str) -> Iterator[tuple[str, str]]:
    """Options among the words with their values, "--option value" and "--option=value" alike."""
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in options and (equals or at + 1 < len(words)):
            yield option, value if equals else words[at + 1]


def _entries(words: Sequence[str], files: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The dotted names of what the words and the --config files change."""

    def within(entries: Mapping[str, Any], before: str = "") -> Iterator[str]:
        for key, value in entries.items():
            yield from within(value, f"{before}{key}.") if isinstance(value, Mapping) and value else (before + key,)

    options = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    return options.union(*(within(entries) for entries in files.values()))


def _check_values(value: Any, kind: Any, name: str, files: Iterable[str]) -> None:
    """A ValueError for what jsonargparse leaves to the recipe: null, and numbers that are not finite."""
    if is_dataclass(kind):
        if not hasattr(value, "items"):
            raise ValueError(
                f"{name} is {shown(value)}, expected entries like {fields(kind)[0].name}{from_files(files)}"
            )
        for key, inner in get_type_hints(kind).items():
            _check_values(value[key], inner, f"{name}.{key}", files)
    elif value is None and type(None) not in get_args(kind):
        raise ValueError(f"{name} is null, expected a value{from_files(files)}")
    else:
        parts = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise ValueError(f"{name} is {shown(value)}, expected finite numbers{from_files(files)}")


def _config(file: str) -> dict[str, Any]:
    """The changes of a recipe in a YAML file, {} if it is empty."""
    content = read_yaml(file)
    return {} if content is None else dict(Entry(file, content).fields)


def _earlier_length(words: Sequence[str], files: Mapping[str, Mapping[str, Any]], recipe: Any) -> str:
    """Of `epochs` and `steps`, both set, the one that the other overrides: the recipe's, or the one given first."""
    named: list[str] = []
    for option, value in _given(words, "--loop.epochs", "--loop.steps", "--config"):
        if option == "--config":
            loop = files[value].get("loop")
            entries = {f"loop.{key}": one for key, one in loop.items()} if isinstance(loop, dict) else {}
            entries |= files[value]
        else:
            entries = {option[2:]: None if value == "null" else value}
        named += [name for name in ("epochs", "steps") if entries.get(f"loop.{name}") is not None]
    last = named[-1] if named else "steps" if recipe.loop.steps is not None else "epochs"
    return "epochs" if last == "steps" else "steps"


def _explain(parser: Any, entry: str, kind: type) -> None:
    """Take the help of a recipe's numbers from the `Args:` of its dataclasses."""
    texts = explained(kind)
    for action in parser._actions:
        prefix, _, field = action.dest.rpartition(".")
        if field in texts and prefix in ("", entry) and (prefix or field == entry):
            action.help = texts[field]
    for group in parser._action_groups:
        if group.title == str(kind):
            group.title = f"{entry}: {(kind.__doc__ or '').splitlines()[0]}"
