"""What a run needs besides task, optimizer and data.  Everything counts in optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the run.

    Args:
        kind: shape after the warm-up.
        warmup_steps: length of the linear warm-up in optimizer steps.
        warmup_epochs: the same in epochs; at most one of the two.
        warmup_lr: learning rate of the first step.
        min_lr: learning rate at the end of cosine, linear and poly.
        decay_at: for step, parts of the run after which the rate falls to a tenth, (8/12, 11/12).
        power: for poly, of what is left of the run.
    """

    kind: Literal["cosine", "linear", "constant", "step", "poly"] = "cosine"
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    decay_at: tuple[float, ...] = ()
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_epochs={self.warmup_epochs} are both "
                "set; give one of them"
            )
        if (self.kind == "step") != bool(self.decay_at) or not all(0 < at < 1 for at in self.decay_at):
            raise ValueError(f"kind={self.kind!r}, decay_at={self.decay_at}; step wants parts of the run in 0..1")
        if self.power <= 0:
            raise ValueError(f"power={self.power}; give a number above 0, like 0.9")
        for name in ("warmup_steps", "warmup_epochs", "warmup_lr", "min_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a number >= 0")

    def tiny(self) -> Schedule:
        """The same with a warm-up of one step."""
        return replace(self, warmup_steps=1, warmup_epochs=0.0)


@dataclass(frozen=True)
class Loop:
    """How long, how large, how often.

    Args:
        batch_size: samples per optimizer step, over all processes and parts together, so that a
            recipe means the same on one GPU and on eight.
        parts: equal parts in which a step's batch is computed, shared by the processes, at least
            one each.  Batch norm, mixing and random numbers stay inside a part, so two parts on one
            process, one after the other, give what one part on each of two gives.
        epochs: length of the run in epochs; or give `steps`.
        steps: length of the run in optimizer steps.
        seed: of the data order, the augmentation and every random number inside the network.
        precision: "no" is float32; "bf16" and "fp16" run the forward under autocast.
        sharding: over many processes, "ddp" keeps whole weights on each, "fsdp" (FSDP2) a slice of
            weights, gradients and optimizer state.
        device: "auto" takes the GPU if there is one.
        compile: compile the task with torch.compile.
        clip_grad: largest norm of the gradient; 0 for no clipping.
        ema_decay: decay per step of the averaged weights, which are scored and kept; 0 for none.
        ema_warmup: average over few steps first: the decay is at most (1 + step) / (10 + step).  null does so in runs
            that are too short for `ema_decay`: without, over 1 % of the average would be the first weights.
        score_plain: score the weights that are not averaged as well, as plain_top1 and so on, beside the averaged ones,
            which decide the best checkpoint and are kept.
        log_every: steps between two rows of log.csv.
        evaluate_every: steps between two evaluations; 0 for once an epoch.
        save_every: steps between two checkpoints; 0 for once an epoch.
        keep_last: checkpoints to keep besides the best one.
        max_nonfinite: steps with a non-finite loss or gradient to skip before giving up.
        repeats: times each sample is drawn in a row (repeated augmentation); an epoch keeps its
            length and sees 1/repeats of the samples.
        workers: processes that load data; 0 loads in the main one.
        data_timeout_minutes: with workers, end the run if no batch comes for so long; 0 waits for ever.
        time_limit_minutes: save and stop after so long (exit code 75); 0 for no limit.
        trackers: also log to "tensorboard" or "wandb" (each a package to install).
    """

    batch_size: int = 128
    parts: int = 1
    epochs: float | None = None
    steps: int | None = None
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    sharding: Literal["ddp", "fsdp"] = "ddp"
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    clip_grad: float = 0.0
    ema_decay: float = 0.0
    ema_warmup: bool | None = None
    score_plain: bool = False
    log_every: int = 50
    evaluate_every: int = 0
    save_every: int = 0
    keep_last: int = 2
    max_nonfinite: int = 20
    repeats: int = 1
    workers: int = 0
    data_timeout_minutes: float = 30.0
    time_limit_minutes: float = 0.0
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs={self.epochs}, steps={self.steps}; give exactly one of them (in a YAML "
                "file or on the command line set the other to null)"
            )
        for name in ("steps", "batch_size", "parts", "log_every", "keep_last", "repeats"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}; give a whole number >= 1")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs={self.epochs}; give a number > 0, like 0.5")
        for name in (
            *("seed", "clip_grad", "evaluate_every", "save_every"),
            *("max_nonfinite", "workers", "data_timeout_minutes", "time_limit_minutes"),
        ):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a number >= 0")
        if self.seed >= 2**63:
            raise ValueError(f"seed={self.seed}; give a number below 2**63")
        if self.sharding == "fsdp" and self.precision == "fp16":
            raise ValueError("sharding='fsdp' with precision='fp16' has no loss scaling; choose bf16")
        if self.sharding == "fsdp" and self.compile:
            raise ValueError("sharding='fsdp' with compile=true is not supported; choose one of them")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}; choose 0 (none) to below 1, like 0.999")

    def tiny(self) -> Loop:
        """The same for four small steps in float32: to see that a recipe runs, not what it reaches."""
        short = replace(self, batch_size=8, parts=1, epochs=None, steps=4, workers=0, precision="no", compile=False)
        return replace(short, log_every=2, evaluate_every=4, save_every=2)

    def parts_on(self, processes: int) -> int:
        """Parts of a step that each of so many processes computes, one after the other."""
        parts = max(self.parts, processes)
        if parts % processes:
            raise ValueError(
                f"parts={parts} cannot be shared by {processes} processes; choose a multiple of {processes}"
            )
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be cut into {parts} equal parts; choose a multiple of {parts}"
            )
        return parts // processes

    def steps_per_epoch(self, samples: int) -> int:
        """Whole batches in the data; what is left over waits for another epoch's order."""
        if samples < self.batch_size:
            raise ValueError(
                f"{samples} training samples cannot fill one batch of {self.batch_size}; choose batch_size <= {samples}"
            )
        return samples // self.batch_size

    def warms_up(self, total: int) -> bool:
        """Whether the averages of a run of so many steps begin with a short memory."""
        return self.ema_decay**total > 0.01 if self.ema_warmup is None else self.ema_warmup

    def total_steps(self, samples: int) -> int:
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0) * self.steps_per_epoch(samples)))


def changes(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two configurations, for a reader; a list and a tuple are the same."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [c for k in keys for c in changes(old.get(k), new.get(k), f"{name}.{k}".strip("."))]
    same = list(old) == list(new) if isinstance(old, list) and isinstance(new, list | tuple) else old == new
    return [] if same else [f"{name} was {old}, is {new}"]
