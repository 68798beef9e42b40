"""Batches on the device, from the present step to the end: one loader for the whole run."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secvit.loading import read
from secvit.train.config import Loop
from secvit.train.sampler import Keys

if TYPE_CHECKING:
    from accelerate import Accelerator


def batches(
    dataset: Any, loop: Loop, start: int, stop: int, accelerator: Accelerator, names: Sequence[str] = ()
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
        parts=loop.parts_on(accelerator.num_processes) * accelerator.num_processes,
        repeats=loop.repeats,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        order=getattr(dataset, "order", None),
    )
    pin = accelerator.device.type == "cuda"
    for batch in read(dataset, keys, loop.workers, names, pin, loop.data_timeout_minutes):
        yield to_device(batch, accelerator.device)


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
