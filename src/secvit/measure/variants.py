"""One model in the variants that are compared: as it is, patched, or with its attention written out; at any size."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform, resolve_data_config
from torch import Tensor, nn

from secvit.adapt import patch, unpatch
from secvit.extras import needs
from secvit.images import read_image
from secvit.images.photos import listed
from secvit.models.saved import check_one_name, create, has_weights, load_model, saved_config


class Tower(nn.Module):
    """A vision tower of transformers that is called as timm's models are.  images (B, 3, H, W) -> pooled (B, C)."""

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model: Any = model  # transformers', whose interface is that of its kind
        self.pretrained_cfg = {"mean": mean, "std": std}
        settings = model.config
        self.options = {"interpolate_pos_encoding": True} if settings.model_type in FIXED_POSITIONS else {}

    def tokens_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(pixel_values=images, **self.options)
        tokens, pooled = out.last_hidden_state, getattr(out, "pooler_output", None)
        return tokens, tokens.mean(dim=1) if pooled is None else pooled

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens_and_pooled(images)[1]


# their position tables are resampled only when asked to
FIXED_POSITIONS = (
    "vit", "deit", "clip", "clip_vision_model", "siglip", "siglip_vision_model", "vit_mae", "vit_msn",
)  # fmt: skip


def load(run: str | nn.Module, pretrained: bool = False, model: str | None = None) -> tuple[nn.Module, str]:
    """The model, unpatched and in eval mode, and whether its weights are "random" or "given".

    run: a timm name, a run, a weight file, the folder of a transformers vision model, or a model (which is copied).
    model: name of the network of a weight file.
    """
    if isinstance(run, nn.Module):
        if any(hasattr(module, "secvit_patch") for module in run.modules()):
            raise ValueError("the model is patched already; secvit.unpatch(model) first")
        inner = _tower(run, None) if hasattr(run, "config") and hasattr(run.config, "model_type") else run
        return copy.deepcopy(inner).eval(), "given"
    path = Path(run)
    if path.exists() and not saved_config(path) and (path / "config.json").is_file():
        return _load_tower(path)
    if not path.exists():
        check_one_name(run, model)
    if pretrained:
        return create(run, 1000, {"pretrained": True}).eval(), "given"
    network = load_model(model, path) if path.exists() else load_model(run)
    if hasattr(network, "secvit_patch"):
        unpatch(network)
    return network, "given" if path.exists() or has_weights(run) else "random"


def _load_tower(folder: Path) -> tuple[nn.Module, str]:
    with needs(f"{folder}, a model of transformers,", "transformers", "vlm"):
        from transformers import AutoConfig, AutoModel
    if any(folder.glob("*.safetensors*")) or any(folder.glob("*.bin*")):
        tower = _tower(AutoModel.from_pretrained(folder, local_files_only=True), folder).eval()
        if hasattr(tower.model, "secvit_patch"):
            unpatch(tower.model)
        return tower, "given"
    torch.manual_seed(0)
    return _tower(AutoModel.from_config(AutoConfig.from_pretrained(folder)), folder).eval(), "random"


def _tower(model: nn.Module, folder: Path | None) -> Tower:
    """The vision tower alone where a text tower stands beside it."""
    settings = folder / "preprocessor_config.json" if folder else None
    preprocessing = json.loads(settings.read_text()) if settings and settings.is_file() else {}
    mean, std = (
        preprocessing.get("image_mean", IMAGENET_DEFAULT_MEAN),
        preprocessing.get("image_std", IMAGENET_DEFAULT_STD),
    )
    return Tower(getattr(model, "vision_model", model), mean, std)


def variant(model: nn.Module, name: str, size: int, options: Mapping[str, Any]) -> nn.Module:
    """A copy of the model for images of size x size pixels.

    name: "original", "patched", by `secvit.patch` with `options`, or "unfused", with L x L weights written out.
    """
    side = patch_side(model)
    if size < side or size % side:
        near = max(side, round(size / side) * side)
        raise ValueError(f"size {size} is no multiple of the patches' {side} px; choose for example {near}")
    network: Any = copy.deepcopy(model)
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(size, size))
    inner = network.model if isinstance(network, Tower) else network
    if name == "patched":
        patch(inner, **options)
    elif name == "unfused" and isinstance(network, Tower):
        inner.set_attn_implementation("eager")
    elif name == "unfused":
        for module in inner.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    return network


def patch_side(model: nn.Module) -> int:
    """Height and width of a patch in pixels, 1 if the model does not say it."""
    if isinstance(model, Tower):
        side = getattr(model.model.config, "patch_size", 1)
    else:
        side = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return max(side) if isinstance(side, (tuple, list)) else int(side)


def num_heads(model: nn.Module) -> int:
    names = ("num_heads", "num_attention_heads")
    return max(n for m in model.modules() for name in names if isinstance(n := getattr(m, name, 1), int))


def clustering(network: Any) -> Any:
    """The `Clustering` of a patched variant."""
    inner = network.model if isinstance(network, Tower) else network
    return inner.secvit_patch.clustering


def features(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the model makes of images, before any classifier: tokens (B, P + L, C), pooled (B, C)."""
    if isinstance(network, Tower):
        return network.tokens_and_pooled(images)
    if not hasattr(network, "forward_head"):
        raise ValueError(f"{type(network).__name__} has no forward_features and forward_head, as timm's models have")
    tokens = network.forward_features(images)
    return tokens, network.forward_head(tokens, pre_logits=True)


def readable(photos: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files that can be read, of files and folders, and what is wrong with others; a ValueError if there are none."""
    paths, faults = [], []
    for path in listed(photos):
        try:
            read_image(path)
            paths.append(path)
        except ValueError as error:
            faults.append(str(error).replace(str(path), path.name))
    if not paths:
        raise ValueError("\n".join(faults))
    return paths, faults


def photographs(paths: Sequence[Path], size: int, model: nn.Module, batch_size: int) -> Iterator[Tensor]:
    """Photos as the model wants them, the largest square of each, in batches (B, 3, size, size)."""
    data_config = resolve_data_config({}, pretrained_cfg=getattr(model, "pretrained_cfg", None) or {})
    transform = create_transform(
        (3, size, size), mean=data_config["mean"], std=data_config["std"], interpolation="bicubic", crop_pct=1.0
    )
    for at in range(0, len(paths), batch_size):
        yield torch.stack([transform(read_image(path)) for path in paths[at : at + batch_size]])
