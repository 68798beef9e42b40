"""A trained ViT and what is done to it without training: the variants that fidelity.py and probes.py compare.

A variant is a dict.  What it holds goes to `secvit.patch`, but for "merge", the share of patch tokens that attention
is left with after ToMe's merging, and "scale", that of the image's side.  {} is the network as it is.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

import secvit
from secvit.connectors.tome import merge_groups

PLAIN = "unpatched"
SEES = {"near": 2, "far": True}
BLIND: dict[str, dict[str, Any]] = {name: {"partition": name} for name in ("sec", "window", "random", "tree")}
VARIANTS: dict[str, dict[str, Any]] = {
    **BLIND,
    **{f"{name}, near and far": {**options, **SEES} for name, options in BLIND.items()},
    **{f"{name}, near 4 and far": {**BLIND[name], **SEES, "near": 4} for name in ("window", "tree")},
    "tree, near alone": {"partition": "tree", "near": 2},
    **{f"tokens merged to {share:.0%}": {"merge": share} for share in (0.5, 0.25)},
    **{f"image of {scale:.0%} of the side": {"scale": scale} for scale in (0.875, 0.75, 0.5)},
}
ORDERS: dict[str, dict[str, Any]] = {
    "tree, near and far, one order for all heads": {"partition": "tree", **SEES, "shared": True},
    **{
        f"tree, near and far, one order for {layers} layers": {"partition": "tree", **SEES, "share_order_every": layers}
        for layers in (2, 12)
    },
    **{f"sec, one order for {layers} layers": {"partition": "sec", "share_order_every": layers} for layers in (2, 12)},
}


def network(name: str, weights: Path, size: tuple[int, int]) -> nn.Module:
    """timm's network with the weights of a file in timm's or its publisher's form.  size: (H, W) in px"""
    model = timm.create_model(name, num_classes=0, img_size=size, dynamic_img_size=True)
    model.load_state_dict(checkpoint_filter_fn(load_file(weights), model))
    return model.eval()


def as_input(model: nn.Module, image: Image.Image, size: tuple[int, int]) -> Tensor:
    """An image, squashed to (H, W), as the network takes it.  -> (1, 3, H, W)"""
    pixels = np.array(image.resize(size[::-1], Image.Resampling.BICUBIC))
    config = timm.data.resolve_data_config(model=model)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    return ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1).unsqueeze(0)


def features(model: nn.Module, images: Tensor, variant: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """[cls] (B, C) and patch tokens (B, H, W, C), on the grid of the whole images where the variant has less."""
    patch = model.patch_embed.patch_size  # type: ignore[union-attr]
    grid = [side // step for side, step in zip(images.shape[2:], patch)]
    if "scale" in variant:
        smaller = [max(1, round(side * variant["scale"])) * step for side, step in zip(grid, patch)]
        images = F.interpolate(images, smaller, mode="bicubic", antialias=True)
    tokens = model.forward_features(images)  # type: ignore[operator]
    prefix = model.num_prefix_tokens
    maps = tokens[:, prefix:].unflatten(1, [side // step for side, step in zip(images.shape[2:], patch)])
    if "scale" in variant:
        maps = F.interpolate(maps.permute(0, 3, 1, 2), grid, mode="bilinear").permute(0, 2, 3, 1)
    return tokens[:, 0], maps


def change(model: nn.Module, variant: Mapping[str, Any], clusters: int) -> Callable[[], object]:
    """Make the model what a variant says, in place.  Returns what makes it as before."""
    if not variant or "scale" in variant:
        return lambda: None
    if "merge" not in variant:
        torch.manual_seed(0)  # of random groups
        grid = model.patch_embed.grid_size if variant.get("partition") == "window" else None  # type: ignore[union-attr]
        secvit.patch(model, clusters, **variant, grid=grid)  # type: ignore[arg-type]
        return lambda: secvit.unpatch(model)
    attentions = [block.attn for block in model.blocks]  # type: ignore[union-attr]
    for attention in attentions:
        attention.forward = Merged(attention, variant["merge"], model.num_prefix_tokens)
    return lambda: [delattr(attention, "forward") for attention in attentions]


def twin(model: nn.Module) -> nn.Module:
    """A copy with the very same weights, to be changed."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


class Merged:
    """The forward of one of timm's attentions, among the means of similar tokens; each token gets its mean's answer.

    Groups are ToMe's (Bolya et al., ICLR 2023), by the mean of the heads' keys, and so is the logarithm of a group's
    size in the logits; back to all tokens, as in ToMe for Stable Diffusion (Bolya and Hoffman, 2023).
    """

    def __init__(self, attention: Any, share: float, prefix: Any) -> None:
        self.attention, self.share, self.prefix = attention, share, prefix

    def __call__(self, x: Tensor, **_: Any) -> Tensor:
        attention, prefix = self.attention, self.prefix
        left = round((x.shape[1] - prefix) * self.share)
        qkv = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1))
        group = merge_groups(qkv[:, prefix:, 1].mean(dim=2), left) + prefix
        group = torch.cat([torch.arange(prefix).expand(len(x), -1), group], dim=1)
        index = group[..., None, None, None].expand_as(qkv)
        total = qkv.new_zeros(len(x), prefix + left, *qkv.shape[2:]).scatter_add(1, index, qkv)
        size = qkv.new_zeros(len(x), prefix + left).scatter_add(1, group, torch.ones_like(group, dtype=qkv.dtype))
        q, k, v = (total / size[..., None, None, None]).permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=size.log()[:, None, None], scale=attention.scale)
        out = out.transpose(1, 2).flatten(2).gather(1, group.unsqueeze(-1).expand_as(x))
        return attention.proj(out)
