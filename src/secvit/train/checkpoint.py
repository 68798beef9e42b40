"""Checkpoints that survive a kill at any moment: write to step_N.tmp, fsync, rename to step_N.

checkpoints/step_00001234/
    model.safetensors   the model's own weights under its own names
    ema.safetensors     the averaged weights, if they are kept
    state.pt            optimizer, step, best result, ...: tensors and plain types only
    config.yaml         the resolved recipe
    provenance.json     versions, commit, hardware
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from secvit.weights import fsync, unpickle, weight_bytes, write_through

FOLDER = "checkpoints"


# -- writing -----------------------------------------------------------------------------------


def save_checkpoint(
    output: Path,
    step: int,
    model: nn.Module,
    ema: nn.Module | None,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Path:
    """Write step_N completely or not at all.  Left-overs of a killed save are removed first."""
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob("*.tmp"):
        shutil.rmtree(left_over)
    final = folder / f"step_{step:08d}"
    if final.exists():
        return final
    temporary = final.with_name(final.name + ".tmp")
    temporary.mkdir()
    try:
        write_through(temporary / "model.safetensors", weight_bytes(model.state_dict()))
        if ema is not None:
            write_through(temporary / "ema.safetensors", weight_bytes(ema.state_dict()))
        tensors = io.BytesIO()
        torch.save(dict(state), tensors)
        write_through(temporary / "state.pt", tensors.getvalue())
        write_through(temporary / "config.yaml", to_yaml(config))
        write_through(temporary / "provenance.json", json.dumps(dict(about), indent=2).encode())
        fsync(temporary)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(folder)
    return final


def prune(output: Path, keep_last: int, best_step: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one."""
    for path in complete(output)[:-keep_last]:
        if path.name != f"step_{best_step or 0:08d}":
            shutil.rmtree(path)


def to_yaml(config: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(_plain(config), sort_keys=False).encode()


def check_writable(output: Path) -> None:
    """Fail before training, not at the first save."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(f"{output}: cannot write there ({error.strerror}); choose another output folder") from None


# -- reading -----------------------------------------------------------------------------------


def complete(output: Path) -> list[Path]:
    """The finished checkpoints below an output folder, oldest first."""
    return sorted(p for p in (output / FOLDER).glob("step_*") if p.name[5:].isdigit())


def latest(output: str | os.PathLike[str]) -> Path | None:
    """The newest finished checkpoint of a run, or None."""
    return next(reversed(complete(Path(output))), None)


def load_state(checkpoint: Path) -> dict[str, Any]:
    state = unpickle(checkpoint / "state.pt")
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{checkpoint / 'state.pt'}: not the state of a run of this library")
    return state


# -- parts -------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Tuples as lists, recursively: YAML that any reader loads."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
