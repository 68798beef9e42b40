"""`secvit.adapt.hf` is imported as soon as transformers' models are, whichever comes first.

So `import secvit` alone stays light, and a model that was saved patched still loads patched.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODELS = "transformers.modeling_utils"


def follow_transformers() -> None:
    """Import `hf` now where transformers' models are there already, else right after they come."""
    if MODELS in sys.modules:
        _import_hf()
    else:
        sys.meta_path.insert(0, _Follower())


def _import_hf() -> None:
    with suppress(ImportError):  # a transformers that is too old for it: `patch` will say so
        importlib.import_module("secvit.adapt.hf")


class _Follower(MetaPathFinder):
    """Finds nothing itself; the module that others find is followed by `hf`."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != MODELS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_follow(module: ModuleType) -> None:
            execute(module)
            _import_hf()

        spec.loader.exec_module = execute_and_follow  # type: ignore[method-assign]
        return spec
