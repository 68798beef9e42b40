"""A patched ViT under a name of timm's, so that a folder with timm's config.json loads patched.

{"architecture": "vit_sec_patched", "num_classes": 10, "model_args":
    {"network": "deit_tiny_patch16_224", "patch": {"cluster_size": 49}}, "pretrained_cfg": {...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from secvit.adapt.patching import PATCHED_TIMM
from secvit.models.saved import check_name, patched
from secvit.ops import DEFAULT_QUALITY

__all__ = ["vit_sec_patched"]


@register_model
def vit_sec_patched(
    pretrained: bool = False, network: str = "", patch: Mapping[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """Another network of timm's with clusters in its attention.  Images (B, in_chans, H, W) -> (B, num_classes)

    network: its name, "deit_tiny_patch16_224", with a tag for the weights to begin with.
    patch: arguments of `secvit.patch`, {"cluster_size": 49}; without any, its defaults.
    kwargs, pretrained, pretrained_cfg: go to the network.
    Raises ValueError for a network that timm does not know or that cannot be patched.
    """
    if not network:
        raise ValueError(
            f"{PATCHED_TIMM} needs a network: "
            f'timm.create_model("{PATCHED_TIMM}", network="deit_tiny_patch16_224", patch={{"cluster_size": 49}})'
        )
    check_name(network)
    source = {k: v for k, v in kwargs.pop("pretrained_model_args", {}).items() if k not in ("network", "patch")}
    if source:  # newer timm compares them with the arguments of now
        kwargs["pretrained_model_args"] = source
    created = timm.create_model(network, pretrained=pretrained, **kwargs)
    model: Any = patched(created, patch or {"quality": DEFAULT_QUALITY})
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": PATCHED_TIMM}  # what timm saves
    return model
