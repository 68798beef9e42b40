"""The authors' checkpoints to ours and back, key by key.

Names differ, 1x1 convolutions are Linear here, and the rows of `qkv` move from (q | k | v, head,
channel) to (head, q | k | v, channel).  All of it is exact.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

RENAMES = (  # authors' name, ours
    ("patch_embed.proj.", "stem."),
    (".pos.", ".cpe."),
    (".norm1.norm.", ".norm1."),
    (".norm2.norm.", ".norm2."),
    (".attn.out_proj.", ".attn.proj."),
    (".downsample.reduction.", ".downsample.0."),
    (".downsample.norm.", ".downsample.1."),
)
LINEAR = re.compile(r"\.(qkv|out_proj|proj|fc1|fc2)\.weight$|^head\.weight$|^head\.fc\.weight$")


def from_authors(state: Mapping[str, Tensor], num_heads: tuple[int, ...]) -> dict[str, Tensor]:
    """A state dict of the authors' network under our names.  num_heads: heads of the four stages."""
    ours = {}
    for key, value in state.items():
        if key.endswith("RoPE.angle"):  # a constant, computed here
            continue
        if ".gamma_" in key:
            value = value.flatten()
        elif LINEAR.search(key) and not key.startswith(("proj.", "patch_embed.")):
            value = value.flatten(1)
        if ".qkv." in key:
            value = _move_rows(value, num_heads[int(key.split(".")[1])], to_packed=True)
        ours[_our_name(key)] = value
    return ours


def to_authors(state: Mapping[str, Tensor], num_heads: tuple[int, ...]) -> dict[str, Tensor]:
    """Undo `from_authors`, rotary angles included."""
    theirs = {}
    for key, value in state.items():
        name = _authors_name(key)
        if ".ls1." in key or ".ls2." in key:
            value = value.view(1, -1, 1, 1)
        if ".qkv." in key:
            value = _move_rows(value, num_heads[int(key.split(".")[1])], to_packed=False)
        if value.dim() == 2:
            value = value[:, :, None, None]
        theirs[name] = value
    for i, heads in enumerate(num_heads):
        head_dim = theirs[f"layers.{i}.blocks.0.attn.out_proj.bias"].shape[0] // heads
        angle = 1.0 / (10000.0 ** torch.linspace(0, 1, head_dim // 4))
        theirs[f"layers.{i}.RoPE.angle"] = angle.repeat_interleave(2)
    return theirs


def _move_rows(value: Tensor, heads: int, to_packed: bool) -> Tensor:
    """Rows (3, h, D) <-> (h, 3, D) of a qkv weight or bias."""
    lead = (3, heads) if to_packed else (heads, 3)
    return value.unflatten(0, (*lead, -1)).transpose(0, 1).flatten(0, 2).contiguous()


def _our_name(key: str) -> str:
    for theirs, ours in RENAMES:
        key = key.replace(theirs, ours)
    key = re.sub(r"\.gamma_(\d)$", r".ls\1.gamma", key)
    key = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", key)
    key = re.sub(r"^layers\.", "stages.", key)
    return re.sub(r"^(proj|norm)\.", r"head.\1.", re.sub(r"^head\.", "head.fc.", key))


def _authors_name(key: str) -> str:
    key = re.sub(r"^head\.(proj|norm)\.", r"\1.", re.sub(r"^head\.fc\.", "head.", key))
    key = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
    key = re.sub(r"^stages\.", "layers.", key)
    key = re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", key)
    for theirs, ours in RENAMES:
        if theirs == ".downsample.norm.":
            key = key.replace(ours, theirs) if ".downsample." in key else key
        else:
            key = re.sub("^" + re.escape(ours), theirs, key) if ours == "stem." else key.replace(ours, theirs)
    return key


def is_authors(state: Mapping[str, Tensor]) -> bool:
    return "patch_embed.proj.0.weight" in state


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's hook on loading: the authors' keys become ours, ours pass unchanged."""
    return from_authors(state, heads_of(model)) if is_authors(state) else state


def heads_of(model: nn.Module) -> tuple[int, ...]:
    return tuple(stage.blocks[0].attn.num_heads for stage in model.stages)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict of a .safetensors or .pth file; a pickle that carries code is refused."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return load_file(path)
    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and was not loaded, because loading it could run code; "
            f"save its state dict alone with torch.save, or as .safetensors ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint torch can read: {str(error).splitlines()[0]}") from error
    for name in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict; expected tensors by name, or a dict with one under 'model'")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in content.items()}


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError with every kind of mismatch, a few names of each, where `state` does not fill `expected`."""
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
    lines = [
        f"  {len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for kind, names in problems
        if names
    ]
    if lines:
        raise ValueError(f"{what}\n" + "\n".join(lines))


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], model: str, reverse: bool = False) -> int:
    """Write the authors' checkpoint `source` as `target` for `timm.create_model(model, checkpoint_path=target)`.

    reverse: from ours to the authors' layout.  The suffix of `target` chooses .safetensors or .pth.
    Returns the number of tensors.  Raises ValueError with a report where keys or shapes do not fit.
    """
    import timm

    state = read_checkpoint(source)
    classes = next((state[k].shape[0] for k in ("head.weight", "head.fc.weight") if k in state), 1000)
    network = timm.create_model(model, num_classes=classes, device="meta")
    heads = heads_of(network)
    if not reverse and not is_authors(state):
        raise ValueError(f"{source} is not in the authors' layout (no key patch_embed.proj.0.weight)")
    ours = state if reverse else from_authors(state, heads)
    hint = f"{source} does not fit {model}; presets that do: {', '.join(fitting_models(ours)) or 'none'}"
    check_fit(ours, network.state_dict(), hint)
    result = to_authors(ours, heads) if reverse else ours
    save_atomically({key: value.contiguous() for key, value in result.items()}, target)
    return len(result)


def fitting_models(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the SECViT presets that a state dict in our layout fills."""
    import timm

    names = []
    for name in timm.list_models("secvit_*"):
        expected = timm.create_model(name, num_classes=1, device="meta").state_dict()
        same = all(key in state and state[key].shape[1:] == value.shape[1:] for key, value in expected.items())
        if same and len(expected) == len(state):
            names.append(name)
    return names


def save_atomically(state: dict[str, Tensor], target: str | os.PathLike[str]) -> None:
    """Write a state dict under a temporary name, then rename: nothing half-written is left."""
    target = Path(target)
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent}: no such folder")
    partial = target.with_name(target.name + ".part")
    try:
        if target.suffix == ".safetensors":
            save_file(state, partial, metadata={"format": "pt"})
        else:
            torch.save(state, partial)
        os.replace(partial, target)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
