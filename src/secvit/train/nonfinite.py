"""When a loss is NaN or infinite: find the layer it began in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def first_nonfinite(task: nn.Module, batch: Any) -> str | None:
    """Where non-finite numbers begin: the batch, a parameter, or the output of a module.

    The forward runs in any case: with sharded weights the other processes wait for it.
    """
    names = [] if _finite(batch) else ["the batch itself"]
    names += [f"parameter {name}" for name, parameter in task.named_parameters() if not _finite(parameter)]

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not names and not _finite(output):
                names.append(f"the output of {name or 'the task'} ({type(module).__name__.removeprefix('FSDP')})")

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in task.named_modules()]
    try:
        task(batch)
    finally:
        for handle in handles:
            handle.remove()
    return names[0] if names else None


def nonfinite_gradient(task: nn.Module) -> str | None:
    """The parameter nearest to the loss whose gradient is not finite."""
    bad = [n for n, p in task.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"the gradient of {bad[-1]}" if bad else None


def nonfinite_tensors(module: nn.Module) -> list[str]:
    """Names of weights and saved buffers that hold a number that is not finite."""
    return [name for name, value in module.state_dict().items() if not _finite(value)]


def _finite(value: Any) -> bool:
    return all(bool(t.isfinite().all()) for t in _tensors(value) if t.is_floating_point())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
