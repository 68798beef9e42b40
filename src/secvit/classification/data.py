"""Images as batches for the loop: augmented for training, in one fixed view for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secvit.classification.augment import Augment, mixing, training_transform
from secvit.images import Images, View, middle, seeded
from secvit.train.sampler import mix


class TrainView(View):
    """Batches {"image": (B, 3, S, S), "target": (B,) or, mixed, (B, classes)} by sampler keys.

    What is drawn for an image depends on (seed, key) alone, never on batch, worker or process;
    what is drawn for mixing depends on the keys of the batch.
    """

    def __init__(
        self,
        images: Images,
        augment: Augment,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
    ) -> None:
        super().__init__(images, training_transform(augment, size, mean, std))
        pixels = images.pixels
        if augment.crop == "pad" and (pixels is None or pixels.shape[-2:] != (size, size)):
            raise ValueError(f'crop="pad" needs images of {size}x{size} px in memory; use crop="resized"')
        self.seed = seed
        self.mixing = mixing(augment, len(images.classes))

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        seeds, tensors, index = [mix(self.seed, key) for key in keys], [], []
        for key, own in zip(keys, seeds, strict=True):
            image, opened = self.open_or_next(key % len(self))
            index.append(opened)
            with seeded(own):
                tensors.append(self.transform(image))
        images, targets = torch.stack(tensors), self.images.labels[torch.tensor(index)]
        if self.mixing:
            if len(keys) % 2:
                raise ValueError(f"{len(keys)} images in a forward cannot be mixed in pairs; choose an even number")
            with seeded(mix(*seeds)):
                images, targets = self.mixing(images, targets)
        return {"image": images, "target": targets}


class EvalView(View):
    """Batches {"image", "target", "index"} by index, in the middle view.  Broken files drop out."""

    def __init__(
        self,
        images: Images,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float = 1.0,
    ) -> None:
        super().__init__(images, middle(size, mean, std, crop_pct))

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        index, images = self.whole_ones(keys)
        numbers = torch.tensor(index, dtype=torch.long)
        return {"image": images, "target": self.images.labels[numbers], "index": numbers}
