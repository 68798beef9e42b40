"""Processes that work together, as torchrun starts them: each its device and its share of the work, and sums."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(minutes=10)  # for other processes, before one that hangs becomes an error


def join(cpu: bool = False, timeout: timedelta = PATIENCE) -> torch.device:
    """This process's device, once it has joined the others; a launcher's variables (RANK, WORLD_SIZE) say which.

    cpu: also where there is an accelerator.  timeout: for other processes; it holds from the first call on.
    """
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() and not cpu else None
    device = torch.device(kind.type if kind else "cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if kind:
        device = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)))
        torch.accelerator.set_device_index(device.index)
    if not dist.is_initialized():
        dist.init_process_group(dist.get_default_backend_for_device(device), timeout=timeout)
    return device


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if _many() else 0


def count() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _many() else 1


def wait() -> None:
    """Until every process has come here."""
    if _many():
        dist.barrier()


def share(items: int) -> list[int]:
    """The indices 0..items-1 that are this process's: each index is one process's, none is twice."""
    return list(range(rank(), items, count()))


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return rank() == 0


def of_all_processes(items: list[Any]) -> list[Any]:
    """Each process's items, one after the other; every process has to ask."""
    if not _many():
        return items
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of each process's numbers, in float64; every process has to ask.  Returned on the CPU."""
    total = values.detach().to("cpu", torch.float64, copy=True)
    if _many():
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        moved = total.to(device, torch.float64)
        dist.all_reduce(moved)
        total = moved.cpu()
    return total


def added(values: Tensor) -> Tensor:
    """The sum of each process's numbers, on their device and of their type; every process has to ask."""
    if _many():
        values = values.clone()
        dist.all_reduce(values)
    return values


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
