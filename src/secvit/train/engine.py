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
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from secvit import processes
from secvit.fields import few, read_yaml
from secvit.files import check_writable, write_atomically
from secvit.progress import Progress, brief, busy
from secvit.provenance import provenance
from secvit.train import checkpoint as checkpoints
from secvit.train.batches import batches
from secvit.train.config import Loop, Schedule, changes
from secvit.train.ema import Ema
from secvit.train.facts import data_facts, difference
from secvit.train.lock import Lock
from secvit.train.log import Log, NoLog, memory_mb
from secvit.train.nonfinite import nonfinite_tensors
from secvit.train.result import Result
from secvit.train.resume import adapt_optimizer, choose, describe_optimizer
from secvit.train.sampler import mix
from secvit.train.schedule import learning_rate
from secvit.train.sharding import whole
from secvit.train.step import Step
from secvit.train.stop import Stop
from secvit.weights import load_weights, misfit

logger = logging.getLogger(__name__)
Evaluate = Callable[[nn.Module], Mapping[str, float]]
BEGINS = ("init", "pretrained")  # entries of a recipe that say what a run begins with, which a resumed one does not
ABOUT = {"secvit", "task", "recipe", "input"}  # entries of config.yaml that older versions did not write
LEARNING = {  # entries of a recipe that only further steps can use
    *("optim", "schedule", "augment"),
    *(f"loop.{name}" for name in ("batch_size", "seed", "precision", "clip_grad", "ema_decay", "repeats")),
}


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
    classes: Sequence[str] = (),
    names: Iterable[str] = (),
) -> Result:
    """Train `task`, writing logs and checkpoints to `output`, which no other run may use meanwhile.

    Args:
        evaluate: gets the model (averaged weights if kept) in eval mode, returns numbers for
            eval.csv.  In a run of many processes each of them calls it.
        best: the number among them whose largest value marks the checkpoint to keep.
        config: the resolved recipe, written beside every checkpoint.
        resume: "auto" continues the newest whole checkpoint in `output` if there is one, "never"
            refuses a folder that holds one, anything else is the path of a checkpoint or a run.
        classes, names: of the data, in order: a run goes on only with those that it began with, and as
            many samples.  A name says what a sample is: its file, and its label if the file's folder does not.

    `stopped` in the result is "" for a finished run, otherwise the reason: "time limit",
    "interrupted", "terminated".  In each case the last step is in a checkpoint.

    ValueError if the output folder, its checkpoints or the data are not fit for this run, or if data
    cannot be read: then, on one process, the last step is in a checkpoint, too.
    """
    names = names if isinstance(names, Sequence) else list(names)
    facts = data_facts(len(dataset), classes, names)
    run = Run(task, optimizer, dataset, loop, schedule, Path(output), config or asdict(loop), facts)
    run.names = names
    try:
        run.start(resume)
        with Stop(loop.time_limit_minutes, silent=not run.main) as stop:
            return run.steps(stop, evaluate, best)
    finally:
        run.close()


