"""Full precision for what decides which tokens go together."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Autocast switched off on a device that has it: a half-precision score moves tokens to other groups."""
    # torch 2.7 cannot compile torch.amp.is_autocast_available; only meta has none
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
