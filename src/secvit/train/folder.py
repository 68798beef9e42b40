"""Which weights a run's folder stands for: its own, or those of its newest checkpoint."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

from secvit.fields import read_json, read_yaml
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


def start_of(source: str | os.PathLike[str]) -> str:
    """What a recipe's `init` stands for: of a folder `weights_in` it, else the file or name as it is."""
    path = Path(source)
    return str(weights_in(path)) if path.is_dir() else str(source)


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
    if behind and not _is_language_model(newest):
        return _whole(path)
    if behind or done.get("stopped"):
        logger.warning(
            "%s: not finished; its weights are of step %s, its newest checkpoint is %s",
            path,
            done["steps"],
            newest.name,
        )
    return path


def _is_language_model(checkpoint: Path) -> bool:
    config = checkpoint / "config.yaml"
    content = read_yaml(config) if config.is_file() else None
    return isinstance(content, dict) and content.get("task") == "vlm"


def _whole(path: Path) -> Path:
    newest, faults = newest_whole(path)
    for damage in faults.values():
        logger.warning("%s", damage)
    assert newest is not None
    logger.warning(
        "%s: not finished; taking its newest checkpoint%s, %s", path, " that is whole" * bool(faults), newest.name
    )
    return newest
