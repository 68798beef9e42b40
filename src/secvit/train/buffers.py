"""Batch norm's statistics over the parts of a step: averaged, or put back when the step is skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secvit import processes


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
    def average(self, parts: int) -> None:
        """Set the buffers to the mean over the parts of all processes; whole numbers to any part's."""
        sums = [total for total in self.sums if total.is_floating_point()]
        if processes.count() > 1 and sums:  # in one message: there are two small ones for each batch norm
            message = processes.added(torch.cat([total.flatten() for total in sums]))
            pieces = message.split([total.numel() for total in sums])
            sums = [piece.view_as(total) for piece, total in zip(pieces, sums, strict=True)]
        means = iter(sums)
        for live, total in zip(self.live(), self.sums, strict=True):
            live.copy_(next(means) / parts if total.is_floating_point() else total)
