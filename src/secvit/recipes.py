"""Recipes by name, `slice.recipe`: the public functions of each slice's `recipes` module that need no argument."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import secvit


def find(name: str) -> Callable[[], Any]:
    """The function behind a recipe's name; ValueError, with the names there are, for one that is not there."""
    where, _, recipe = name.rpartition(".")
    try:
        if not where:
            raise ModuleNotFoundError(name="secvit")
        module = importlib.import_module(f"secvit.{where}.recipes")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("secvit"):
            raise
        raise ValueError(f"no recipe {name!r}; `secvit train --help` lists them") from None
    known = of(module)
    if recipe not in known:
        raise ValueError(f"no recipe {name!r}; {where} has {', '.join(known)}")
    return known[recipe]


def of(module: ModuleType) -> dict[str, Callable[[], Any]]:
    """The recipes of one module."""
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and name[0] != "_" and not inspect.signature(function).parameters
    }


def every() -> dict[str, Callable[[], Any]]:
    """The recipes of all slices whose packages are installed."""
    found = {}
    for package in sorted(p.name for p in pkgutil.iter_modules(secvit.__path__) if p.ispkg):
        try:
            module = importlib.import_module(f"secvit.{package}.recipes")
        except ImportError:
            continue
        found |= {f"{package}.{name}": function for name, function in of(module).items()}
    return found
