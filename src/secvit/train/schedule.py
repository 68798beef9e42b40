"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math

from secvit.train.config import Schedule


def learning_rate(step: int, total: int, peak: float, schedule: Schedule, steps_per_epoch: int = 1) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total`.

    As in DeiT, the warm-up covers the beginning of the curve instead of shifting it: the cosine is
    that of step / total.
    """
    warmup = schedule.warmup_steps or round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return schedule.warmup_lr + (peak - schedule.warmup_lr) * step / warmup
    if schedule.kind == "constant":
        return peak
    done = step / total
    if schedule.kind == "step":
        return peak * 0.1 ** sum(done >= at for at in schedule.decay_at)
    if schedule.kind == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * done))
    else:
        left = (1 - done) ** (schedule.power if schedule.kind == "poly" else 1.0)
    return schedule.min_lr + (peak - schedule.min_lr) * left
