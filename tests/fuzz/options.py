"""Recipes in YAML and the words of commands: `secvit` is called in this process; training is not begun."""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml

from secvit import cli, recipes, runs
from tests.fuzz.case import Case
from tests.fuzz.images import encoded
from tests.fuzz.mutate import ODD, damaged, no_json, replaced
from tests.fuzz.runs import BOMB


class Call(NamedTuple):
    """Words of a command.  field, value: what the recipe must hold then."""

    words: list[str]
    field: str = ""
    value: Any = None


class Begun(BaseException):
    """Training would begin now, by this recipe."""

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe


@functools.cache
def known_recipes() -> tuple[str, ...]:
    chosen = {}
    for name in recipes.every():
        chosen.setdefault(name.partition(".")[0], name)
    return tuple(chosen.values())


def numbers(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of all numbers of a recipe."""
    for one in fields(recipe):
        value = getattr(recipe, one.name)
        if is_dataclass(value):
            yield from numbers(value, f"{prefix}{one.name}.")
        elif type(value) in (int, float):
            yield f"{prefix}{one.name}", value


def nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def make(rng: random.Random, folder: Path) -> Case:
    recipe = rng.choice(known_recipes())
    key, value = rng.choice(list(numbers(recipes.find(recipe)())))
    train = ["train", recipe, "--data", str(folder), "--output", str(folder / "run")]
    file, meant, names = folder / "mine.yaml", "either", (key, key.rpartition(".")[2])
    kind = rng.choice(["form", "form", "value", "value", "key", "text", "bytes", "files", "words", "words", "words"])
    as_file = rng.random() < 0.5
    if kind == "words":
        return _words(rng, folder)
    if kind in ("form", "value"):
        given = value if kind == "form" else rng.choice([one for one in ODD if not _long(one)])
        meant = "harmless" if kind == "form" else "either"
        if isinstance(given, (list, dict)) or (isinstance(given, str) and not given.strip(" 0123456789.")):
            meant = "either"
        elif isinstance(given, str) and given not in ("1", "1.5", "nan", "true"):
            meant = "wrong"
        change = f"{kind}: {type(given).__name__}"
        if as_file:
            file.write_text(yaml.safe_dump(nested(key, given)), errors="surrogatepass")
            words, names = [*train, "--config", str(file)], (*names, str(file))
        else:
            words = [*train, f"--{key}={given}".encode("utf-8", "replace").decode()]
        return Case(change, meant, names, Call(words, key if kind == "form" else "", value))
    if kind == "key":
        other = rng.choice([f"{key}x", "nonsense", f"{key}.deeper", "", "__class__", "loop.__dict__", "a b", "--"])
        if as_file:
            file.write_text(yaml.safe_dump(nested(other, 1)))
            return Case("unknown key", "wrong", (str(file), other), Call([*train, "--config", str(file)]))
        return Case(
            "unknown option", "wrong", (other, "NestedArg(key='deeper'"), Call([*train, f"--{other or 'x'}", "1"])
        )
    data = yaml.safe_dump(nested(key, value)).encode()
    change = kind
    if kind == "text":
        change, data, meant = rng.choice([
            (*no_json(rng, b'{"optim": {"lr": 0.1}}'), "either"), ("aliases of aliases", BOMB.encode(), "either"),
            ("a tag that runs code", b"optim: !!python/object/apply:os.system ['true']\n", "wrong"),
            ("an anchor in itself", b"optim: &a [*a]", "wrong"), ("a list", b"- 1\n- 2\n", "wrong"),
            ("a tab", b"optim:\n\tlr: 1\n", "wrong"), ("a key twice", b"optim: {lr: 1, lr: 2}\n", "either"),
        ])  # fmt: skip
    elif kind == "bytes":
        change, data = damaged(rng, data)
    file.write_bytes(data)
    if kind == "files":
        change, meant = replaced(rng, file), "either" if file.is_file() else "wrong"
        meant = "either" if change == "empty" else "wrong"
    return Case(f"--config: {change}", meant, (str(file),), Call([*train, "--config", str(file)]))


def _long(value: Any) -> bool:
    return isinstance(value, str) and (len(value) > 1000 or "\0" in value or "\ud800" in value)


def _words(rng: random.Random, folder: Path) -> Case:
    """Words of other commands that cannot be used; the last one is to blame, or what is given with it."""
    photo, nowhere, broken = str(folder / "photo.png"), str(folder / "nowhere"), str(folder / "broken.pth")
    image = encoded(rng)
    Path(photo).write_bytes(image[2])
    Path(broken).write_bytes(b"no weights")
    words, blame = rng.choice([
        (["predict", nowhere], nowhere), (["predict", broken], broken), (["predict", photo, "--model", "nothing"], "nothing"),
        (["predict", photo, "--checkpoint", nowhere], nowhere), (["predict", photo, "--checkpoint", broken], broken),
        (["predict", photo, "--top", "x"], "top"), (["predict", "secvit_nano.cifar10"], "photos"),
        (["predict", photo, "--nonsense"], "nonsense"), (["evaluate", nowhere], nowhere), (["evaluate", broken], broken),
        (["evaluate", "--model", "secvit_nano.cifar10", "--data", nowhere], nowhere), (["evaluate", photo], photo),
        (["evaluate", "--model", "nothing", "--data", "digits"], "nothing"), (["evaluate", "--data", "digits"], "which run"),
        (["detect", photo, "--weights", nowhere], nowhere), (["detect", photo, "--weights", broken], broken),
        (["segment", photo, "--weights", nowhere], nowhere), (["segment", photo, "--weights", broken], broken),
        (["convert", broken, str(folder / "x.safetensors"), "--model", "secvit_nano"], broken),
        (["convert", nowhere, str(folder / "x.pth"), "--model", "secvit_nano"], nowhere), (["convert", broken], "target"),
        (["cluster", nowhere], nowhere), (["cluster", photo, "--model", "nothing"], "nothing"), (["app", "--port", "x"], "port"),
        (["train", "nothing.here"], "nothing.here"), (["train", "classification.nothing"], "classification.nothing"),
        (["train", "a\0b"], "a\0b"), (["train", "..."], "..."), (["train", "os.path"], "os.path"), (["nonsense"], "nonsense"),
        (["train", "classification.finetune"], "--data"), (["train", "classification.digits", "--loop"], "loop"),
        (["ask", photo, "what?", "--weights", nowhere], nowhere), (["patch-report", "nothing", "--size", "64"], "nothing"),
    ])  # fmt: skip
    shown = " ".join(word for word in words if not word.startswith(str(folder)))
    return Case(f"secvit {shown}", "wrong", (blame, repr(blame)[1:-1]), Call(words))


def run(case: Case) -> str:
    call: Call = case.data
    errors, out = io.StringIO(), io.StringIO()

    def begin(recipe: Any, *_: Any, **__: Any) -> None:
        raise Begun(recipe)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(runs, "train", begin))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stack.enter_context(contextlib.redirect_stdout(out))
        try:
            code = cli.main(call.words)
        except SystemExit as exit:
            code = exit.code
        except Begun as begun:
            if call.field and (found := dict(numbers(begun.recipe))[call.field]) != call.value:
                return f"{call.field} is {found}, not {call.value}"
            return ""
    if code == 2:
        raise ValueError(errors.getvalue())
    return f"exit code {code} without training: {out.getvalue()[:80]!r}"
