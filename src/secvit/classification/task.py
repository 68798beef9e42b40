"""Classification as the loop sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ClassificationTask(nn.Module):
    """Cross-entropy on {"image", "target"}; targets are classes or, mixed, the share of each.

    Frozen parts of the model neither learn nor count statistics.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0, frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        named_parts = {**dict(model.named_modules()), **dict(model.named_parameters())}
        if unknown := [name for name in frozen if name not in named_parts]:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"frozen={unknown[0]!r} is no part of {type(model).__name__}; its parts are {parts}")
        self.frozen = tuple(name for name in frozen if isinstance(named_parts[name], nn.Module))
        for name in frozen:
            named_parts[name].requires_grad_(False)

    def train(self, mode: bool = True) -> ClassificationTask:
        super().train(mode)
        for name in self.frozen:
            self.model.get_submodule(name).eval()
        return self

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, target = self.model(batch["image"]).float(), batch["target"]
        out = {"loss": F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)}
        if target.ndim == 1:
            out["top1"] = (logits.argmax(-1) == target).float().mean()
        return out
