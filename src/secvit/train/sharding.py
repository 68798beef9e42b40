"""Weights in slices: FSDP2 (torch's fully_shard) around a task that knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(task: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Cut every weight over the processes, in place: each entry of a ModuleList apart, then the rest.

    The optimizer follows with its groups and with what it has remembered so far.
    """
    names = {id(p): name for name, p in task.named_parameters()}
    for module in list(task.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block)
    fully_shard(task)
    new = dict(task.named_parameters())
    for group in optimizer.param_groups:
        whole, group["params"] = group["params"], [new[names[id(p)]] for p in group["params"]]
        for old, sliced in zip(whole, group["params"], strict=True):
            if old in optimizer.state:
                optimizer.state[sliced] = {k: _like(v, old, sliced) for k, v in optimizer.state.pop(old).items()}


def _like(value: Any, whole: Tensor, sliced: Tensor) -> Any:
    """What an optimizer remembers of a weight, cut as the weight is."""
    if isinstance(value, Tensor) and isinstance(sliced, DTensor) and value.shape == whole.shape:
        return distribute_tensor(value, sliced.device_mesh, sliced.placements)
    return value


def whole(value: Any) -> Any:
    """Sliced tensors put together again, in dicts and lists too; every process has to ask."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {k: whole(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(v) for v in value)
    return value
