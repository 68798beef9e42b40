"""Put a wrapper around functions of the library for a while, so that the library holds no counters or timers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

Function = Callable[..., Any]


@contextmanager
def wrapped(wrapper: Callable[[Function], Function], *places: str) -> Iterator[None]:
    """Replace the function at each place, "package.module:name", by wrapper(function); undone at the end."""
    # by import_module: secvit.ops.cluster, as an attribute, is the function of that name
    found = [(import_module(module), name) for module, name in (place.split(":") for place in places)]
    originals = [getattr(module, name) for module, name in found]
    try:
        for (module, name), original in zip(found, originals):
            setattr(module, name, wrapper(original))
        yield
    finally:
        for (module, name), original in zip(found, originals):
            setattr(module, name, original)
