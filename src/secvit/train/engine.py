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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from secvit import processes
from secvit.files import write_atomically
from secvit.progress import Progress, brief, busy
from secvit.train import checkpoint as checkpoints
from secvit.train.batches import batches
from secvit.train.config import Loop, Schedule
from secvit.train.facts import data_facts
from secvit.train.log import Log, NoLog
from secvit.train.restore import restore
from secvit.train.result import Result
from secvit.train.resume import choose
from secvit.train.run import Run
from secvit.train.sampler import mix
from secvit.train.saving import save, save_alone, save_score
from secvit.train.schedule import learning_rate
from secvit.train.stop import Stop

logger = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module], Mapping[str, float]]


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
        _start(run, resume)
        with Stop(loop.time_limit_minutes, silent=not run.main) as stop:
            return _steps(run, stop, evaluate, best)
    finally:
        run.close()


def _start(run: Run, resume: str) -> None:
    run.on_main(run.open)
    choice = choose(run.output, resume)
    for fault in choice.damaged.values() if run.main else ():
        previous = choice.checkpoint.name if choice.checkpoint else "the beginning"
        logger.warning("%s; going on from the previous checkpoint, %s", fault, previous)
    if choice.checkpoint:
        restore(run, choice.checkpoint, choice.anew)
    _check_same_step(run)
    for damaged in choice.damaged if run.main else ():
        checkpoints.set_aside(damaged)
    if run.main:  # from now on the folder says what it is
        write_atomically(run.output / "config.yaml", checkpoints.to_yaml(run.config))
    state, trackers = run.state, run.loop.trackers
    logged = state.step - state.window
    run.log = Log(run.output, state.step, state.evaluated, logged, trackers, run.config) if run.main else NoLog()
    run.copy = copy.deepcopy(run.model).requires_grad_(False) if run.update.sharded else None
    run.update.prepare()
    _introduce(run)


def _introduce(run: Run) -> None:
    """What is going to happen, before the first step."""
    if not run.main:
        return
    classes = f" of {len(run.facts['classes'])} classes" if run.facts["classes"] else ""
    logger.info(
        "%s training samples%s; %s steps of %d, %s an epoch, on %s%s",
        f"{run.facts['samples']:,}",
        classes,
        f"{run.total:,}",
        run.loop.batch_size,
        f"{run.per_epoch:,}",
        run.device,
        f" (from step {run.state.step:,})" if run.state.step else "",
    )
    if run.ema and run.ema.warmup and run.loop.ema_warmup is None:
        logger.info(
            "weights are averaged over few steps at first: %s steps are too short a run for ema_decay %s",
            f"{run.total:,}",
            run.loop.ema_decay,
        )


def _check_same_step(run: Run) -> None:
    """Otherwise some processes would be done while the others wait for them."""
    steps = processes.of_all_processes([run.state.step])
    if len(set(steps)) > 1:
        raise ValueError(
            f"{run.output}: the processes found checkpoints of steps {steps}; give an output folder "
            "that all machines share"
        )


def _steps(run: Run, stop: Stop, evaluate: Evaluate | None, best: str) -> Result:
    state, reason, metrics, warm = run.state, "", dict[str, float](), False
    save_every = run.loop.save_every or run.per_epoch
    evaluate_every = run.loop.evaluate_every or run.per_epoch if evaluate else run.total + 1

    def due(every: int) -> bool:
        return state.step > 0 and state.step % every == 0

    feed = batches(run.dataset, run.loop, state.step, run.total, run.device, run.names)
    bar = tqdm(
        total=run.total,
        initial=state.step,
        unit="step",
        dynamic_ncols=True,
        disable=None if run.main else True,
    )
    run.silent = not (bar.disable and run.main)
    progress = Progress(state.step, run.total, run.silent)
    with bar, contextlib.closing(feed) as parts:
        while not reason:
            done = state.step >= run.total
            if done or due(save_every):
                save(run)
            if evaluate and (done or (due(evaluate_every) and state.evaluated != state.step)):
                metrics = _score(run, evaluate, best)
            if done:
                break
            began = time.perf_counter()
            with busy("first step", silent=warm or run.silent):
                batch = _next_batch(run, parts)
                waited = time.perf_counter() - began
                stopping, numbers = _step(run, batch, bool(stop.reason))
            warm = True
            state.step += 1
            seconds = max(time.perf_counter() - began, 1e-9)  # a clock may stand still
            state.seconds += seconds
            run.count({"seconds_per_step": seconds, "data_wait": waited / seconds})
            bar.update()
            progress.step(state.step, numbers, run.rate(), state.nonfinite)
            if state.step % run.loop.log_every == 0 or state.step == run.total:
                run.write_log(bar)
            if stopping and state.step < run.total:
                reason = stop.reason or "another process stopped"
                save(run)
    if reason and run.main:
        logger.info("%s: stopped at step %d of %d, saved", reason, state.step, run.total)
    return Result(
        run.scored(),
        state.step,
        reason,
        metrics,
        state.best,
        state.best_step,
        state.nonfinite,
        state.seconds,
        run.main,
        run.about,
    )


