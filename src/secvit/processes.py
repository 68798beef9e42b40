"""Work that is shared by processes and added up: evaluation on shards of any size, exactly."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def share(count: int) -> list[int]:
    """The indices 0..count-1 that are this process's: each index is one process's, none is twice."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if _many() else (0, 1)
    return list(range(rank, count, processes))


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return not _many() or dist.get_rank() == 0


def of_all_processes(items: list[Any]) -> list[Any]:
    """Each process's items, one after the other; every process has to ask."""
    if not _many():
        return items
    parts: list[Any] = [None] * dist.get_world_size()
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


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
