"""The optimizer of a recipe, by timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from secvit.fields import within

LARGEST = 1e6  # of a learning rate; steps of far larger ones are no float32 any more


@dataclass(frozen=True)
class Optim:
    """The optimizer, by timm.optim.create_optimizer_v2 (no weight decay on norms and biases).

    Args:
        name: timm's name of the optimizer, "adamw", "muon", "lamb", ...
        lr: peak learning rate.
        weight_decay: of matrices and kernels.
        betas: of Adam and its kin.
        layer_decay: factor of the learning rate per layer away from the head; null for none.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        check_rates(self, "lr", "weight_decay")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}; choose above 0 and up to 1, like 0.65, or null for none")


def check_rates(config: Any, *names: str) -> None:
    """Raise a ValueError for rates and `betas` that no optimizer can use."""
    within(config, 0, LARGEST, *names)
    if not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"betas={config.betas}; choose 0 to below 1, like 0.9, 0.999")


def create_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """timm's optimizer over the parameters of a model that are not frozen."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("every parameter is frozen; leave at least the head to train")
    return create_optimizer_v2(
        model,
        opt=optim.name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        layer_decay=optim.layer_decay,
    )