def _next_batch(run: Run, parts: Iterator[Any]) -> list[Any]:
    """The next step's parts.  Data that cannot be read end the run, with the steps before in a checkpoint."""
    try:
        return [next(parts) for _ in range(run.parts)]
    except (ValueError, OSError):
        save_alone(run)
        raise


def _step(run: Run, parts: list[Any], stopping: bool) -> tuple[bool, dict[str, float]]:
    """One optimizer step and its bookkeeping.

    Returns whether any process wants to stop, and the step's numbers, none if it was skipped.
    """
    state, loop = run.state, run.loop
    for group, peak in zip(run.optimizer.param_groups, run.peaks, strict=True):
        rate = learning_rate(state.step, run.total, peak, run.schedule, run.per_epoch)
        group["lr"] = rate * group.get("lr_scale", 1.0)  # timm's layer decay
    done = run.update(parts, mix(loop.seed, state.step), stopping)
    if done.finite:
        run.count(done.numbers)
    if done.bad:
        state.nonfinite += 1
        message = (
            f"step {state.step}: non-finite loss or gradient, first in {done.bad}; step "
            f"skipped ({state.nonfinite} so far, limit {loop.max_nonfinite})"
        )
        if run.main:
            logger.warning(message)
        if state.nonfinite > loop.max_nonfinite:
            raise FloatingPointError(message + ". Lower the learning rate, clip the gradient or check the data.")
    elif run.ema:
        run.ema.update(run.model, state.step)
    return done.stop, done.numbers if done.finite else {}


def _score(run: Run, evaluate: Evaluate, best: str) -> dict[str, float]:
    model = run.scored()
    state = run.state
    if run.main:
        run.output.mkdir(parents=True, exist_ok=True)
        if run.scoring > 5:
            logger.info("step %d of %d: scoring", state.step, run.total)
    began = time.perf_counter()
    model.eval()
    try:
        with torch.no_grad(), busy(f"step {state.step} of {run.total}, scoring", silent=run.silent):
            both = run.ema is not None and run.loop.score_plain
            plain = evaluate(run.gathered_model().eval()) if both else {}  # first: what a task draws is of the last
            metrics = {**evaluate(model), **{f"plain_{name}": value for name, value in plain.items()}}
    except Exception:
        save_alone(run)
        raise
    run.task.train()
    run.scoring = time.perf_counter() - began
    state.seconds += run.scoring
    if state.evaluated != state.step:  # else a finished run is only scored again
        run.logs.write("eval.csv", {"step": state.step, **run.where(), **metrics})
    state.evaluated = state.step
    if run.main:
        logger.info("step %d of %d: %s%s", state.step, run.total, brief(metrics, best), _behind(run))
    if best and math.isfinite(metrics[best]) and (_none(state.best) or metrics[best] > (state.best or 0)):
        state.best, state.best_step = float(metrics[best]), state.step
    if state.step == state.best_step:
        save(run)
    save_score(run)
    return metrics


def _behind(run: Run) -> str:
    """Why a score says little yet, if averaged weights are still much like those the run began with."""
    first = run.ema.first(run.state.step) if run.ema else 0.0
    return f" (of the averaged weights, which are still {100 * first:.0f} % the first ones)" if first > 0.02 else ""


def _none(best: float | None) -> bool:
    """Whether there is no best score yet; NaN is none."""
    return best is None or not math.isfinite(best)
