"""One optimizer step: forward and backward over its parts, clipping, update, or a clean skip."""

from __future__ import annotations

import contextlib
import inspect
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from secvit import processes
from secvit.train.buffers import Buffers
from secvit.train.config import Loop
from secvit.train.nonfinite import first_nonfinite, nonfinite_gradient
from secvit.train.sampler import mix
from secvit.train.sharding import gain, gathered, shard


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
        device: torch.device,
    ) -> None:
        self.task, self.optimizer = task, optimizer
        self.loop, self.device = loop, device
        self.processes = processes.count()
        self.parts = loop.parts_on(self.processes) * self.processes
        self.sharded = loop.sharding == "fsdp" and self.processes > 1
        self.scaler = torch.amp.GradScaler(device.type, enabled=loop.precision == "fp16")

    def prepare(self) -> None:
        """After weights and optimizer are loaded: compile, and wrap for many processes."""
        if self.loop.compile:
            self.task.compile()
        self.forward, self.gain = self.task, 1.0
        if self.sharded:
            shard(self.task, self.optimizer)
            self.gain = gain(self.device)
        elif self.processes > 1:
            self.forward = replicate(self.task, self.device)
        self.parameters = [p for p in self.task.parameters() if p.requires_grad]
        self.buffers = Buffers(self.task)

    def __call__(self, parts: list[Any], seed: int, stopping: bool) -> Outcome:
        """Update the weights with the mean gradient of the parts; a non-finite one leaves no trace.

        Every part begins with the buffers (batch norm's statistics) that the step found, and the
        step leaves the mean of what the parts make of them: it is the same whoever computes a part.

        Means over the parts and processes of everything the task returned, and the gradient's norm
        before clipping.  `stop` is whether any process came in with `stopping`.
        """
        totals: dict[str, Tensor] = {}
        for i, batch in enumerate(parts):
            last = i == len(parts) - 1
            seed_everything(self.seed(seed, i))
            # gradients are added up over the processes once, after the last part
            with contextlib.nullcontext() if last else getattr(self.forward, "no_sync", contextlib.nullcontext)():
                with self.autocast():
                    out = self.forward(batch)
                self.scaler.scale(out["loss"] / (len(parts) * self.gain)).backward()
            for key, value in out.items():
                part = value.detach().float() / len(parts)
                totals[key] = totals[key] + part if key in totals else part
            if self.parts > 1:
                self.buffers.collect()
        self.scaler.unscale_(self.optimizer)
        norm = gathered(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        values = torch.stack([*totals.values(), norm.float(), norm.new_tensor(float(stopping))])
        *read, stop = (processes.added(values) / self.processes).tolist()  # the step's only wait for the GPU
        numbers = dict(zip([*totals, "grad_norm"], read, strict=True))
        finite, bad = bool(np.isfinite(read).all()), None
        # float16 finds its loss scale by trying: an infinite gradient alone is no accident there
        if finite or (self.scaler.is_enabled() and np.isfinite(numbers["loss"])):
            if self.loop.clip_grad:
                nn.utils.clip_grads_with_norm_(self.parameters, self.loop.clip_grad, norm)
            self.scaler.step(self.optimizer)
            if self.parts > 1:
                self.buffers.average(self.parts)
            self.buffers.keep()
        else:
            bad = self.explain(parts, seed)
            self.buffers.put_back()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Outcome(numbers, finite, stop > 0, bad)

    def seed(self, seed: int, i: int) -> int:
        """Of the i-th part here, by its number among the parts of all processes."""
        return mix(seed, processes.rank() + i * self.processes)

    def explain(self, parts: list[Any], seed: int) -> str:
        """Run the forward again, watching every module: what the first process says that finds something."""
        gradient, layers = nonfinite_gradient(self.task), []
        for i, batch in enumerate(parts):
            self.buffers.put_back()
            seed_everything(self.seed(seed, i))
            with self.autocast():
                layers.append(first_nonfinite(self.task, batch))
        return next(filter(None, processes.of_all_processes(layers)), None) or gradient or "the update"

    def autocast(self) -> torch.autocast:
        half = torch.float16 if self.loop.precision == "fp16" else torch.bfloat16
        enabled = self.loop.precision != "no"
        return torch.autocast(self.device.type, half, enabled=enabled)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def replicate(task: nn.Module, device: torch.device) -> nn.Module:
    """DistributedDataParallel that leaves the buffers alone: `Step` averages them.

    Each weight's gradient gets the weight's own strides, which it asks for: convolutions over
    channels-last maps return gradients in channels-last strides.
    """

    def restride(gradient: Tensor, like: Tensor) -> Tensor:
        if gradient.stride() == like.stride():
            return gradient
        return torch.empty_like(like, dtype=gradient.dtype).copy_(gradient)

    for parameter in task.parameters():
        if parameter.requires_grad and parameter.ndim == 4:
            parameter.register_hook(lambda gradient, like=parameter: restride(gradient, like))
    parameters = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # older
    options: dict[str, Any] = {"device_ids": [device] if device.type == "cuda" else None, buffers: False}
    return DistributedDataParallel(task, **options)
