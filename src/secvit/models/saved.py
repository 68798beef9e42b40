"""Networks by name, with weights from a file, from a run, or from those that ship."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from secvit.adapt import patch
from secvit.models.convert import checkpoint_filter_fn, fitting_models
from secvit.models.secvit import SECViT
from secvit.weights import misfit, read_weights


def create(name: str, num_classes: int, args: Mapping[str, Any] | None = None) -> nn.Module:
    """A timm model; a name that timm does not know is a ValueError with its nearest neighbours."""
    check_name(name)
    try:
        return timm.create_model(name, num_classes=num_classes, **(args or {}))
    except TypeError as error:
        raise ValueError(f"{name} with {dict(args or {})}: {error}") from None
    except RuntimeError as error:  # timm knows no weights under the name, or cannot reach them
        raise ValueError(f"{name} with {dict(args or {})}: {str(error).splitlines()[0]}") from None


def check_name(name: str) -> None:
    if not timm.is_model(name):
        known = [*timm.list_models("sec*"), *timm.list_models()]
        near = difflib.get_close_matches(name, known, 5, 0.5) or timm.list_models("secvit_*")
        raise ValueError(f"no model {name!r} in timm or secvit; near it: {', '.join(near)}")


def has_weights(name: str) -> bool:
    """Whether weights ship for a name, or for its first tag."""
    check_name(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.file)


def load_model(
    name: str, checkpoint: str | os.PathLike[str] | None = None, num_classes: int | None = None
) -> nn.Module:
    """A network in evaluation mode with saved weights: ours, the authors', or those of a run's folder.

    Without a checkpoint, with the weights that ship under the name, else random ones of seed 0.
    Model arguments, image size and class names come from the config.yaml beside the weights, if
    there is one; size and names go to the model's pretrained_cfg.
    num_classes: what the weights must have; None takes what they have.
    """
    check_name(name)
    if checkpoint is None:
        shipped = has_weights(name)
        classes = timm.get_pretrained_cfg(name).num_classes if shipped else num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create(name, 1000 if classes is None else classes, {"pretrained": shipped}).eval()
    path = Path(checkpoint)
    state, config = read_weights(path), saved_config(path)
    known = config.get("model") or {}
    known = known if known.get("name") == name else {}
    if num_classes is None:
        found = [state[k].shape[0] for k in ("head.fc.weight", "head.weight", "fc.weight") if k in state]
        num_classes = found[0] if found else 0
    network = create(name, num_classes, known.get("args"))
    if isinstance(network, SECViT):
        state = checkpoint_filter_fn(state, network)
    if report := misfit(state, network.state_dict()):
        fits = (config.get("model") or {}).get("name") or ", ".join(fitting_models(state)) or "none known"
        raise ValueError(
            f"{path} does not fit {name} with {num_classes} classes; models that it fits: {fits}.  It has {report}"
        )
    network.load_state_dict(state)
    if known.get("patch"):
        patch(network, **known["patch"])
    if known:  # what timm.data.resolve_data_config and whoever names the classes go by
        size = known.get("image_size", network.pretrained_cfg["input_size"][-1])
        seen = {"input_size": (3, size, size), "label_names": config.get("classes")}
        network.pretrained_cfg = {**network.pretrained_cfg, "crop_pct": known.get("crop_pct", 1.0), **seen}
    return network.eval()


def saved_config(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The config.yaml beside a checkpoint, {} if there is none."""
    path = Path(checkpoint)
    beside = (path if path.is_dir() else path.parent) / "config.yaml"
    try:
        known = yaml.safe_load(beside.read_text()) if beside.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{beside}: not readable ({error}); repair or move it") from None
    return known if isinstance(known, dict) else {}
