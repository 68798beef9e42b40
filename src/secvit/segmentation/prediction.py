"""Labels of images of any size: whole or by windows, at one or several scales, in bounded memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from secvit.fields import Entry, integer, items, numbers, text
from secvit.images import to_rgb
from secvit.models.saved import device_of, saved_config
from secvit.segmentation import models
from secvit.segmentation.augment import base_scale
from secvit.segmentation.config import Look, Model
from secvit.segmentation.masks import LARGEST
from secvit.segmentation.models import Segmenter
from secvit.train.folder import start_of
from secvit.weights import load_weights

BAND = 64  # rows of the result that are made at a time


@dataclass(frozen=True)
class Logits:
    """Logits of an image as fine as the network's finest map.

    values (classes, h, w), of which `rows` and `columns`, from the first on, cover the image.
    """

    values: Tensor
    rows: float
    columns: float

    def band(self, top: int, bottom: int, size: tuple[int, int]) -> Tensor:
        """Rows top..bottom-1 of the logits resized to (height, width), bilinear.  -> (classes, bottom - top, width)"""
        h, w = self.values.shape[-2:]
        like: Any = {"device": self.values.device, "dtype": self.values.dtype}
        y = (torch.arange(top, bottom, **like) + 0.5) / size[0] * self.rows / h * 2 - 1
        x = (torch.arange(size[1], **like) + 0.5) / size[1] * self.columns / w * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        sampled = F.grid_sample(self.values[None], grid[None], "bilinear", padding_mode="border", align_corners=False)
        return sampled[0]


@torch.no_grad()
def label_picture(
    model: Segmenter, picture: Image.Image, look: Look | None = None, progress: bool = False
) -> np.ndarray:
    """The class of each pixel of an RGB image, (H, W) uint8.

    Memory beyond the image itself: the logits of a window (without windows, of the whole image), and those of the
    image at the stride of the network's finest map, for each scale.
    """
    look, image = look or Look(), to_rgb(picture)
    model.eval()
    views = [
        view(model, shrunk(image, look.short_side, scale), look, flip, progress)
        for scale in look.scales
        for flip in (False, True)[: 1 + look.flip]
    ]
    size, labels = (image.height, image.width), np.empty((image.height, image.width), np.uint8)
    for top in range(0, size[0], BAND):
        bottom = min(top + BAND, size[0])
        bands = [one.band(top, bottom, size) for one in views]
        total = bands[0] if len(bands) == 1 else torch.stack([band.softmax(0) for band in bands]).sum(0)
        labels[top:bottom] = total.argmax(0).byte().cpu().numpy()
    return labels


def shrunk(image: Image.Image, short_side: int, scale: float) -> Image.Image:
    """The image with its short side at so many px (0: as it is) times the scale."""
    factor = scale * base_scale(image.size, short_side)
    width, height = (max(1, round(side * factor)) for side in image.size)
    same = (width, height) == image.size
    return image if same else image.resize((width, height), Image.Resampling.BILINEAR)


def view(model: Segmenter, image: Image.Image, look: Look, flip: bool, progress: bool) -> Logits:
    """Logits of an image as a whole, or the mean over windows where it is larger than one."""
    device = next(model.parameters()).device
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in model.backbone.normalization())
    pixels = tv.pil_to_tensor(image)

    def logits(part: Tensor) -> Tensor:
        image = (tv.to_dtype(part.to(device), torch.float32, scale=True) - mean) / std
        return model.logits(image.flip(-1)[None])[0].float().flip(-1) if flip else model.logits(image[None])[0].float()

    height, width = pixels.shape[-2:]
    if not look.window or max(height, width) <= look.window:
        values = logits(pixels)
        return Logits(values, *values.shape[-2:])
    cell = model.backbone.strides[0]
    pixels = F.pad(pixels, (0, -width % cell, 0, -height % cell), mode="replicate")
    tops, lefts = (starts(side, look.window, look.overlap, cell) for side in pixels.shape[-2:])
    h, w = (side // cell for side in pixels.shape[-2:])
    total, count = None, torch.zeros(h, w, device=device)
    corners = [(top, left) for top in tops for left in lefts]
    for top, left in tqdm(corners, "windows", leave=False, disable=None if progress else True):
        part = pixels[:, top : top + look.window, left : left + look.window]
        window = logits(part)
        if total is None:
            total = torch.zeros(len(window), h, w, device=device)
        rows = slice(top // cell, top // cell + window.shape[1])
        columns = slice(left // cell, left // cell + window.shape[2])
        total[:, rows, columns] += window
        count[rows, columns] += 1
    return Logits(total.div_(count), height / cell, width / cell)  # type: ignore[union-attr]


def starts(side: int, window: int, overlap: float, cell: int) -> list[int]:
    """Where windows begin along a side: they overlap by at least so much, and the last ends with the side.

    All are multiples of `cell`, as side and window are.
    """
    step = max(cell, int(window * (1 - overlap)) // cell * cell)
    return [*range(0, max(side - window, 0), step), max(side - window, 0)]


# -- saved networks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode with the names and colours of its classes, and how it looks at images.

    values: what stands for each class in the masks that it learned from.
    """

    model: Segmenter
    classes: tuple[str, ...]
    values: tuple[int, ...]
    palette: tuple[tuple[int, ...], ...]
    look: Look


