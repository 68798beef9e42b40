"""Things by name, ours and those that somebody adds from outside the package."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
NAME = re.compile(r"\w[\w.-]*")


class Registry(Generic[T], dict[str, T]):
    """kind: what is named, for messages ("connector").  call: what adds one ("secvit.connectors.register").

    builtin: what has a name from the start; it keeps it.
    """

    def __init__(self, kind: str, call: str, builtin: Mapping[str, T] | None = None) -> None:
        super().__init__(builtin or {})
        self.kind, self.call, self.builtin = kind, call, frozenset(self)

    def add(self, name: str, thing: T) -> T:
        """Give a thing its name.  The same thing made again, as in a notebook, replaces the earlier one."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{self.call}: {name!r} is no name; give letters, digits, underscores, dots and hyphens")
        if name in self.builtin:
            raise ValueError(f"{self.call}: {name} is a built-in {self.kind}; choose another name")
        if name in self and _origin(self[name]) != _origin(thing):
            raise ValueError(f"{self.call}: {'.'.join(_origin(self[name]))} is called {name}; choose another name")
        self[name] = thing
        return thing

    def named(self, name: Any) -> T:
        """The thing of a name; ValueError with the names that are there, the nearest one last."""
        if name in self:
            return self[name]
        near = difflib.get_close_matches(str(name), self, 1)
        nearest = f" (near it: {near[0]})" if near else ""
        raise ValueError(
            f"no {self.kind} {name!r}; choose one of {', '.join(self)}{nearest}; one of your own is "
            f"first added by {self.call}"
        )


def _origin(thing: Any) -> tuple[str, str]:
    return getattr(thing, "__module__", ""), getattr(thing, "__qualname__", repr(thing))
