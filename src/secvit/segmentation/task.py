"""Segmentation as the loop sees it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from secvit.segmentation.augment import IGNORED
from secvit.segmentation.models import Segmenter, UperNet, resize


class SegmentationTask(nn.Module):
    """Cross-entropy on {"image" (B, 3, S, S), "target" (B, S, S)}, the mean over pixels that have a class.

    auxiliary: weight of the auxiliary head's loss.
    """

    def __init__(self, model: Segmenter, auxiliary: float = 0.4) -> None:
        super().__init__()
        self.model, self.auxiliary = model, auxiliary

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        target = batch["target"].long()
        if self.training and len(target) < 2 and isinstance(self.model.head, UperNet):
            raise ValueError("one image in a forward, and UperNet's batch norms need two; raise batch_size")
        logits = [resize(x.float(), target.shape[-2:]) for x in self.model.training_logits(batch["image"])]
        labelled = target != IGNORED
        count = labelled.sum().clamp(min=1)  # a crop may hold nothing that has a class

        losses = [F.cross_entropy(x, target, ignore_index=IGNORED, reduction="sum") / count for x in logits]
        right = (logits[0].argmax(1) == target).sum() / count
        return {"loss": losses[0] + sum(self.auxiliary * loss for loss in losses[1:]), "pixel_accuracy": right}
