"""Detection as the loop sees it: the detector's losses, summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class DetectionTask(nn.Module):
    """The sum of a torchvision detector's losses on {"images": [(3, H, W)], "targets": [...]}.

    norm_eval: batch norms of the backbone keep the statistics they came with, since batches are small.
    """

    def __init__(self, model: nn.Module, norm_eval: bool = True) -> None:
        super().__init__()
        self.model = model
        self.norm_eval = norm_eval

    def train(self, mode: bool = True) -> DetectionTask:
        super().train(mode)
        if self.norm_eval:
            for module in self.model.backbone.body.modules():  # type: ignore[union-attr]
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        losses = self.model(batch["images"], batch["targets"])
        return {"loss": torch.stack([loss.float() for loss in losses.values()]).sum(), **losses}
