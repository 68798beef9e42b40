"""When a loss is NaN or infinite: find the layer it began in, undo what the forward left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Buffers:
    """The task's buffers (batch norm's statistics) over the parts of a step, and before it.

    One bad batch would poison them for good, so a skipped step puts them back.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, set(module.state_dict())  # no caches, only what is saved
        self.kept = [b.clone() for b in self.live()]
        self.sums: list[Tensor] = []

    def live(self) -> list[Tensor]:
        return [b for name, b in self.module.named_buffers() if name in self.names]

    @torch.no_grad()
    def keep(self) -> None:
        self.sums = []
        if self.kept:
            torch._foreach_copy_(self.kept, self.live())

    @torch.no_grad()
    def put_back(self) -> None:
        self.sums = []
        if self.kept:
            torch._foreach_copy_(self.live(), self.kept)

    @torch.no_grad()
    def collect(self) -> None:
        """After a part: remember what it made of the buffers, and begin the next from the same."""
        made = [b.clone() for b in self.live()]
        if self.sums:
            made = [a + b if b.is_floating_point() else b for a, b in zip(self.sums, made, strict=True)]
        self.sums = made
        if self.kept:
            torch._foreach_copy_(self.live(), self.kept)

    @torch.no_grad()
    def average(self, parts: int, accelerator: Accelerator) -> None:
        """Set the buffers to the mean over the parts of all processes; whole numbers to any part's."""
        sums = [total for total in self.sums if total.is_floating_point()]
        if accelerator.num_processes > 1 and sums:  # in one message: there are two small ones for each batch norm
            message = accelerator.reduce(torch.cat([total.flatten() for total in sums]), "sum")
            pieces = message.split([total.numel() for total in sums])
            sums = [piece.view_as(total) for piece, total in zip(pieces, sums, strict=True)]
        means = iter(sums)
        for live, total in zip(self.live(), self.sums, strict=True):
            live.copy_(next(means) / parts if total.is_floating_point() else total)


@torch.no_grad()
def first_nonfinite(task: nn.Module, batch: Any) -> str | None:
    """Where non-finite numbers begin: the batch, a parameter, or the output of a module.

    The forward runs in any case: with sharded weights the other processes wait for it.
    """
    found = [] if _finite(batch) else ["the batch itself"]
    found += [f"parameter {name}" for name, parameter in task.named_parameters() if not _finite(parameter)]

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _finite(output):
                found.append(f"the output of {name or 'the task'} ({type(module).__name__.removeprefix('FSDP')})")

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in task.named_modules()]
    try:
        task(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def nonfinite_gradient(task: nn.Module) -> str | None:
    """The parameter nearest to the loss whose gradient is not finite."""
    bad = [n for n, p in task.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"the gradient of {bad[-1]}" if bad else None


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
