"""Averaged weights: an exponential moving average over steps, parameters and buffers alike."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from secvit.train.sharding import gathered


class Ema:
    """A frozen copy that follows the model: `average = decay * average + (1 - decay) * model`.

    Floating-point tensors are averaged, batch-norm statistics included; whole numbers are copied.
    warmup: begin with a short memory, min(decay, (1 + step) / (10 + step)), so that a short run
    forgets the weights it began with.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the model after optimizer step `step` (0-based)."""
        average, new, seen = [], [], set()
        for averaged, current in zip(
            self.model.state_dict().values(), gathered(model.state_dict()).values(), strict=True
        ):
            if averaged.data_ptr() in seen:  # a tied weight has two names and is averaged once
                continue
            seen.add(averaged.data_ptr())
            if averaged.is_floating_point():
                average.append(averaged)
                new.append(current.to(averaged.dtype))
            else:
                averaged.copy_(current)
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(average, new, weight=1 - decay)

    def first(self, step: int) -> float:
        """At most this part of the average, 0 to 1, is still the weights it began with, after so many steps."""
        return min(self.decay**step, 1 / math.comb(step + 9, 9) if self.warmup else 1.0)
