"""The one loop: any task, any recipe, counted in optimizer steps, resumable to the bit.

A task is an nn.Module with `task(batch) -> {"loss": scalar, ...}`.  Its `model` attribute, if it
has one, is what checkpoints, averaged weights and evaluation are about; otherwise the task itself.

A dataset answers `len(dataset)` and `dataset[key]`, or `dataset.__getitems__(keys)` for a whole
batch, and may bring its own `collate`, and `order(generator)` of an epoch's indices (those of a step lie
together; random without).  A key is `draw * len(dataset) + index` (`sampler.Keys`).

Nothing random is carried from step to step: the data order is a function of (seed, epoch), the
augmentation of (seed, key), and before each part of a step every generator is seeded with (seed,
step, part).  So a checkpoint needs no generator states, and a resumed run is the unbroken one on any
number of data workers, and on any number of processes that shares the same parts.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from tqdm import tqdm

from secvit.extras import needs
from secvit.train import checkpoint as files
from secvit.train.config import Loop, Schedule, changes
from secvit.train.ema import Ema
from secvit.train.loading import batches
from secvit.train.log import Log, NoLog, memory_mb
from secvit.train.provenance import provenance
from secvit.train.result import Result
from secvit.train.sampler import mix
from secvit.train.schedule import learning_rate
from secvit.train.sharding import whole
from secvit.train.shares import of_all_processes
from secvit.train.step import Step
from secvit.train.stop import Stop
from secvit.weights import load_weights

logger = logging.getLogger(__name__)
Evaluate = Callable[[nn.Module], Mapping[str, float]]
PATIENCE = timedelta(minutes=10)  # for other processes, before one that hangs becomes an error


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


def fit(
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Any,
    loop: Loop,
    schedule: Schedule,
    output: str | Path,
    *,
    evaluate: Evaluate | None = None,
    best: str = "",
    config: Mapping[str, Any] | None = None,
    resume: str = "auto",
) -> Result:
    """Train `task`, writing logs and checkpoints to `output`.

    Args:
        evaluate: gets the model (averaged weights if kept) in eval mode, returns numbers for
            eval.csv.  In a run of many processes each of them calls it.
        best: the number among them whose largest value marks the checkpoint to keep.
        config: the resolved recipe, written beside every checkpoint.
        resume: "auto" continues the newest checkpoint in `output` if there is one, "never"
            refuses a folder that holds one, anything else is the path of a checkpoint.

    `stopped` in the result is "" for a finished run, otherwise the reason: "time limit",
    "interrupted", "terminated".  In each case the last step is in a checkpoint.
    """
    run = Run(task, optimizer, dataset, loop, schedule, Path(output), config or asdict(loop))
    run.start(resume)
    with Stop(loop.time_limit_minutes) as stop:
        try:
            return run.steps(stop, evaluate, best)
        finally:
            run.log.close()


class Run:
    """One run: the task on its device, the optimizer, the averaged weights, the state, the log."""

    log: Log

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        dataset: Any,
        loop: Loop,
        schedule: Schedule,
        output: Path,
        config: Mapping[str, Any],
    ) -> None:
        with needs("training", "accelerate", "train"):
            from accelerate import Accelerator, InitProcessGroupKwargs
        self.loop, self.schedule, self.output, self.config = (loop, schedule, output, config)
        self.dataset, self.optimizer = dataset, optimizer
        cpu = loop.device == "cpu" or not torch.accelerator.is_available()
        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[patience])
        self.parts = loop.parts_on(self.accelerator.num_processes)  # refuses a batch that cannot be shared
        self.task = task.to(self.accelerator.device).train()
        self.model: nn.Module = getattr(task, "model", task)
        self.ema = Ema(self.model, loop.ema_decay, loop.ema_warmup) if loop.ema_decay else None
        self.update = Step(task, optimizer, loop, self.accelerator)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.per_epoch = loop.steps_per_epoch(len(dataset))
        self.total = loop.total_steps(len(dataset))
        self.about = provenance()  # of the code that runs, not of later edits
        self.state = State()
        self.saved: int | None = None

    # -- beginning and resuming ----------------------------------------------------------------

    def start(self, resume: str) -> None:
        files.check_writable(self.output)
        last = files.latest(self.output)
        if resume == "never" and last:
            raise ValueError(
                f"{self.output} already holds a run (up to {last.name}); resume it with "
                'resume="auto", or choose another output folder'
            )
        found = last if resume in ("auto", "never") else Path(resume)
        if found and last and found.parent.resolve() == last.parent.resolve() and found.name < last.name:
            raise ValueError(f"{found} is older than {last.name} in the same run; give another output folder")
        if found:
            self.restore(found)
        self.check_same_step()
        step, trackers = self.state.step, self.loop.trackers
        self.log = Log(self.output, step, trackers, self.config) if self.main else NoLog()
        self.copy = copy.deepcopy(self.model).requires_grad_(False) if self.update.sharded else None
        self.update.prepare()

    def check_same_step(self) -> None:
        """Otherwise some processes would be done while the others wait for them."""
        steps = of_all_processes([self.state.step])
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self.output}: the processes found checkpoints of steps {steps}; give an output folder "
                "that all machines share"
            )

    def whole(self) -> nn.Module:
        """The model with all of its weights; every process has to ask."""
        if self.copy is None:
            return self.model
        self.copy.load_state_dict(whole(self.model.state_dict(), "cpu"))
        return self.copy

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def restore(self, folder: Path) -> None:
        state = files.load_state(folder)
        load_weights(self.model, folder / "model.safetensors")
        if self.ema:
            averaged = folder / "ema.safetensors"
            name = averaged if averaged.exists() else folder / "model.safetensors"
            load_weights(self.ema.model, name)
        self.task.load_state_dict(state["task"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.update.scaler.load_state_dict(state["scaler"])
        self.state = State(**{k: state[k] for k in asdict(State())})
        self.saved = self.state.step
        changed = changes(yaml.safe_load((folder / "config.yaml").read_text()), self.config)
        if changed and self.main:
            logger.warning("resuming with another recipe than before: %s", ", ".join(changed))
        logger.info("resuming %s at step %d of %d", folder, self.state.step, self.total)

    # -- the loop ------------------------------------------------------------------------------

    def steps(self, stop: Stop, evaluate: Evaluate | None, best: str) -> Result:
        state, reason, metrics = self.state, "", dict[str, float]()
        save_every = self.loop.save_every or self.per_epoch
        evaluate_every = self.loop.evaluate_every or self.per_epoch if evaluate else self.total + 1

        def due(every: int) -> bool:
            return state.step > 0 and state.step % every == 0

        feed = batches(self.dataset, self.loop, state.step, self.total, self.accelerator)
        bar = tqdm(
            total=self.total,
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if self.main else True,
        )
        with bar, contextlib.closing(feed) as parts:
            while not reason:
                done = state.step >= self.total
                if evaluate and (done or (due(evaluate_every) and state.evaluated != state.step)):
                    metrics = self.evaluate(evaluate, best)
                if done or due(save_every) or state.step == state.best_step:
                    self.save()
                if done:
                    break
                began = time.perf_counter()
                batch = [next(parts) for _ in range(self.parts)]
                waited = time.perf_counter() - began
                stopping = self.step(batch, bool(stop.reason))
                state.step += 1
                seconds = time.perf_counter() - began
                state.seconds += seconds
                self.count({"seconds_per_step": seconds, "data_wait": waited / seconds})
                bar.update()
                if state.step % self.loop.log_every == 0 or state.step == self.total:
                    self.write_log(bar)
                if stopping and state.step < self.total:
                    reason = stop.reason or "another process stopped"
                    self.save()
        if reason:
            logger.info("%s: stopped at step %d of %d, saved", reason, state.step, self.total)
        return Result(
            self.ema.model if self.ema else self.whole(),
            state.step,
            reason,
            metrics,
            state.best,
            state.best_step,
            state.nonfinite,
            state.seconds,
            self.main,
            self.about,
        )

    def step(self, parts: list[Any], stopping: bool) -> bool:
        """One optimizer step and its bookkeeping.  Returns whether any process wants to stop."""
        state, loop = self.state, self.loop
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            rate = learning_rate(state.step, self.total, peak, self.schedule, self.per_epoch)
            group["lr"] = rate * group.get("lr_scale", 1.0)  # timm's layer decay
        done = self.update(parts, mix(loop.seed, state.step), stopping)
        if done.finite:
            self.count(done.numbers)
        if done.bad:
            state.nonfinite += 1
            message = (
                f"step {state.step}: non-finite loss or gradient, first in {done.bad}; step "
                f"skipped ({state.nonfinite} so far, limit {loop.max_nonfinite})"
            )
            if self.main:
                logger.warning(message)
            if state.nonfinite > loop.max_nonfinite:
                raise FloatingPointError(message + ". Lower the learning rate, clip the gradient or check the data.")
        elif self.ema:
            self.ema.update(self.model, state.step)
        return done.stop

    # -- evaluating, logging, saving -----------------------------------------------------------

    def evaluate(self, evaluate: Evaluate, best: str) -> dict[str, float]:
        model = self.ema.model if self.ema else self.whole()
        began = time.perf_counter()
        model.eval()
        with torch.no_grad():
            metrics = dict(evaluate(model))
        self.task.train()
        self.state.seconds += time.perf_counter() - began
        if self.state.evaluated != self.state.step:  # else a finished run is only scored again
            self.log.write("eval.csv", {"step": self.state.step, **self.where(), **metrics})
        self.state.evaluated = self.state.step
        logger.info("step %d: %s", self.state.step, _short(metrics))
        if best and (self.state.best is None or metrics[best] > self.state.best):
            self.state.best, self.state.best_step = metrics[best], self.state.step
        return metrics

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
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "nonfinite": state.nonfinite,
            "samples_per_second": round(speed, 2),
            "data_wait": round(timing["data_wait"], 4),
            "memory_mb": memory_mb(),
        }
        self.log.write("log.csv", row)
        bar.set_postfix_str(_short(means))
        if bar.disable and self.main:
            logger.info(
                "step %d of %d: %s", state.step, self.total, _short({k: v for k, v in row.items() if k != "step"})
            )
        state.sums, state.counted, state.window = {}, 0, 0

    def save(self) -> None:
        if self.saved == self.state.step:
            return
        here = "cpu" if self.main else "meta"
        model, remembered = self.whole(), whole(self.optimizer.state_dict(), here)
        task = whole(self.task.state_dict(), here) if self.model is not self.task else {}
        if self.main:
            state = {
                **asdict(self.state),
                "task": {k: v for k, v in task.items() if not k.startswith("model.")},
                "optimizer": remembered,
                "scaler": self.update.scaler.state_dict(),
            }
            averaged = self.ema.model if self.ema else None
            step, config = self.state.step, self.config
            files.save_checkpoint(self.output, step, model, averaged, state, config, self.about)
            files.prune(self.output, self.loop.keep_last, self.state.best_step)
        self.saved = self.state.step
        self.accelerator.wait_for_everyone()


def _short(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
