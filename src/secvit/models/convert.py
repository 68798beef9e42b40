"""The authors' checkpoints to ours and back, key by key.

Names differ, 1x1 convolutions are Linear here, and the rows of `qkv` move from (q | k | v, head,
channel) to (head, q | k | v, channel).  All of it is exact.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from secvit.files import write_atomically
from secvit.weights import misfit, read_weights, weight_bytes

RENAMES = (  # authors' name, ours
    ("patch_embed.proj.", "stem."),
    (".pos.", ".cpe."),
    (".norm1.norm.", ".norm1."),
    (".norm2.norm.", ".norm2."),
    (".attn.out_proj.", ".attn.proj."),
    (".downsample.reduction.", ".downsample.0."),
    (".downsample.norm.", ".downsample.1."),
)
# tensors of each preset: to build all of them, only to see which fits, takes 15 s
TENSORS = {
    "sec_deit_base": 176, "sec_deit_small": 176, "sec_swin_base": 353, "sec_swin_small": 353, "sec_swin_tiny": 185,
    "secvit_base": 974, "secvit_base_release": 954, "secvit_large": 974, "secvit_large_release": 954,
    "secvit_nano": 220, "secvit_small": 598, "secvit_small_release": 580, "secvit_tiny": 328, "secvit_xlarge": 1182,
}  # fmt: skip
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
            heads = num_heads[int(key.split(".")[1])]
            if value.shape[0] % (3 * heads) == 0:  # else it is another model's, and will not fit
                value = _move_rows(value, heads, to_packed=True)
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


def to_packed_rows(value: Tensor, heads: int) -> Tensor:
    """Rows of a qkv weight or bias from (q | k | v, head, channel) to (head, q | k | v, channel)."""
    return _move_rows(value, heads, to_packed=True)


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
    try:
        stages: Any = model.stages
        return tuple(stage.blocks[0].attn.num_heads for stage in stages)
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no layout of the authors'; only SECViT has") from None


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], model: str, reverse: bool = False) -> int:
    """Write the authors' checkpoint `source` as `target` for `timm.create_model(model, checkpoint_path=target)`.

    source: the checkpoint to read, .pth or .safetensors.
    target: the file to write, .safetensors or .pth.
    model: name of the network.
    reverse: from ours to the authors' layout.
    Returns the number of tensors.  Raises ValueError with a report where keys or shapes do not fit.
    """
    target = Path(target)
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent}: no such folder; make it first")
    state = read_weights(source)
    classes = next(
        (state[k].shape[0] for k in ("head.weight", "head.fc.weight") if k in state and state[k].dim()), 1000
    )
    check_name(model)
    network = timm.create_model(model, num_classes=classes, device="meta")
    heads = heads_of(network)
    if not reverse and not is_authors(state):
        raise ValueError(f"{source} is not in the authors' layout (no key patch_embed.proj.0.weight)")
    try:
        ours = state if reverse else from_authors(state, heads)
    except (RuntimeError, IndexError, ValueError) as error:  # tensors of other dimensions, or other stages
        raise ValueError(f"{source} does not fit {model}: {error}") from None
    if report := misfit(ours, network.state_dict()):
        presets = ", ".join(fitting_models(ours)) or "none"
        raise ValueError(f"{source} does not fit {model}; presets that do: {presets}.  It has {report}")
    result = to_authors(ours, heads) if reverse else ours
    if target.suffix == ".safetensors":
        content = weight_bytes(result)
    else:
        pickled = io.BytesIO()
        torch.save({key: value.contiguous() for key, value in result.items()}, pickled)
        content = pickled.getvalue()
    try:
        write_atomically(target, content)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror}") from None
    return len(result)


def check_name(name: str) -> None:
    """A ValueError with the nearest names for a model that timm does not know."""
    if not timm.is_model(name):
        names = [*timm.list_models("sec*"), *timm.list_models()]
        near = difflib.get_close_matches(name, names, 5, 0.5) or timm.list_models("secvit_*")
        raise ValueError(f"no model {name!r} in timm or secvit; near it: {', '.join(near)}")


def fitting_models(state: Mapping[str, Tensor]) -> list[str]:
    """Names of our presets that a state dict in our layout fills."""
    names = []
    for name in timm.list_models("sec*"):
        if TENSORS.get(name, len(state)) != len(state):
            continue
        expected = timm.create_model(name, num_classes=1, device="meta").state_dict()
        same = all(key in state and state[key].shape[1:] == value.shape[1:] for key, value in expected.items())
        if same and len(expected) == len(state):
            names.append(name)
    return names
