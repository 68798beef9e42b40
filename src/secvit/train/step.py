"""One optimizer step: forward and backward over its parts, clipping, update, or a clean skip."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from secvit.train.config import Loop
from secvit.train.nonfinite import Buffers, first_nonfinite, nonfinite_gradient


@dataclass(frozen=True)
class Outcome:
    """What a step did.  `bad` says where non-finite numbers began, if they made it a skip."""

    numbers: dict[str, float]
    finite: bool
    stop: bool
    bad: str | None = None


class Step:
    """The task on its processes, its optimizer and the loss scaling of float16."""

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        loop: Loop,
        accelerator: Accelerator,
    ) -> None:
        self.task, self.optimizer = task, optimizer
        self.loop, self.accelerator = loop, accelerator
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=loop.precision == "fp16")

    def prepare(self) -> None:
        """After weights and optimizer are loaded: compile, and wrap for many processes."""
        if self.loop.compile:
            self.task.compile()
        self.forward, self.optimizer = self.accelerator.prepare(self.task, self.optimizer)
        self.buffers = Buffers(self.task)

    def __call__(self, parts: list[Any], seed: int, stopping: bool) -> Outcome:
        """Update the weights with the mean gradient of the parts; a non-finite one leaves no trace.

        Means over the parts and processes of everything the task returned, and the gradient's norm
        before clipping.  `stop` is whether any process came in with `stopping`.
        """
        seed_everything(seed)
        totals: dict[str, Tensor] = {}
        for i, batch in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.forward):
                with self.autocast():
                    out = self.forward(batch)
                self.accelerator.backward(self.scaler.scale(out["loss"] / len(parts)))
            for key, value in out.items():
                part = value.detach().float() / len(parts)
                totals[key] = totals[key] + part if key in totals else part
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        values = torch.stack([*totals.values(), norm.float(), norm.new_tensor(float(stopping))])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="mean")
        *read, stop = values.tolist()  # the step's only wait for the GPU
        numbers = dict(zip([*totals, "grad_norm"], read, strict=True))
        finite, bad = bool(np.isfinite(read).all()), None
        # float16 finds its loss scale by trying: an infinite gradient alone is no accident there
        if finite or (self.scaler.is_enabled() and np.isfinite(numbers["loss"])):
            if self.loop.clip_grad:
                nn.utils.clip_grads_with_norm_(self.parameters, self.loop.clip_grad, norm)
            self.scaler.step(self.optimizer)
            self.buffers.keep()
        else:
            bad = self.explain(parts, seed)
            self.buffers.put_back()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Outcome(numbers, finite, stop > 0, bad)

    def explain(self, parts: list[Any], seed: int) -> str:
        """Run the forward again, watching every module."""
        gradient = nonfinite_gradient(self.task)
        self.buffers.put_back()
        seed_everything(seed)
        for batch in parts:
            with self.autocast():
                if where := first_nonfinite(self.task, batch):
                    return where
        return gradient or "another process"

    def autocast(self) -> torch.autocast:
        half = torch.float16 if self.loop.precision == "fp16" else torch.bfloat16
        enabled = self.loop.precision != "no"
        return torch.autocast(self.accelerator.device.type, half, enabled=enabled)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
