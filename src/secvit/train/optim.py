"""The optimizer of a recipe, by timm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.optim import create_optimizer_v2
from torch import nn


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