class Run:
    """One run: the task on its device, the optimizer, the averaged weights, the state, the log."""

    log: Log | None = None
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

    # -- beginning and resuming ----------------------------------------------------------------

    def start(self, resume: str) -> None:
        self.on_main(self.open)
        choice = choose(self.output, resume)
        for fault in choice.damaged.values() if self.main else ():
            previous = choice.checkpoint.name if choice.checkpoint else "the beginning"
            logger.warning("%s; going on from the previous checkpoint, %s", fault, previous)
        if choice.checkpoint:
            self.restore(choice.checkpoint, choice.anew)
        self.check_same_step()
        for damaged in choice.damaged if self.main else ():
            checkpoints.set_aside(damaged)
        if self.main:  # from now on the folder says what it is
            write_atomically(self.output / "config.yaml", checkpoints.to_yaml(self.config))
        state, trackers = self.state, self.loop.trackers
        self.log = Log(self.output, state.step, state.evaluated, trackers, self.config) if self.main else NoLog()
        self.copy = copy.deepcopy(self.model).requires_grad_(False) if self.update.sharded else None
        self.update.prepare()
        self.introduce()

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

    def introduce(self) -> None:
        """What is going to happen, before the first step."""
        if not self.main:
            return
        classes = f" of {len(self.facts['classes'])} classes" if self.facts["classes"] else ""
        logger.info(
            "%s training samples%s; %s steps of %d, %s an epoch, on %s%s",
            f"{self.facts['samples']:,}",
            classes,
            f"{self.total:,}",
            self.loop.batch_size,
            f"{self.per_epoch:,}",
            self.device,
            f" (from step {self.state.step:,})" if self.state.step else "",
        )
        if self.ema and self.ema.warmup and self.loop.ema_warmup is None:
            logger.info(
                "weights are averaged over few steps at first: %s steps are too short a run for ema_decay %s",
                f"{self.total:,}",
                self.loop.ema_decay,
            )

    def check_same_step(self) -> None:
        """Otherwise some processes would be done while the others wait for them."""
        steps = processes.of_all_processes([self.state.step])
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
        return processes.is_first()

    def restore(self, folder: Path, anew: bool) -> None:
        state = checkpoints.load_state(folder)
        self.check_same_data(folder, state)
        self.check_same_recipe(folder, finished=state["step"] >= self.total)
        load_weights(self.model, folder / "model.safetensors")
        if self.ema:
            averaged = folder / "ema.safetensors"
            load_weights(self.ema.model, averaged if averaged.exists() else folder / "model.safetensors")
        beside = {k: v for k, v in self.task.state_dict().items() if self.model is not self.task and not _of_model(k)}
        if report := misfit(state["task"], beside):
            raise ValueError(f"{folder} does not fit {type(self.task).__name__}: {report}; give another --output")
        self.task.load_state_dict(state["task"], strict=False)
        self.restore_optimizer(folder, state)
        kept = asdict(State())
        self.state = State(**{key: state.get(key, kept[key]) for key in kept})
        self.restore_score(folder)
        self.saved = self.state.step
        if anew:
            self.origin = [state.get("run"), self.state.step]
        else:
            self.id, self.origin = state.get("run") or self.id, state.get("origin")
        if self.main:
            logger.info("resuming %s at step %d of %d", folder, self.state.step, self.total)

    def check_same_data(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Otherwise the weights' classes would get other names, and the rest of the run another order."""
        if "data" not in state:
            if self.main:
                logger.warning("%s is of an earlier version: whether its data were the same is not known", folder)
        elif differs := difference(state["data"], self.facts):
            raise ValueError(
                f"{folder} was trained on other data: {differs}. Give another --output to train on the data as they "
                "are now, or give the data that the run began with"
            )

    def check_same_recipe(self, folder: Path, finished: bool) -> None:
        """Say what the recipe changed since; refuse what would be written down and not used."""
        try:
            old = read_yaml(folder / "config.yaml")
            changed = changes(old, {key: value for key, value in self.config.items() if key in old or key not in ABOUT})
        except ValueError as error:
            logger.warning("%s; its recipe is not compared", error)
            return
        if not (self.ema and self.ema.warmup):  # null is what false was in earlier versions
            changed = [change for change in changed if change != "loop.ema_warmup was False, is None"]
        for change in changed:
            entry, _, values = change.partition(" was ")
            if entry.rpartition(".")[2] in BEGINS and not values.endswith((" is None", " is False", " is ")):
                raise ValueError(f"{folder}: {change}, but a resumed run keeps its weights; give another --output")
            if finished and (entry.partition(".")[0] in LEARNING or entry in LEARNING):
                raise ValueError(
                    f"{folder}: the run is finished, and {change} would not be used; give more --loop.steps or "
                    "--loop.epochs, or another --output"
                )
        if changed and self.main:
            logger.warning("resuming with another recipe than before: %s", ", ".join(changed))

    def restore_optimizer(self, folder: Path, state: Mapping[str, Any]) -> None:
        """What the optimizer remembers, under the options of today's recipe."""
        remedy = "give the recipe that the run began with, or another --output"
        try:
            fresh = self.optimizer.state_dict()
            adapted = adapt_optimizer(state["optimizer"], state.get("learns"), self.learns, fresh)
            self.optimizer.load_state_dict(adapted)
            if self.update.scaler.is_enabled() and not state["scaler"]:
                raise ValueError("it has no loss scale, which precision=fp16 needs")
            self.update.scaler.load_state_dict(state["scaler"])
        except ValueError as error:
            raise ValueError(f"{folder} cannot be resumed with this recipe: {error}; {remedy}") from None
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"{folder}: its optimizer's state cannot be read ({type(error).__name__}: {error}); {remedy}"
            ) from error

    def restore_score(self, folder: Path) -> None:
        """What the evaluation of these weights changed, if it came to its end."""
        try:
            score = checkpoints.load_score(folder)
        except ValueError as error:
            logger.warning("%s; scoring step %d again", error, self.state.step)
            return
        if score.get("step") == self.state.step:
            for key in ("evaluated", "best", "best_step", "seconds"):
                setattr(self.state, key, score[key])

    # -- the loop ------------------------------------------------------------------------------

    def steps(self, stop: Stop, evaluate: Evaluate | None, best: str) -> Result:
        state, reason, metrics, warm = self.state, "", dict[str, float](), False
        save_every = self.loop.save_every or self.per_epoch
        evaluate_every = self.loop.evaluate_every or self.per_epoch if evaluate else self.total + 1

        def due(every: int) -> bool:
            return state.step > 0 and state.step % every == 0

        feed = batches(self.dataset, self.loop, state.step, self.total, self.device, self.names)
        bar = tqdm(
            total=self.total,
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if self.main else True,
        )
        self.silent = not (bar.disable and self.main)
        progress = Progress(state.step, self.total, self.silent)
        with bar, contextlib.closing(feed) as parts:
            while not reason:
                done = state.step >= self.total
                if done or due(save_every):
                    self.save()
                if evaluate and (done or (due(evaluate_every) and state.evaluated != state.step)):
                    metrics = self.evaluate(evaluate, best)
                if done:
                    break
                began = time.perf_counter()
                with busy("first step", silent=warm or self.silent):
                    batch = self.next_batch(parts)
                    waited = time.perf_counter() - began
                    stopping, numbers = self.step(batch, bool(stop.reason))
                warm = True
                state.step += 1
                seconds = max(time.perf_counter() - began, 1e-9)  # a clock may stand still
                state.seconds += seconds
                self.count({"seconds_per_step": seconds, "data_wait": waited / seconds})
                bar.update()
                progress.step(state.step, numbers, self.rate(), state.nonfinite)
                if state.step % self.loop.log_every == 0 or state.step == self.total:
                    self.write_log(bar)
                if stopping and state.step < self.total:
                    reason = stop.reason or "another process stopped"
                    self.save()
        if reason and self.main:
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

    def next_batch(self, parts: Iterator[Any]) -> list[Any]:
        """The next step's parts.  Data that cannot be read end the run, with the steps before in a checkpoint."""
        try:
            return [next(parts) for _ in range(self.parts)]
        except (ValueError, OSError):
            self.save_alone()
            raise

    def step(self, parts: list[Any], stopping: bool) -> tuple[bool, dict[str, float]]:
        """One optimizer step and its bookkeeping.

        Returns whether any process wants to stop, and the step's numbers, none if it was skipped.
        """
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
        return done.stop, done.numbers if done.finite else {}

    def rate(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    # -- evaluating, logging, saving -----------------------------------------------------------

    def evaluate(self, evaluate: Evaluate, best: str) -> dict[str, float]:
        model = self.ema.model if self.ema else self.whole()
        state = self.state
        if self.main:
            self.output.mkdir(parents=True, exist_ok=True)
            if self.scoring > 5:
                logger.info("step %d of %d: scoring", state.step, self.total)
        began = time.perf_counter()
        model.eval()
        try:
            with torch.no_grad(), busy(f"step {state.step} of {self.total}, scoring", silent=self.silent):
                both = self.ema is not None and self.loop.score_plain
                plain = evaluate(self.whole().eval()) if both else {}  # first: what a task draws is of the last
                metrics = {**evaluate(model), **{f"plain_{name}": value for name, value in plain.items()}}
        except Exception:
            self.save_alone()
            raise
        self.task.train()
        self.scoring = time.perf_counter() - began
        state.seconds += self.scoring
        if state.evaluated != state.step:  # else a finished run is only scored again
            self.logs.write("eval.csv", {"step": state.step, **self.where(), **metrics})
        state.evaluated = state.step
        if self.main:
            logger.info("step %d of %d: %s%s", state.step, self.total, brief(metrics, best), self.behind())
        if best and math.isfinite(metrics[best]) and (_none(state.best) or metrics[best] > (state.best or 0)):
            state.best, state.best_step = float(metrics[best]), state.step
        if state.step == state.best_step:
            self.save()
        self.save_score()
        return metrics

    def behind(self) -> str:
        """Why a score says little yet, if averaged weights are still much like those the run began with."""
        first = self.ema.first(self.state.step) if self.ema else 0.0
        return f" (of the averaged weights, which are still {100 * first:.0f} % the first ones)" if first > 0.02 else ""

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

    def save(self) -> None:
        if self.saved == self.state.step:
            return
        here = "cpu" if self.main else "meta"
        model, remembered = self.whole(), whole(self.optimizer.state_dict(), here)
        task = whole(self.task.state_dict(), here) if self.model is not self.task else {}
        self.check_finite(model)
        if self.main:
            state = {
                **asdict(self.state),
                "run": self.id,
                "origin": self.origin,
                "data": self.facts,
                "learns": self.learns,
                "task": {k: v for k, v in task.items() if not _of_model(k)},
                "optimizer": remembered,
                "scaler": self.update.scaler.state_dict(),
            }
            averaged = self.ema.model if self.ema else None
            step, config = self.state.step, self.config
            self.lock.check()
            self.logs.sync()
            checkpoints.save_checkpoint(self.output, step, model, averaged, state, config, self.about)
            checkpoints.prune(self.output, self.loop.keep_last, self.state.best_step)
        self.saved = self.state.step
        processes.wait()

    def save_alone(self) -> None:
        """Save what an error would cost, where no other process has to take part."""
        if processes.count() == 1 and 0 < self.state.step != self.saved:
            self.save()
            logger.info("step %d of %d is saved", self.state.step, self.total)

    def save_score(self) -> None:
        """Add to the checkpoint of this step, if there is one, what its evaluation changed."""
        state = self.state
        if not self.main or self.saved != state.step:
            return
        checkpoint = self.output / checkpoints.FOLDER / checkpoints.name(state.step)
        if checkpoint.is_dir():
            score = {key: getattr(state, key) for key in ("step", "evaluated", "best", "best_step", "seconds")}
            checkpoints.save_score(checkpoint, score)
        checkpoints.prune(self.output, self.loop.keep_last, state.best_step)

    def check_finite(self, model: nn.Module) -> None:
        """No checkpoint without use: the one before stays the newest."""
        bad = [name for name in nonfinite_tensors(model) if name not in self.odd]
        if bad:
            last = checkpoints.latest(self.output)
            raise FloatingPointError(
                f"step {self.state.step}: {len(bad)} weights are NaN or infinite ({few(bad)}), and are not saved; "
                f"the newest checkpoint is {last or 'none'}. Lower the learning rate or the weight decay, or clip the "
                "gradient, and run it again"
            )

    @property
    def logs(self) -> Log:
        assert self.log
        return self.log


def _of_model(name: str) -> bool:
    """Whether a weight of a task is its model's."""
    return name.startswith("model.")


def _none(best: float | None) -> bool:
    """Whether there is no best score yet; NaN is none."""
    return best is None or not math.isfinite(best)
