"""Averaged weights: an exponential moving average over steps, parameters and buffers alike."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A frozen copy that follows the model: `average = decay * average + (1 - decay) * model`.

    Floating-point tensors are averaged, batch-norm statistics included; whole numbers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        average, new, seen = [], [], set()
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.data_ptr() in seen:  # a tied weight has two names and is averaged once
                continue
            seen.add(mine.data_ptr())
            if mine.is_floating_point():
                average.append(mine)
                new.append(theirs.to(mine.dtype))
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(average, new, weight=1 - self.decay)
