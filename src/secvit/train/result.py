"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Result:
    """How a run ended.  `model` holds the averaged weights where they are kept; `about` says what ran, and when."""

    model: nn.Module
    step: int
    stopped: str
    metrics: dict[str, float]
    best: float | None
    best_step: int | None
    nonfinite: int
    seconds: float
    main: bool
    about: Mapping[str, Any]
