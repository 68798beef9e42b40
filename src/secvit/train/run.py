"""A run of training: what takes part in it, how far it is, its log and its output folder."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from secvit import processes
from secvit.files import check_writable
from secvit.progress import brief
from secvit.provenance import provenance
from secvit.train import checkpoint as checkpoints
from secvit.train.config import Loop, Schedule
from secvit.train.ema import Ema
from secvit.train.lock import Lock
from secvit.train.log import Log, memory_mb
from secvit.train.nonfinite import nonfinite_tensors
from secvit.train.resume import describe_optimizer
from secvit.train.sharding import gathered
from secvit.train.step import Step


@dataclass
class State:
    """What a checkpoint remembers besides weights and optimizer."""

    step: int = 0
    nonfinite: int = 0
    best: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    evaluated: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # since the last row of log.csv
    counted: int = 0
    window: int = 0


class Run:
    """One run: the task on its device, the optimizer, the averaged weights, the state, the log."""

    log: Log | None = None
    copy: nn.Module | None = None  # for all weights of a sharded model
    names: Sequence[str] = ()
    silent = True  # no lines: a bar shows how far it is, or another process speaks
    scoring = float("inf")  # seconds of the last evaluation, which decide whether the next is announced

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        dataset: Any,
        loop: Loop,
        schedule: Schedule,
        output: Path,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        self.loop, self.schedule, self.output, self.config = (loop, schedule, output, config)
        self.facts, self.lock = facts, Lock(output)
        self.id, self.origin = uuid.uuid4().hex, None  # type: str, list[Any] | None
        self.dataset, self.optimizer = dataset, optimizer
        self.device = processes.join(cpu=loop.device == "cpu")
        self.parts = loop.parts_on(processes.count())  # refuses a batch that cannot be shared
        self.task = task.to(self.device).train()
        self.model: nn.Module = getattr(task, "model", task)
        self.update = Step(task, optimizer, loop, self.device)
        self.learns = describe_optimizer(optimizer, {id(p): name for name, p in task.named_parameters()})
        self.odd = set(nonfinite_tensors(self.model))  # an infinite mask, for one, is meant
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.per_epoch = loop.steps_per_epoch(len(dataset))
        self.total = loop.total_steps(len(dataset))
        self.ema = Ema(self.model, loop.ema_decay, loop.warms_up(self.total)) if loop.ema_decay else None
        self.about = provenance()  # of the code that runs, not of later edits
        self.state = State()
        self.saved: int | None = None

    def open(self) -> None:
        """The output folder as this run's alone, without what killed runs left half written."""
        check_writable(self.output)
        self.lock.take()
        checkpoints.sweep(self.output)

    def close(self) -> None:
        if self.log:
            self.log.close()
        if self.main:
            self.lock.release()

    def on_main(self, work: Callable[[], None]) -> None:
        """Work of the first process; if it fails there, it fails on all."""
        error = ""
        if self.main:
            try:
                work()
            except ValueError as fault:
                error = str(fault)
        errors = processes.of_all_processes([error])
        if any(errors):
            raise ValueError(next(filter(None, errors)))

    @property
    def main(self) -> bool:
        return processes.is_first()

    @property
    def logs(self) -> Log:
        assert self.log
        return self.log

    def gathered_model(self) -> nn.Module:
        """The model with all of its weights; every process has to ask."""
        if self.copy is None:
            return self.model
        self.copy.load_state_dict(gathered(self.model.state_dict(), "cpu"))
        return self.copy

    def scored(self) -> nn.Module:
        """The model that evaluations are about: of averaged weights, if they are kept; every process has to ask."""
        return self.ema.model if self.ema else self.gathered_model()

    def rate(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def where(self) -> dict[str, float]:
        return {
            "epoch": round(self.state.step / self.per_epoch, 4),
            "seconds": round(self.state.seconds, 2),
        }

    def count(self, numbers: Mapping[str, float]) -> None:
        state = self.state
        state.counted += "loss" in numbers
        state.window += "data_wait" in numbers
        for key, value in numbers.items():
            state.sums[key] = state.sums.get(key, 0.0) + value

    def write_log(self, bar: tqdm[Any]) -> None:
        """Means since the last row; the learning rate and the counters are the latest."""
        state = self.state
        timing = {k: state.sums.pop(k) / state.window for k in ("seconds_per_step", "data_wait")}
        means = {k: v / max(state.counted, 1) for k, v in state.sums.items()}
        speed = self.loop.batch_size / timing["seconds_per_step"]
        row = {
            "step": state.step,
            **self.where(),
            **means,
            "lr": self.rate(),
            "nonfinite": state.nonfinite,
            "samples_per_second": round(speed, 2),
            "data_wait": round(timing["data_wait"], 4),
            "memory_mb": memory_mb(),
        }
        self.logs.write("log.csv", row)
        bar.set_postfix_str(brief(means))
        state.sums, state.counted, state.window = {}, 0, 0


def of_model(name: str) -> bool:
    """Whether a weight of a task is its model's."""
    return name.startswith("model.")
