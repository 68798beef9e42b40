"""Weight files: read without running code, compared before loading."""

from __future__ import annotations

import argparse
import logging
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from secvit.fields import abridged

logger = logging.getLogger(__name__)

# where training scripts put a state dict: averaged weights are looked for first
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "params", "net", "weights")
# what wrappers put before the names of a network: DataParallel and DDP, averaging, Lightning, and whatever else
# holds a network as an attribute; the first are preferred where there are several
OUTER = ("ema_model", "model_ema", "ema", "module", "model", "network", "net", "online_model")
# and what torch.compile, FSDP, activation checkpointing and Fabric put anywhere into them
INNER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a .safetensors or .pth file, or in a folder of a run or checkpoint (averaged ones first).

    Pickles are read with weights_only=True: a file that carries code is refused.  State dicts are
    looked for under the usual names, and prefixes of wrappers are taken off.  ValueError where a tensor holds NaN,
    infinity or complex numbers, or is not stored as plain numbers.
    """
    path = Path(path)
    if path.is_dir():
        averaged, plain = path / "ema.safetensors", path / "model.safetensors"
        path = averaged if averaged.exists() else plain
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path")
    if path.suffix == ".safetensors":
        try:
            content: Any = dict(load_file(path))
        except Exception as error:  # the reader raises several kinds on damaged files
            raise ValueError(
                f"{path}: not a readable safetensors file ({error}); copy or download it again, or, of a run, give one "
                "of its checkpoints/"
            ) from None
    else:
        content = state_dict_in(unpickle(path), path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds no state dict; expected tensors by name, or a dict with one under 'model'")
    if not content:
        raise ValueError(f"{path}: holds no tensors; give the file of a network's weights")
    state = unwrapped({str(key): value for key, value in content.items()}, path)
    if wrong := [f"{key} {reason}" for key, value in state.items() if (reason := _damage(key, value))]:
        raise ValueError(f"{path}: {len(wrong)} tensors cannot be used: {abridged(wrong)}; take an undamaged file")
    return state


def state_dict_in(content: Any, path: Path) -> Any:
    """The state dict inside what a training script saved; averaged weights come first, which the log says."""
    while isinstance(content, dict):
        there = [key for key in (*AVERAGED, *PLAIN) if isinstance(content.get(key), dict) and content[key]]
        if not there:
            break
        if there[0] in AVERAGED:
            others = f", not those under {', '.join(map(repr, there[1:]))}" if there[1:] else ""
            logger.warning("%s: takes the averaged weights under %r%s", path, there[0], others)
        content = content[there[0]]
    return content


def unwrapped(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors under the names that the network itself gives them."""
    state = {INNER.sub("", key): value for key, value in state.items()}
    while state:
        counts = Counter(key.partition(".")[0] for key in state if "." in key)
        # a wrapper holds the network, or it and a copy, and little else: counters, losses, metrics
        held = [name for name in OUTER if 3 * counts[name] >= len(state)]
        if not held or 10 * sum(counts[name] for name in held) < 9 * len(state):
            return state
        inside = {
            key.removeprefix(f"{held[0]}."): value for key, value in state.items() if key.startswith(f"{held[0]}.")
        }
        if rest := [key for key in state if not key.startswith(f"{held[0]}.")]:
            logger.warning("%s: takes what is under %s., not %s", path, held[0], abridged(rest))
        state = inside
    return state


def _damage(key: str, value: Tensor) -> str:
    """Why a tensor cannot be a weight, "" if it can."""
    if value.is_complex():
        return f"is {_type(value)}"
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return "is not stored as plain numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "claims more numbers than are stored"
    if value.is_floating_point():
        numbers = value if value.element_size() > 1 else value.float()  # of 8 bits
        if numbers.isnan().any() or (not key.endswith("mask") and not numbers.isfinite().all()):
            return "holds NaN or infinity"
    return ""


def unpickle(path: Path) -> Any:
    """Tensors and plain values of a torch file; anything else in it is refused."""
    _check_packing(path)
    try:
        # about pickle protocols: either it loads or it does not; training scripts leave their arguments inside
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; check the path") from None
    except Exception as error:  # unpickling raises anything on bytes that are not what they claim to be
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values "
            f"({reason}). Save the state dict alone, best as safetensors."
        ) from None


def _check_packing(path: Path) -> None:
    """A ValueError for a file that unpacks to far more than it is: torch does not compress."""
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(info.file_size for info in file.infolist())
    except Exception:  # not a zip file, or a damaged one: torch says so
        return
    if unpacked > 100 * path.stat().st_size:
        raise ValueError(f"{path}: refused, because it unpacks to {unpacked:,} bytes; torch.save does not compress")


def misfit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What keeps `weights` from filling `wanted`, a few names of each kind; "" where it fits."""
    reshaped = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in weights and weights[key].shape != wanted[key].shape
    ]
    kinds = {
        "missing": [key for key in wanted if key not in weights],
        "unexpected": [key for key in weights if key not in wanted],
        "of another shape": reshaped,
        "of another type": [
            f"{key} {_type(weights[key])} instead of {_type(wanted[key])}"
            for key in wanted
            if key in weights and weights[key].is_floating_point() != wanted[key].is_floating_point()
        ],
    }
    return "; ".join(f"{len(names)} {kind} ({abridged(names)})" for kind, names in kinds.items() if names)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights that fit exactly; otherwise a ValueError reports what differs."""
    weights = read_weights(path)
    if report := misfit(weights, model.state_dict()):
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: {report}. "
            "Create the model that was saved, with the same number of classes."
        )
    model.load_state_dict(weights)


def load_backbone(model: nn.Module, path: str | os.PathLike[str], head: str = "head") -> list[str]:
    """Load all weights but those of the head, which stay new where they are missing or differ.

    head: name of the part that may differ.  Returns the names of its tensors that stayed new.
    """
    saved, expected = read_weights(path), model.state_dict()
    backbone_weights = {key: value for key, value in saved.items() if key.split(".")[0] != head}
    backbone = {key: value for key, value in expected.items() if key.split(".")[0] != head}
    if report := misfit(backbone_weights, backbone):
        raise ValueError(
            f"{path} does not fit {type(model).__name__} without its head: {report}. "
            "Give the name and the arguments of the network that was saved."
        )
    rest = {key: saved[key] for key in expected.keys() - backbone_weights.keys() if key in saved}
    fitting = {key: value for key, value in rest.items() if not misfit({key: value}, {key: expected[key]})}
    model.load_state_dict({**backbone_weights, **fitting}, strict=False)
    return sorted(expected.keys() - backbone_weights.keys() - fitting.keys())


def weight_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors bytes; tied tensors are written once per name."""
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    return to_safetensors(copies, metadata={"format": "pt"})
