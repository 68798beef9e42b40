"""Batches on the device, from the present step to the end: one loader for the whole run."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secvit import processes
from secvit.loading import read
from secvit.train.config import Loop
from secvit.train.sampler import Keys


def batches(
    dataset: Any, loop: Loop, start: int, stop: int, device: torch.device, names: Sequence[str] = ()
) -> Generator[Any, None, None]:
    """This process's parts of optimizer steps start..stop-1, the same number for each step.

    names, and errors: see `secvit.loading.read`.
    """
    keys = Keys(
        len(dataset),
        loop.batch_size,
        loop.seed,
        start,
        stop,
        parts=loop.parts_on(processes.count()) * processes.count(),
        repeats=loop.repeats,
        rank=processes.rank(),
        processes=processes.count(),
        order=getattr(dataset, "order", None),
    )
    pin = device.type == "cuda"
    for batch in read(dataset, keys, loop.workers, names, pin, loop.data_timeout_minutes):
        yield to_device(batch, device)


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors in a dict, list or tuple moved to the device; the rest as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(v, device) for v in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch
