"""Tables 4 and 5: work of a detector, the paper's way (modules only) and with the attention's products."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from secvit.measure.macs import Macs, count_macs


def detector_macs(
    model: nn.Module, size: tuple[int, int] = (800, 1280), proposals: int = 1000, masked: int = 100
) -> Macs:
    """Multiply-accumulates for one image of (height, width), as mmdet counts a two-stage detector.

    proposals: boxes that each stage classifies; masked: boxes that each stage masks.
    """
    return count_macs(_Work(model, proposals, masked), (3, *size))


class _Work(nn.Module):
    """What a detector computes, without the choices of boxes that depend on the image."""

    def __init__(self, model: Any, proposals: int, masked: int) -> None:
        super().__init__()
        self.model: Any = model  # torchvision's, whose parts are not typed
        self.proposals, self.masked = proposals, masked

    def forward(self, image: Tensor) -> Tensor:
        pyramid = self.model.backbone(image)
        if isinstance(self.model, RetinaNet):
            self.model.head(list(pyramid.values()))
            return image
        self.model.rpn.head(list(pyramid.values()))
        heads, channels = self.model.roi_heads, self.model.backbone.out_channels
        for head, predictor in zip(heads.box_heads, heads.box_predictors):
            predictor(head(image.new_empty(self.proposals, channels, 7, 7)))
        for head, predictor in zip(heads.mask_heads, heads.mask_predictors):
            predictor(head(image.new_empty(self.masked, channels, 14, 14)))
        return image
