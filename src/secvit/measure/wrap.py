"""Put a wrapper around functions of the library for a while, so that the library holds no counters or timers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

Function = Callable[..., Any]


@contextmanager
def wrapped(wrapper: Callable[[Function], Function], *places: str) -> Iterator[None]:
    """Replace the function at each place, "module:name" or "module:Class.name", by wrapper(function); undone after."""
    targets = [_owner_and_name(place) for place in places]
    originals = [getattr(module, name) for module, name in targets]
    try:
        for (module, name), original in zip(targets, originals):
            setattr(module, name, wrapper(original))
        yield
    finally:
        for (module, name), original in zip(targets, originals):
            setattr(module, name, original)


def _owner_and_name(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    inside, _, name = path.rpartition(".")
    owner = import_module(module)
    return getattr(owner, inside) if inside else owner, name
