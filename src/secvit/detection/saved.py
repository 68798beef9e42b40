"""A detector by a recipe's words: new, from weights, or out of a run."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from secvit.detection import models
from secvit.detection.config import Model
from secvit.fields import abridged
from secvit.models.features import start_from
from secvit.models.saved import device_of, saved_config
from secvit.train.folder import start_of
from secvit.weights import load_weights

logger = logging.getLogger(__name__)


def create(chosen: Model, classes: int) -> nn.Module:
    """The detector at step 0."""
    make = getattr(models, chosen.detector)
    options = {"min_size": chosen.min_size, "max_size": chosen.max_size, **chosen.args}
    model = make(chosen.backbone, classes, backbone_args=dict(chosen.backbone_args), **options)
    if chosen.init:
        source = start_of(chosen.init)
        new = start_from(model, source)
        logger.info("starting from %s; new: %s", source, abridged(new) or "nothing")
    return model


def load_detector(
    weights: str | os.PathLike[str], min_size: int | None = None, device: torch.device | str | None = None
) -> tuple[nn.Module, dict[int | str, str]]:
    """A trained detector in evaluation mode, and its classes: COCO's id and name of labels 0, 1, ...

    weights: the folder of a run or of one of its checkpoints, or the weight file in it; the config.yaml beside it
        says which detector it is.
    min_size: short side in px that it sees, instead of the run's; the limit of the long side grows with it.
    device: the GPU if there is one.
    """
    path = Path(weights)
    if not path.exists():
        raise ValueError(f"{path}: no such run or weights; check the path")
    config = saved_config(path)
    if not config:
        raise ValueError(f"{path}: no config.yaml beside the weights, so the network is unknown; give a run's folder")
    settings, classes = config.get("model"), config.get("classes")
    if not isinstance(settings, dict) or "detector" not in settings or not classes:
        raise ValueError(f"{path}: its config.yaml is not that of a detector; give a run of secvit.detection")
    try:
        chosen = Model(**settings)
    except TypeError as error:
        raise ValueError(f"{path}: its config.yaml does not fit this version ({error})") from None
    # the run's own weights replace whatever it started from
    chosen = replace(chosen, init=None, backbone_args={**chosen.backbone_args, "pretrained": False})
    shortest = chosen.min_size[-1]
    if min_size is not None and min_size < 1:
        raise ValueError(f"min_size={min_size}; choose the short side in px, for example {shortest}")
    size = min_size or shortest
    model = create(replace(chosen, min_size=(size,), max_size=round(chosen.max_size * size / shortest)), len(classes))
    load_weights(model, start_of(path))
    categories = dict(zip(config.get("category_ids") or range(1, len(classes) + 1), classes, strict=True))
    return model.to(device_of(device)).eval(), categories
