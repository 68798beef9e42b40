"""How a run ended, and what it leaves beside its logs and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secvit.train.checkpoint import to_yaml
from secvit.weights import weight_bytes, write_atomically


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


def write_result(
    output: Path, done: Result, config: Mapping[str, Any], own: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """Write model.safetensors, config.yaml and result.json; return what result.json says.

    own: what the application has to say of its result; the rest is the same for all.
    """
    result = {
        **own,
        "steps": done.step,
        "stopped": done.stopped,
        "nonfinite_steps": done.nonfinite,
        "seconds": round(done.seconds, 1),
        **done.about,
        "recipe": recipe,
    }
    if done.main:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "model.safetensors", weight_bytes(done.model.state_dict()))
        write_atomically(output / "config.yaml", to_yaml(config))
        write_atomically(output / "result.json", json.dumps(result, indent=2).encode())
    return result
