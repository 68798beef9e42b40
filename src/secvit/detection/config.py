"""What a detection recipe says."""

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
    """The detector and the sizes it sees.

    Args:
        detector: its head.
        backbone: a timm name with features_only.
        backbone_args: further arguments of timm.create_model, {"pretrained": true}.
        init: weights to start from, a file or the folder of a run: a classifier's, for the backbone, or a detector's,
            of which predictors of other classes stay new.
        min_size: short side in px, one of these at random in training and the last in evaluation.
        max_size: most px of the long side.
        args: further arguments of the detector, {"box_loss": "giou", "box_detections_per_img": 300}.
        norm_eval: batch norms of the backbone keep their statistics.
    """

    detector: Literal["mask_rcnn", "cascade_mask_rcnn", "retinanet"] = "mask_rcnn"
    backbone: str = "secvit_tiny"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    min_size: tuple[int, ...] = (800,)
    max_size: int = 1333
    args: dict[str, Any] = field(default_factory=dict)
    norm_eval: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone_args", written(self.backbone_args))
        within(self, 1, 2**16, "min_size", "max_size")
        if not self.min_size:
            raise ValueError("min_size=(); give one or more sizes in px, like 800")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a detection run, except where data and output lie.

    Args:
        model: the detector.
        flip: probability of a horizontal flip.
        crop: probability that an image is cut before it is resized, to 384 to 600 px a side, where its own short side
            counts as 400, 500 or 600 px, as in the field's 3x schedule.
        max_dets: detections of an image that count in the AP.
        drop_broken: leave broken entries out of what is learned from instead of refusing the data; of val, none is.
        background: learn from images without objects as well.
        sync_norm: batch norms of the heads see the images of all GPUs (SyncBN), not those of their own alone.
        optim: the optimizer.
        schedule: the learning rate over time.
        loop: length, batch, precision, averaging, logging, saving.
    """

    model: Model
    optim: Optim
    schedule: Schedule
    loop: Loop
    flip: float = 0.5
    max_dets: int = 100
    drop_broken: bool = False
    background: bool = False
    crop: float = 0.0
    sync_norm: bool = False

    def __post_init__(self) -> None:
        within(self, 0, 1, "flip", "crop")
        within(self, 1, math.inf, "max_dets")
