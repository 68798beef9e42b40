"""Weights in slices: FSDP2 (torch's fully_shard) around a task that knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def shard(task: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Cut every weight over the processes, in place: each block apart, then the rest.

    The optimizer follows with its groups and with what it has remembered so far.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = {id(p): name for name, p in task.named_parameters()}
    mesh = init_device_mesh(next(task.parameters()).device.type, (get_world_size(),))
    for module in (*blocks(task), task):
        fully_shard(module, mesh=mesh)
    new = dict(task.named_parameters())
    for group in optimizer.param_groups:
        full, group["params"] = group["params"], [new[names[id(p)]] for p in group["params"]]
        for old, sliced in zip(full, group["params"], strict=True):
            if old in optimizer.state:
                optimizer.state[sliced] = {k: _like(v, old, sliced) for k, v in optimizer.state.pop(old).items()}


def gain(device: torch.device) -> float:
    """How many times the mean over the processes a sharded gradient is: 1, as it should be, or their number.

    torch 2.7 sums on CPUs, as its gloo takes a mean for a sum in reduce_scatter.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    probe = nn.utils.skip_init(nn.Linear, 1, 1, bias=False, device=device)  # draws no random number
    fully_shard(probe, mesh=init_device_mesh(device.type, (get_world_size(),)))
    probe(torch.ones(1, 1, device=device)).sum().backward()
    return gathered(probe.weight.grad).item()


def blocks(task: nn.Module) -> list[nn.Module]:
    """What is put together, used and cut again on its own: the entries of lists that have parts themselves.

    Inner ones come first, as fully_shard wants them.
    """
    lists = [m for m in task.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    entries = {b for m in lists for b in m if any(True for _ in b.children())}
    return [m for m in reversed(list(task.modules())) if m in entries and not isinstance(m, nn.ModuleList)]


def _like(value: Any, full: Tensor, sliced: Tensor) -> Any:
    """What an optimizer remembers of a weight, cut as the weight is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(value, Tensor) and isinstance(sliced, DTensor) and value.shape == full.shape:
        return distribute_tensor(value, sliced.device_mesh, sliced.placements)
    return value


def gathered(value: Any, device: str | None = None) -> Any:
    """Sliced tensors put together again, in dicts and lists too; every process has to ask.

    device: where each goes as soon as it is whole, "cpu" for what no GPU could hold at once, "meta" for nowhere.
    """
    if isinstance(value, Tensor):
        put_together = value.full_tensor() if hasattr(value, "full_tensor") else value
        return put_together if device is None else put_together.to(device)
    if isinstance(value, Mapping):
        return {k: gathered(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(v, device) for v in value)
    return value
