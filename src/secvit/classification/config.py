"""What a classification recipe says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from secvit.classification.augment import Augment
from secvit.fields import within
from secvit.ops import written
from secvit.train.config import Loop, Schedule
from secvit.train.optim import Optim


@dataclass(frozen=True)
class Model:
    """The network and what it looks at.

    Args:
        name: a name that timm.create_model knows.
        args: further arguments of timm.create_model.
        image_size: side of the square the network sees, in px.
        crop_pct: part of the short side that evaluation keeps.
        pretrained: start from the weights that timm knows under the name, with a new head.
        init: weights to start from, a file or the folder of a run; the head is new where it does
            not fit.
        patch: arguments of secvit.patch for a plain ViT, {"quality": "balanced"} or {"cluster_size": 49}; empty for
            none.
        frozen: parts and weights of the network that do not learn, "stem", "stages.0", ...; their batch
            norms keep their statistics.
    """

    name: str = "secvit_nano"
    args: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    crop_pct: float = 1.0
    pretrained: bool = False
    init: str | None = None
    patch: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", written(self.args))
        object.__setattr__(self, "patch", written(self.patch))
        within(self, 1, 2**16, "image_size")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct={self.crop_pct}; choose a part of the short side above 0 and up to 1")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a classification run, except where data and output lie.

    Args:
        model: the network.
        augment: what happens to training images.
        label_smoothing: of the cross-entropy.
        optim: the optimizer.
        schedule: the learning rate over time.
        loop: length, batch, precision, averaging, logging, saving.
        sync_norm: batch norms see the images of all GPUs (SyncBN), not those of their own alone.
    """

    model: Model
    augment: Augment
    optim: Optim
    schedule: Schedule
    loop: Loop
    label_smoothing: float = 0.1
    sync_norm: bool = False

    def __post_init__(self) -> None:
        within(self, 0, 1, "label_smoothing")
