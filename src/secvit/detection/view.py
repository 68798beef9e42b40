"""What training sees of a split: batches of images with their objects, flipped at random."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from secvit.detection.augment import SANITIZE, cut
from secvit.detection.objects import ends, frozen
from secvit.detection.split import Coco
from secvit.images import View, seeded
from secvit.images.files import LeftOut
from secvit.processes import is_first
from secvit.train.sampler import mix

logger = logging.getLogger(__name__)


class TrainView(View):
    """Batches {"images": list of (3, H, W) in 0..1, "targets": list of dicts} by sampler keys.

    Images without annotations are left out, or with `background` learned from as such; images with nothing but crowds
    are left out.  The next whole image stands in for a broken file.  Flips, crops and `transform` depend on (seed,
    key) alone; sizes are the detector's own business.  crop: part of the images that are cut (`augment.cut`).
    transform: of torchvision's v2, on (image, target).
    """

    def __init__(
        self,
        coco: Coco,
        masks: bool,
        flip: float = 0.5,
        seed: int = 0,
        transform: Callable[..., Any] | None = None,
        background: bool = False,
        crop: float = 0.0,
    ) -> None:
        super().__init__(coco, Image.Image.copy)  # type: ignore[arg-type]
        self.coco, self.masks, self.flip, self.seed, self.change = coco, masks, flip, seed, transform
        self.crop = crop
        starts = coco.table.starts
        learned = ends(~coco.table.crowd)
        usable = learned[starts[1:]] > learned[starts[:-1]]
        if not usable.any():
            raise ValueError(
                f"{coco.file}: no image has an object to learn from; add some that are neither crowds nor difficult"
            )
        left_out = LeftOut()
        left_out.add("with nothing but crowds or broken objects", int((~usable & ~coco.blank).sum()))
        if not background:
            left_out.add("without objects (learned from with background)", int(coco.blank.sum()))
        self.index = frozen(np.flatnonzero(usable | (coco.blank & background)))
        if (line := left_out.line(coco.name, len(self), "images")) and is_first():
            logger.warning(line)

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, keys: Sequence[int]) -> dict[str, list[Any]]:  # type: ignore[override]
        pairs = [self.pair(key) for key in keys]
        return {"images": [image for image, _ in pairs], "targets": [target for _, target in pairs]}

    def pair(self, key: int) -> tuple[Tensor, dict[str, Tensor]]:
        at = key % len(self)
        while (opened := self.open(i := int(self.index[at]))) is None:
            at = (at + 1) % len(self)
        image = tv_tensors.Image(tv.pil_to_tensor(opened))
        target = self.coco.target(i, self.masks)
        with seeded(mix(self.seed, key)):
            if torch.rand(()) < self.flip:
                image, target = (
                    tv.horizontal_flip(image),
                    {k: tv.horizontal_flip(v) if k != "labels" else v for k, v in target.items()},
                )
            if self.crop and torch.rand(()) < self.crop:
                image, target = cut(image, target)
            if self.change is not None:
                image, target = SANITIZE(*self.change(image, target))
        plain = {k: v.as_subclass(Tensor) for k, v in target.items()}
        return tv.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor), plain
