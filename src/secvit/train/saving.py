"""Checkpoints of a run, and what the evaluation of one adds to it."""

from __future__ import annotations

import logging
from dataclasses import asdict

from torch import nn

from secvit import processes
from secvit.fields import abridged
from secvit.train import checkpoint as checkpoints
from secvit.train.nonfinite import nonfinite_tensors
from secvit.train.run import Run, of_model
from secvit.train.sharding import gathered

logger = logging.getLogger(__name__)


def save(run: Run) -> None:
    if run.saved == run.state.step:
        return
    here = "cpu" if run.main else "meta"
    model, remembered = run.gathered_model(), gathered(run.optimizer.state_dict(), here)
    task = gathered(run.task.state_dict(), here) if run.model is not run.task else {}
    _check_finite(run, model)
    if run.main:
        state = {
            **asdict(run.state),
            "run": run.id,
            "origin": run.origin,
            "data": run.facts,
            "learns": run.learns,
            "task": {k: v for k, v in task.items() if not of_model(k)},
            "optimizer": remembered,
            "scaler": run.update.scaler.state_dict(),
        }
        averaged = run.ema.model if run.ema else None
        step, config = run.state.step, run.config
        run.lock.check()
        run.logs.sync()
        checkpoints.save_checkpoint(run.output, step, model, averaged, state, config, run.about)
        checkpoints.prune(run.output, run.loop.keep_last, run.state.best_step)
    run.saved = run.state.step
    processes.wait()


def save_alone(run: Run) -> None:
    """Save what an error would cost, where no other process has to take part."""
    if processes.count() == 1 and 0 < run.state.step != run.saved:
        save(run)
        logger.info("step %d of %d is saved", run.state.step, run.total)


def save_score(run: Run) -> None:
    """Add to the checkpoint of this step, if there is one, what its evaluation changed."""
    state = run.state
    if not run.main or run.saved != state.step:
        return
    checkpoint = run.output / checkpoints.FOLDER / checkpoints.name(state.step)
    if checkpoint.is_dir():
        score = {key: getattr(state, key) for key in ("step", "evaluated", "best", "best_step", "seconds")}
        checkpoints.save_score(checkpoint, score)
    checkpoints.prune(run.output, run.loop.keep_last, state.best_step)


def _check_finite(run: Run, model: nn.Module) -> None:
    """No checkpoint without use: the one before stays the newest."""
    bad = [name for name in nonfinite_tensors(model) if name not in run.odd]
    if bad:
        last = checkpoints.latest(run.output)
        raise FloatingPointError(
            f"step {run.state.step}: {len(bad)} weights are NaN or infinite ({abridged(bad)}), and are not saved; "
            f"the newest checkpoint is {last or 'none'}. Lower the learning rate or the weight decay, or clip the "
            "gradient, and run it again"
        )
