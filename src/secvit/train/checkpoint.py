"""Checkpoints that survive a kill at any moment: write to step_N.tmp, fsync, rename to step_N.

checkpoints/step_00001234/
    model.safetensors   the model's own weights under its own names
    ema.safetensors     the averaged weights, if they are kept
    state.pt            optimizer, step, best result, ...: tensors and plain types only
    config.yaml         the resolved recipe
    provenance.json     versions, commit, hardware
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

FOLDER = "checkpoints"


# -- writing -----------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """The whole new file or the old one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        _write(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


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
        _write(temporary / "model.safetensors", weights(model))
        if ema is not None:
            _write(temporary / "ema.safetensors", weights(ema))
        with open(temporary / "state.pt", "wb") as file:
            torch.save(dict(state), file)
            _flush(file)
        _write(temporary / "config.yaml", to_yaml(config))
        _write(temporary / "provenance.json", json.dumps(dict(about), indent=2).encode())
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


def weights(model: nn.Module) -> bytes:
    """The state dict as safetensors bytes; tied tensors are written once per name."""
    return to_bytes(
        {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()},
        metadata={"format": "pt"},
    )


def to_yaml(config: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(_plain(config), sort_keys=False).encode()


def check_writable(output: Path) -> None:
    """Fail before training, not at the first save."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as file:
            file.write(b"\0" * 4096)
            _flush(file)
    except OSError as error:
        raise ValueError(
            f"{output}: cannot write there ({error.strerror}); choose another output folder"
        ) from None


# -- reading -----------------------------------------------------------------------------------


def complete(output: Path) -> list[Path]:
    """The finished checkpoints below an output folder, oldest first."""
    return sorted(p for p in (output / FOLDER).glob("step_*") if p.name[5:].isdigit())


def latest(output: str | os.PathLike[str]) -> Path | None:
    """The newest finished checkpoint of a run, or None."""
    return next(reversed(complete(Path(output))), None)


def load_state(checkpoint: Path) -> dict[str, Any]:
    state = _unpickle(checkpoint / "state.pt")
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{checkpoint / 'state.pt'}: not the state of a run of this library")
    return state


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a .safetensors or .pth file, or in a checkpoint folder (averaged ones first).

    Pickles are read with weights_only=True: a file that carries code is refused.
    """
    path = Path(path)
    if path.is_dir():
        path = next(
            (p for n in ("ema", "model") if (p := path / f"{n}.safetensors").exists()),
            path / "model.safetensors",
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; check the path")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    found = _unpickle(path)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{path}: holds no state dict; expected names with tensors")
    return {str(k).removeprefix("module.").removeprefix("_orig_mod."): v for k, v in found.items()}


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights that fit exactly; otherwise a ValueError reports what differs."""
    found, wanted = read_weights(path), model.state_dict()
    report = [
        *_few("missing", [k for k in wanted if k not in found]),
        *_few("unexpected", [k for k in found if k not in wanted]),
        *_few(
            "of another shape",
            [
                f"{k} {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}"
                for k in wanted
                if k in found and found[k].shape != wanted[k].shape
            ],
        ),
    ]
    if report:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(report)}. "
            "Create the model that was saved, with the same number of classes."
        )
    model.load_state_dict(found)


def _few(what: str, names: list[str], most: int = 3) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return [f"{len(names)} {what} ({', '.join(names[:most])}{more})"]


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about pickle protocols: either it loads or it does not
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; check the path") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values "
            f"({reason}). Save the state dict alone, best as safetensors."
        ) from None


# -- parts -------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Tuples as lists, recursively: YAML that any reader loads."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        _flush(file)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def fsync(folder: Path) -> None:
    """Make the folder's own entries durable (not possible, and not needed, on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
