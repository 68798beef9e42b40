"""Weight files: read without running code, compared before loading, written whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a .safetensors or .pth file, or in a folder of a run or checkpoint (averaged ones first).

    Pickles are read with weights_only=True: a file that carries code is refused.  State dicts are
    looked for under the usual names, and prefixes of wrappers are taken off.
    """
    path = Path(path)
    if path.is_dir():
        averaged, plain = path / "ema.safetensors", path / "model.safetensors"
        path = averaged if averaged.exists() else plain
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    found = unpickle(path)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: holds no state dict; expected tensors by name, or a dict with one under 'model'")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(key)): value for key, value in found.items()}


def unpickle(path: Path) -> Any:
    """Tensors and plain values of a torch file; anything else in it is refused."""
    try:
        # about pickle protocols: either it loads or it does not; training scripts leave their arguments inside
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; check the path") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values "
            f"({reason}). Save the state dict alone, best as safetensors."
        ) from None


def misfit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What keeps `found` from filling `wanted`, a few names of each kind; "" where it fits."""
    reshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    kinds = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "of another shape": reshaped,
    }
    return "; ".join(f"{len(names)} {kind} ({few(names)})" for kind, names in kinds.items() if names)


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights that fit exactly; otherwise a ValueError reports what differs."""
    found = read_weights(path)
    if report := misfit(found, model.state_dict()):
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: {report}. "
            "Create the model that was saved, with the same number of classes."
        )
    model.load_state_dict(found)


def load_backbone(model: nn.Module, path: str | os.PathLike[str], head: str = "head") -> list[str]:
    """Load all weights but those of the head, which stay new where they are missing or differ.

    head: name of the part that may differ.  Returns the names of its tensors that stayed new.
    """
    found, wanted = read_weights(path), model.state_dict()
    mine = {key: value for key, value in found.items() if key.split(".")[0] != head}
    backbone = {key: value for key, value in wanted.items() if key.split(".")[0] != head}
    if report := misfit(mine, backbone):
        raise ValueError(
            f"{path} does not fit {type(model).__name__} without its head: {report}. "
            "Give the name and the arguments of the network that was saved."
        )
    rest = {key: found[key] for key in wanted.keys() - mine.keys() if key in found}
    fitting = {key: value for key, value in rest.items() if value.shape == wanted[key].shape}
    model.load_state_dict({**mine, **fitting}, strict=False)
    return sorted(wanted.keys() - mine.keys() - fitting.keys())


def weight_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors bytes; tied tensors are written once per name."""
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    return to_safetensors(copies, metadata={"format": "pt"})


def write_atomically(path: Path, content: bytes) -> None:
    """The whole new file or the old one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_through(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def write_through(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
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
