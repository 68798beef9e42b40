"""Options of a command from the signatures and docstrings of the functions that do the work."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from secvit.extras import needs

INNER = ("self", "tell", "progress", "path")  # parameters that are not for a command line


def new_parser(prog: str, description: str = "", usage: str | None = None) -> Any:
    """A parser of jsonargparse's for which what cannot be used is a ValueError.

    Its `words` are what is parsed, its `files` name where options came from, and its `elsewhere` tells whose an option
    is that does not belong here.
    """
    return _classes()(prog=prog, description=description, usage=usage)


@functools.cache
def _classes() -> Any:
    with needs("the secvit command", "jsonargparse", "command"):
        from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):
        """Keeps the lines of a description as they are written."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return "\n".join(indent + line for line in text.splitlines())

    class Parser(ArgumentParser):
        words: Sequence[str] = ()
        files: tuple[str, ...] = ()
        elsewhere: Callable[[str], str] | None = None

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            options = [option for action in self._actions for option in action.option_strings]
            words = [word.partition("=")[0] for word in self.words if word.startswith("--")]
            for word in (word for word in words if "nrecognized" in message and word not in options):
                near = get_close_matches(word, options, 1)
                owner = self.elsewhere(word.lstrip("-")) if self.elsewhere else ""
                whose = f"; it belongs to {owner}" if owner else ""
                meant = f"; did you mean {near[0]}?" if near and not whose else ""
                raise ValueError(f"{word} is no option of {self.prog}{whose}{meant}; {self.prog} --help lists them")
            more = f"; {self.prog} --help says more" if "required" in message else ""
            raise ValueError(_plainer(message) + more + from_files(self.files))

    return functools.partial(Parser, formatter_class=Formatter, allow_abbrev=False)


def _plainer(message: str) -> str:
    """jsonargparse's words about a value, with the option's name and without Python's types."""
    message = re.sub(r'^Parser key "([^"]+)":\s*', r"--\1: ", message)
    message = re.sub(r"[Ee]xpected an? <class '(\w+)'>", r"expected \1", message)
    return re.sub(r"[Ee]xpected a typing\.Literal\[([^]]*)\]", r"expected one of \1", message)


def from_files(files: Iterable[str]) -> str:
    """What an error adds if options came from files."""
    return f" (with --config {', '.join(files)})" if files else ""


def parse(
    prog: str,
    words: Sequence[str],
    functions: Sequence[Callable[..., Any]],
    positional: Sequence[str] = (),
    description: str = "",
    examples: str = "",
    elsewhere: Callable[[str], str] | None = None,
    skip: Collection[str] = (),
) -> list[dict[str, Any]]:
    """What the words say for each function, by its parameters' names.

    positional: parameters that are words without an option's name, in order; those of several values take one or more.
    description: what `--help` begins with; else the last function's docstring.
    """
    text = description or summary(functions[-1])
    parser = new_parser(prog, f"{text}\n\n{examples}".rstrip())
    parser.elsewhere, parser.words = elsewhere, words
    names = [{**parameters(function, skip)} for function in functions]
    merged: dict[str, tuple[inspect.Parameter, Any, str]] = {}
    for function, own in zip(functions, names, strict=True):
        texts, hints = explained(function), get_type_hints(function)
        merged |= {name: (parameter, hints.get(name, str), texts.get(name, "")) for name, parameter in own.items()}
    for name in [*positional, *(name for name in merged if name not in positional)]:
        add(parser, name, *merged[name], positional=name in positional)
    parser.add_argument("--config", action="config", help="YAML file with options; --print_config writes one")
    parsed = parser.parse_args(list(words))
    return [{name: parsed[name] for name in own} for own in names]


def parameters(function: Callable[..., Any], skip: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """Those that a command line can give."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in (*INNER, *skip) and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def add(parser: Any, name: str, parameter: inspect.Parameter, hint: Any, text: str, positional: bool) -> None:
    required = parameter.default is parameter.empty
    options: dict[str, Any] = {"help": text.replace("%", "%%")}
    item, several = element(hint)
    if several:
        options |= {"type": item, "nargs": several}
    elif hint is not bool:
        options["type"] = item
    if positional:
        if not required:
            options |= {"nargs": "?", "default": parameter.default}
        parser.add_argument(name, **options)
        return
    options |= {"required": True} if required else {"default": _plain(parameter.default)}
    flags = ["-o", f"--{name}"] if name == "output" else [f"--{name}"]
    if hint is bool and parameter.default is False:
        parser.add_argument(*flags, action="store_true", help=options["help"])
    elif hint is bool:
        from jsonargparse import ActionYesNo

        parser.add_argument(*flags, action=ActionYesNo(no_prefix="no_"), default=True, help=options["help"])
    else:
        parser.add_argument(*flags, **options)


def element(hint: Any) -> tuple[Any, str | int | None]:
    """Of a list's hint, the hint of one item and how many words it takes; None where it is no list."""
    if get_origin(hint) in (Union, types.UnionType):
        if str in get_args(hint) and any(hasattr(inner, "forward") for inner in get_args(hint)):
            return str, None  # a model, or the name of one
        lists = [inner for inner in get_args(hint) if element(inner)[1]]
        return element(lists[0]) if lists else (hint, None)
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return get_args(hint)[0], len(get_args(hint))
    if isinstance(origin := get_origin(hint), type) and issubclass(origin, Iterable):
        inner = get_args(hint)[0]
        return (str if str in get_args(inner) else inner), "+"
    return hint, None


def summary(function: Callable[..., Any]) -> str:
    """A docstring up to the lines about parameters."""
    lines = (inspect.getdoc(function) or "").splitlines()
    names = inspect.signature(function).parameters
    kept = []
    for line in lines:
        if line.strip() == "Args:" or ((entry := _entry(line)) and set(entry[0]) & set(names)):
            break
        kept.append(line)
    return "\n".join(kept).strip()


def explained(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each parameter: entries "name: text", whose further lines are indented."""
    texts: dict[str, str] = {}
    names: list[str] = []
    indent = 0
    doc = inspect.getdoc(function) or ""
    for line in doc.splitlines():
        here = len(line) - len(line.lstrip())
        if entry := _entry(line):
            names, indent = entry[0], here
            texts |= dict.fromkeys(names, entry[1])
        elif names and line.strip() and here > indent:
            for name in names:
                texts[name] += " " + line.strip()
        else:
            names = []
    return texts


def _entry(line: str) -> tuple[list[str], str] | None:
    match = re.match(r"\s*(\w+(?:(?:, | \| )\w+)*): (.+)", line)
    return (re.split(r", | \| ", match[1]), match[2].strip()) if match else None


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default
