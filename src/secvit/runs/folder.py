"""Which weights a run's folder stands for: its own, or those of its newest checkpoint."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from secvit.fields import read_json
from secvit.models.saved import saved_config
from secvit.train.checkpoint import MANIFEST, fault, latest, newest_whole, number

logger = logging.getLogger(__name__)
OWN = ("model.safetensors", "model.safetensors.index.json", "ema.safetensors")


def weights_in(path: Path, quiet: bool = False) -> Path:
    """The folder, or its newest whole checkpoint where its own weights are missing, or of an earlier step.

    A run that was stopped leaves weights; one that went on and was killed leaves newer checkpoints beside them.
    quiet: only what it is, so checksums are not compared, and nothing is said.
    """
    if not quiet and (path / MANIFEST).exists() and (damage := fault(path)):
        raise ValueError(f"{damage}; give another checkpoint")
    own, newest = any((path / name).exists() for name in OWN), latest(path)
    if newest is None:
        if not own and not (path / "config.json").exists():
            raise ValueError(f"{path}: a folder without weights or checkpoints; give the folder of `secvit train`")
        return path
    if quiet:
        return path if own else newest
    return _newer(path, newest) if own else _whole(path)


def result_of(path: Path) -> dict[str, Any]:
    """What result.json says, "steps" at least; {} where that is not known."""
    try:
        result = read_json(path / "result.json")
    except (ValueError, OSError):
        return {}
    return result if isinstance(result, dict) and isinstance(result.get("steps"), int) else {}


def _newer(path: Path, newest: Path) -> Path:
    """Of a folder's own weights and its checkpoints, the newer ones; transformers opens the folder alone."""
    done = result_of(path)
    behind = (number(newest) or 0) > done.get("steps", math.inf)
    if behind and saved_config(newest).get("task") != "vlm":
        return _whole(path)
    if behind or done.get("stopped"):
        logger.warning(
            "%s: not finished; its weights are of step %s, its newest checkpoint is %s",
            path,
            done["steps"],
            newest.name,
        )
    return path


def _whole(path: Path) -> Path:
    whole, faults = newest_whole(path)
    for damage in faults.values():
        logger.warning("%s", damage)
    assert whole is not None
    logger.warning(
        "%s: not finished; taking its newest checkpoint%s, %s", path, " that is whole" * bool(faults), whole.name
    )
    return whole
