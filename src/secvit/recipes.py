"""Recipes by name, `slice.recipe`: the public functions of each slice's `recipes` module that need no argument."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import secvit
from secvit.extras import Missing
from secvit.registry import Registry

logger = logging.getLogger(__name__)
# recipes, and the classes of recipes by task, that were added from outside
ADDED: Registry[Callable[[], Any]] = Registry("recipe", "secvit.recipes.register")
TASKS: Registry[type[Any]] = Registry("task", "secvit.runs.register_task")
# entries of a recipe's model that hold for one network, or one head, alone
OWN = {"name": ("args", "patch"), "backbone": ("backbone_args",), "detector": ("args",), "head": ("args",)}


def register(name: str, make: Callable[[], Any]) -> Callable[[], Any]:
    """Let a name stand for a recipe of your own, in this process, in `secvit train NAME`; returns the function.

    name: "flowers" or "mine.flowers"; not one of ours.
    make: a function without arguments that returns a recipe; its docstring's first line is shown by --help.
    """
    if not callable(make) or any(p.default is p.empty for p in inspect.signature(make).parameters.values()):
        raise ValueError(f"secvit.recipes.register({name!r}, {make!r}): give a function without arguments")
    try:
        _ours(name)
    except ValueError:
        return ADDED.add(name, make)
    raise ValueError(f"secvit.recipes.register: {name} is a built-in recipe; choose another name")


def task_of(recipe: Any) -> str:
    """The task that a recipe is for: the one registered for its class, else the slice that it comes from."""
    for task, kind in TASKS.items():
        if type(recipe) is kind:
            return task
    where = type(recipe).__module__.split(".")
    if where[0] != "secvit":
        raise ValueError(f"{type(recipe).__name__} is no recipe of ours; first call secvit.runs.register_task")
    return where[1]


def find(name: str) -> Callable[[], Any]:
    """The function behind a recipe's name; ValueError, with the names there are, for one that is not there."""
    return ADDED[name] if name in ADDED else _ours(name)


def _ours(name: str) -> Callable[[], Any]:
    where, _, recipe = name.rpartition(".")
    try:
        if not where:
            raise ModuleNotFoundError(name="secvit")
        module = importlib.import_module(f"secvit.{where}.recipes")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("secvit"):
            raise
        added = f"; added: {', '.join(ADDED)}" if ADDED else ""
        raise ValueError(f"no recipe {name!r}; `secvit train --help` lists them{added}") from None
    recipes = of(module)
    if recipe not in recipes:
        raise ValueError(f"no recipe {name!r}; {where} has {', '.join(recipes)}")
    return recipes[recipe]


def of(module: ModuleType) -> dict[str, Callable[[], Any]]:
    """The recipes of one module, those included that it imports from its own package."""
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__.startswith(f"{module.__package__}.")
        and name[0] != "_"
        and not inspect.signature(function).parameters
    }


def every() -> dict[str, Callable[[], Any]]:
    """The recipes of all slices whose packages are installed, and those of one's own."""
    recipes: dict[str, Callable[[], Any]] = {}
    for file in sorted(Path(secvit.__path__[0]).glob("*/recipes.py")):
        package = file.parent.name
        try:
            module = importlib.import_module(f"secvit.{package}.recipes")
        except Missing:
            continue
        recipes |= {f"{package}.{name}": function for name, function in of(module).items()}
    return recipes | ADDED


def adjusted(recipe: Any, changed: Any, changed_entries: Collection[str]) -> Any:
    """A changed recipe, without what it says of the recipe's own network where another one was asked for.

    changed_entries: the entries that were changed, "model.name", "loop.steps", ...; these stay as they are.
    Arguments and `patch` of another network, or head, are left out, and so are bundled weights that it lacks
    (detection) or that `model.init` replaces (classification).  A network of one fixed size gets images of that
    size, and instead of the recipe's frozen parts all but the classifier is frozen.  One line in the log says what
    became of what.  ValueError for a network that nobody knows.
    """
    if task_of(recipe) in TASKS:  # its entries are its own, whatever they are called
        return changed
    changes: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    for rule in (_arguments, _weights, _size, _frozen):
        for entry, value, reason in rule(recipe.model, replace(changed.model, **changes)):
            own = f"model.{entry}"
            if not any(
                name == own or name.startswith(f"{own}.") or own.startswith(f"{name}.") for name in changed_entries
            ):
                changes[entry] = value
                reasons.setdefault(entry, []).append(reason)
    if not changes:
        return changed
    lines = (f"--model.{entry} is {value}: {', and '.join(reasons[entry])}" for entry, value in changes.items())
    logger.info("%s; give them to have it otherwise", "; ".join(lines))
    return replace(changed, model=replace(changed.model, **changes))


Change = tuple[str, Any, str]  # an entry of a recipe's model, its new value, and why


def _arguments(old: Any, new: Any) -> Iterator[Change]:
    for choice, entries in OWN.items():
        was, now = getattr(old, choice, ""), getattr(new, choice, "")
        for entry in entries if _network(was) != _network(now) else ():
            if (value := getattr(new, entry, None)) and value == getattr(old, entry):
                yield entry, {}, f"the recipe's {value} is for {was}, not {now}"


def _weights(old: Any, new: Any) -> Iterator[Change]:
    from secvit.models.saved import has_weights

    if getattr(new, "pretrained", False) and new.init:
        yield "pretrained", False, f"the run begins with {new.init}"
    if not getattr(old, "backbone_args", {}).get("pretrained"):
        return
    args = new.backbone_args
    if args.get("pretrained") or new.init:
        return
    if has_weights(new.backbone):
        yield "backbone_args", {**args, "pretrained": True}, f"weights of {new.backbone} are bundled"
    else:
        yield "backbone_args", args, f"no weights of {new.backbone} are bundled, it begins with random ones"
        if new.norm_eval:
            yield "norm_eval", False, "batch norms of random weights have no statistics yet"


def _size(old: Any, new: Any) -> Iterator[Change]:
    import timm

    from secvit.models.convert import check_name

    if hasattr(new, "name") and hasattr(new, "image_size") and _network(new.name) != _network(old.name):
        check_name(new.name)
        pretrained_cfg = timm.get_pretrained_cfg(new.name.partition(".")[0], allow_unregistered=True)
        size = new.args.get("img_size") or (
            pretrained_cfg.input_size[-1] if pretrained_cfg and pretrained_cfg.fixed_input_size else None
        )
        if isinstance(size, int) and size != new.image_size:
            yield "image_size", size, f"{new.name} takes no other size"


def _frozen(old: Any, new: Any) -> Iterator[Change]:
    if getattr(new, "frozen", ()) and new.frozen == old.frozen and _network(new.name) != _network(old.name):
        from secvit.models.saved import create

        network: Any = create(new.name, 1, {**new.args, "device": "meta"})
        heads = network.pretrained_cfg["classifier"]
        heads = {head.partition(".")[0] for head in ([heads] if isinstance(heads, str) else heads)}
        parts = [name for name, part in network.named_children() if any(True for _ in part.parameters())]
        parts += [name for name, _ in network.named_parameters() if "." not in name]
        yield "frozen", tuple(part for part in parts if part not in heads), f"all of {new.name} but its classifier"


def _network(name: str) -> str:
    """Without the tag of its weights; Mask R-CNN in one stage and in three take the same arguments."""
    return name.partition(".")[0].removeprefix("cascade_")
