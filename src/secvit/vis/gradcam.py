"""Figure 4 (right): Grad-CAM, the places of a stage's features that speak for a class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from secvit.images import to_rgb
from secvit.vis.clusters import BETWEEN, place
from secvit.vis.record import Layer, before_each, choose, evaluating, grid_of, layers, one_image, unsorted

OPACITY = 0.6


@dataclass(frozen=True)
class CamMap:
    """Evidence for a class at the tokens of a block.

    heat (H, W): 0 where there is none; of the scale of the features times the gradient.
    stage, block: counted from 0; blocks, stages: how many there are.
    target: number of the class.  name, share: its name and probability.
    """

    heat: Tensor
    stage: int
    block: int
    target: int
    name: str
    share: float
    blocks: int = 0
    stages: int = 0

    @property
    def normalised(self) -> Tensor:
        """Heat in 0..1; all zero where nothing speaks for the class.  (H, W)"""
        return self.heat / self.heat.max().clamp_min(torch.finfo(self.heat.dtype).tiny)

    def __str__(self) -> str:
        height, width = self.heat.shape
        nothing = "" if self.heat.any() else ", nothing speaks for it"
        where = place(self)
        return f'{where}, Grad-CAM of "{self.name}"\nprobability {self.share:.2f}, grid {width}×{height}{nothing}'


def grad_cam(
    model: nn.Module,
    image: Tensor,
    target: int | None = None,
    stages: Sequence[int] | None = None,
    block: int | str | None = None,
) -> list[CamMap]:
    """Figure 4 (right): Grad-CAM of one normalised image (3, H, W) in the chosen blocks.

    The mean gradient of the class's logit, over the places, weighs each channel of the features; what is positive
    of the sum speaks for the class.  target: number of a class; the likeliest if None.
    stages, block: as in `secvit.vis.cluster_maps`.
    Features are those that leave a block; in a plain ViT those that enter it, since behind the last attention
    patches no longer reach the [cls] token, and have no gradient.
    Frozen weights need no thawing, and no parameter gets a gradient.
    """
    image = one_image(image)
    chosen = choose(layers(model), stages, block)
    taken: dict[Layer, Tensor] = {}
    grids: dict[Layer, tuple[int, int]] = {}
    size = (image.shape[-2], image.shape[-1])
    with evaluating(model), unsorted(model), torch.inference_mode(False), torch.enable_grad(), ExitStack() as taps:
        for layer in chosen:
            taps.callback(_tap(layer, taken).remove)
            taps.callback(before_each(layer, partial(_keep_grid, layer, grids, size)).remove)
        pixels = image.detach().clone()[None].to(next(model.parameters())).requires_grad_()
        out = model(pixels)
        logits = getattr(out, "logits", out)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not getattr(model, "num_classes", 1):
            raise ValueError(f"{type(model).__name__} gives no logits of classes; Grad-CAM needs a classifier")
        shares = logits.detach()[0].float().softmax(-1)
        target = int(shares.argmax()) if target is None else target
        if not 0 <= target < len(shares):
            raise ValueError(f"target={target}; this model has classes 0 to {len(shares) - 1}")
        features = [taken[layer] for layer in chosen]
        gradients = torch.autograd.grad(logits[0, target], features)
    names = getattr(model, "pretrained_cfg", {}).get("label_names") or ()
    name = str(names[target]) if len(names) == len(shares) else f"class {target}"
    maps = []
    for layer, x, gradient in zip(chosen, features, gradients, strict=True):
        x, gradient = (_as_map(one.detach().float(), model, layer, grids[layer]) for one in (x, gradient))
        heat = (x * gradient.mean(dim=(1, 2), keepdim=True)).sum(0).relu().cpu()
        of = (target, name, float(shares[target]))
        maps.append(CamMap(heat, layer.stage, layer.block, *of, layer.blocks, layer.stages))
    return maps


def _tap(layer: Layer, taken: dict[Layer, Tensor]) -> Any:
    """A hook that takes a block's features as they come or go."""

    def leaving(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        plain = out.dim() == 3
        taken[layer] = args[0] if plain else out

    return layer.around.register_forward_hook(leaving)


def _keep_grid(
    layer: Layer, grids: dict[Layer, tuple[int, int]], size: tuple[int, int],
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
) -> None:  # fmt: skip
    with torch.no_grad():
        keys = module.keys(*args, **kwargs)
    grids[layer] = keys.grid or grid_of(keys.tokens.shape[-2], size)


def _as_map(x: Tensor, model: nn.Module, layer: Layer, grid: tuple[int, int]) -> Tensor:
    """One image's features or gradient as (C, H, W).  Feature maps are as timm's `output_fmt` says, NCHW without."""
    x = x[0]
    if x.dim() == 2:
        return x[layer.clustering.num_prefix_tokens :].T.unflatten(1, grid)
    return x.permute(2, 0, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else x


def heat_overlay(photo: Image.Image, cam: CamMap, opacity: float = OPACITY, style: str = "blended") -> np.ndarray:
    """Grad-CAM over the greyed photo, dark = none, bright = most, smooth between tokens.  -> (H, W, 3) in 0..1

    style: "side_by_side" puts it to the right of the photo; any other is blended.
    """
    options: dict[str, Any] = {"size": (photo.height, photo.width), "mode": "bilinear", "align_corners": False}
    heat = F.interpolate(cam.normalised[None, None], **options)[0, 0].clamp(0, 1).numpy()
    colours = matplotlib.colormaps["inferno"](heat)[..., :3]
    grey = np.asarray(to_rgb(photo).convert("L"), dtype=np.float64)[..., None] / 255
    blended = opacity * colours + (1 - opacity) * grey
    if style != "side_by_side":
        return blended
    colour = np.asarray(to_rgb(photo), dtype=np.float64) / 255
    return np.concatenate([colour, np.ones((photo.height, BETWEEN, 3)), blended], axis=1)
