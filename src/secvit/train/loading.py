"""Batches on the device, from the present step to the end: one loader for the whole run."""

from __future__ import annotations

import signal
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from secvit.train.config import Loop
from secvit.train.sampler import Keys

if TYPE_CHECKING:
    from accelerate import Accelerator


def batches(dataset: Any, loop: Loop, start: int, stop: int, accelerator: Accelerator) -> Generator[Any, None, None]:
    """This process's parts of optimizer steps start..stop-1, the same number for each step."""
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
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=loop.workers,
        collate_fn=getattr(dataset, "collate", None),
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    for batch in loader:
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


def _leave_signals_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it to all processes; the main one still saves
