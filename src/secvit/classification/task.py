"""Classification as the loop sees it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F


class ClassificationTask(nn.Module):
    """Cross-entropy on {"image", "target"}; targets are classes or, mixed, the share of each."""

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, target = self.model(batch["image"]).float(), batch["target"]
        out = {"loss": F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)}
        if target.ndim == 1:
            out["top1"] = (logits.argmax(-1) == target).float().mean()
        return out