def create(chosen: Model, classes: int, pretrained: bool = False) -> Segmenter:
    """The network of a recipe, its backbone with random weights or with those that timm knows under its name."""
    make = getattr(models, chosen.head)
    try:
        backbone_args = {**chosen.backbone_args, "pretrained": pretrained}
        return make(chosen.backbone, classes, backbone_args=backbone_args, **chosen.args)
    except TypeError as error:
        raise ValueError(f"{chosen.head} with {chosen.args}: {error}") from None


def load_trained(weights: str | os.PathLike[str], device: str | None = None, **changes: Any) -> Trained:
    """What `secvit train segmentation...` left: the folder of a run or checkpoint, or a file beside its config.yaml.

    changes: of the look, {"window": 512}; None changes nothing.
    """
    path = Path(weights)
    if not path.exists():
        raise ValueError(f"{path}: no such run or weights; check the path")
    config = saved_config(path)
    settings = config.get("model")
    if not isinstance(settings, dict) or "head" not in settings or not {"classes", "palette", "look"} <= config.keys():
        raise ValueError(f"{path}: no config.yaml of a segmentation run beside the weights; give the folder of one")
    where = Entry(f"{path}: its config.yaml", config)
    classes = tuple(where.get("classes", class_list))
    palette = where.get(
        "palette", lambda colours: tuple(tuple(map(integer, numbers(one, 3))) for one in items(colours))
    )
    # runs of older versions do not say; their masks most often count from 0
    values = where.get("values", lambda value: tuple(map(integer, items(value))), tuple(range(len(classes))))
    if not len(classes) == len(palette) == len(values) or not all(0 <= value <= LARGEST for value in values):
        raise ValueError(f"{path}: its config.yaml has classes, palette and values that do not fit each other")
    if any(not 0 <= part <= 255 for colour in palette for part in colour):
        raise ValueError(f"{path}: its config.yaml has a palette with colours beyond 0 to 255")
    try:
        chosen, look = Model(**settings), Look(**{**config["look"], "scales": tuple(config["look"]["scales"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: its config.yaml does not fit this version ({error})") from None
    look = replace(look, **{name: value for name, value in changes.items() if value is not None})
    with torch.random.fork_rng(devices=[]):
        model = create(chosen, len(classes))
    load_weights(model, start_of(path))
    return Trained(model.to(device_of(device)).eval(), classes, values, palette, look)


def class_list(value: Any) -> list[str]:
    """A reader of `Entry.get`: a list of classes."""
    return [text(one) for one in items(value)]
