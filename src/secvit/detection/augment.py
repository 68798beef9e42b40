"""What the field's 3x schedule does to half of the images before they are resized."""

from __future__ import annotations

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import SanitizeBoundingBoxes
from torchvision.transforms.v2 import functional as tv

SHORT_SIDES = (400, 500, 600)  # px of the image that is cut
CROP = (384, 600)  # px of the piece's height and of its width
SANITIZE = SanitizeBoundingBoxes()  # boxes that a crop left nothing of, with their labels and masks

Target = dict[str, Any]


def cut(image: tv_tensors.Image, target: Target) -> tuple[tv_tensors.Image, Target]:
    """A piece of an image and what lies in it, perhaps nothing, by torch's generator.

    The image's short side counts as 400, 500 or 600 px, of which the piece has 384 to 600 in height and in width;
    it is cut at the image's own resolution, since the detector resizes it anyway.  Source: DETR's crops, as
    Swin's and the first author's (qhfan/RMT) 3x configs of mmdetection have them.
    """
    height, width = image.shape[-2:]
    short = SHORT_SIDES[int(torch.randint(len(SHORT_SIDES), ()))]
    scale = min(height, width) / short
    top, rows = _span(height, scale)
    left, columns = _span(width, scale)
    place = (top, left, rows, columns)
    piece = {name: value if name == "labels" else tv.crop(value, *place) for name, value in target.items()}
    return SANITIZE(tv.crop(image, *place), piece)


def _span(side: int, scale: float) -> tuple[int, int]:
    """Where a piece begins along a side, and its length, in px of the image."""
    scaled = round(side / scale)
    length = int(torch.randint(min(scaled, CROP[0]), min(scaled, CROP[1]) + 1, ()))
    pixels = min(side, max(1, round(length * scale)))
    return int(torch.randint(side - pixels + 1, ())), pixels
