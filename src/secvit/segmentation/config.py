"""What a segmentation recipe says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from secvit.fields import within
from secvit.ops import written
from secvit.train.config import Loop, Schedule
from secvit.train.optim import Optim


@dataclass(frozen=True)
class Model:
    """The network.

    Args:
        head: what makes labels of the backbone's maps.
        backbone: a timm name with features_only.
        backbone_args: further arguments of timm.create_model, {"cluster_size": 98}.
        weights: what the backbone begins with, "random" numbers, those of "timm" under its name (a download), or
            those that are "shipped" with this package under its name, else random ones.
        init: weights to start from instead, a file or the folder of a run: a classifier's, for the backbone, or a
            segmentation run's, of which predictors of other classes stay new.
        args: further arguments of the head, {"channels": 128}.
    """

    head: Literal["semantic_fpn", "upernet"] = "semantic_fpn"
    backbone: str = "secvit_tiny"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    weights: Literal["random", "shipped", "timm"] = "random"
    init: str | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone_args", written(self.backbone_args))


@dataclass(frozen=True)
class Augment:
    """What happens to a training image and its mask, in this order.

    Args:
        short_side: px of the image's short side at scale 1; 0 leaves its size.
        scale: smallest and largest factor by which it is resized.
        crop: side of the square that is cut out, in px; what the image does not fill is ignored.
        max_share: largest part of a crop that one class may have, where ten tries find such a crop.
        flip: probability of a horizontal flip.
        distort: changes of brightness, contrast, saturation and hue.
    """

    short_side: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    crop: int = 512
    max_share: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __post_init__(self) -> None:
        within(self, 0, 1, "max_share", "flip")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={self.scale}; give the smallest and the largest factor, like 0.5, 2.0")
        if self.crop < 1 or self.short_side < 0:
            raise ValueError(f"crop={self.crop}, short_side={self.short_side}; give px, like 512")


@dataclass(frozen=True)
class Look:
    """How an image is looked at when it is labelled.

    Args:
        short_side: px of its short side; 0 leaves its size.
        window: side of the square windows it is cut into, in px, a multiple of 32; 0 looks at the whole.
        overlap: part of a window that the next one sees again.
        scales: factors by which it is resized; the probabilities of all are averaged.
        flip: look at the mirrored image as well.
    """

    short_side: int = 512
    window: int = 0
    overlap: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.window % 32 or self.window < 0:
            raise ValueError(f"window={self.window}; choose a multiple of 32 px, like 512, or 0 for none")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}; choose a part of the window from 0 to below 1, like 0.33")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={self.scales}; give one or more factors above 0, like 0.75, 1.0, 1.25")
        if self.short_side < 0:
            raise ValueError(f"short_side={self.short_side}; give px, or 0 to leave the size")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a segmentation run, except where data and output lie.

    Args:
        model: the network.
        augment: what happens to training images.
        look: how images are looked at in evaluation.
        optim: the optimizer.
        schedule: the learning rate over time.
        loop: length, batch, precision, averaging, logging, saving.
        auxiliary: weight of the auxiliary head's loss.
        sync_norm: batch norms see the crops of all GPUs (SyncBN), not those of their own alone.
    """

    model: Model
    augment: Augment
    look: Look
    optim: Optim
    schedule: Schedule
    loop: Loop
    auxiliary: float = 0.4
    sync_norm: bool = False

    def __post_init__(self) -> None:
        within(self, 0, math.inf, "auxiliary")
