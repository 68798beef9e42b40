"""Batch norms that see the images of all processes."""

from __future__ import annotations

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from secvit.train.config import Loop


def synchronised(model: nn.Module, loop: Loop) -> nn.Module:
    """The model with SyncBatchNorm for its batch norms where the run is on GPUs; else as it is."""
    on_gpus = loop.device != "cpu" and torch.cuda.is_available()
    return convert_sync_batchnorm(model) if on_gpus else model
