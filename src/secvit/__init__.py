"""Semantic Equitable Clustering (ICCV 2025) for PyTorch.  `import secvit` registers the models with timm.

Subpackages are imported when they are first named: `secvit.vlm`, `secvit.vis`, `secvit.runs`, ...
"""

import importlib
import pkgutil
from types import ModuleType

from secvit import connectors, models
from secvit.adapt import ClusteredAttention, patch, unpatch
from secvit.layers import route_linears
from secvit.ops import Clustering, Keys, Plan, cluster, register_partition, sec_attention, sec_pool

__version__ = "0.1.0"
__all__ = [
    "ClusteredAttention",
    "Clustering",
    "Keys",
    "Plan",
    "cluster",
    "connectors",
    "models",
    "patch",
    "register_partition",
    "route_linears",
    "sec_attention",
    "sec_pool",
    "unpatch",
]


def __getattr__(name: str) -> ModuleType:
    if name in _submodules():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_submodules()})


def _submodules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)}
