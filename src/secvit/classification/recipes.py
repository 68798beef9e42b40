"""Recipes of image classification: a function each, returning one complete frozen dataclass.

A recipe's name on the command line is its import path below `secvit`: `classification.digits`.
Variants are made with `dataclasses.replace`; `tiny` makes any recipe run in seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from secvit.classification.augment import Augment
from secvit.train.config import Loop, Schedule


@dataclass(frozen=True)
class Model:
    """The network and what it looks at.

    Args:
        name: a name that timm.create_model knows.
        args: further arguments of timm.create_model.
        image_size: side of the square the network sees, in px.
        crop_pct: part of the short side that evaluation keeps.
        init: weights to start from; the number of classes must agree.
    """

    name: str = "secvit_nano"
    args: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    crop_pct: float = 1.0
    init: str | None = None


@dataclass(frozen=True)
class Optim:
    """The optimizer, by timm.optim.create_optimizer_v2 (no weight decay on norms and biases).

    Args:
        name: timm's name of the optimizer.
        lr: peak learning rate.
        weight_decay: of matrices and kernels.
        betas: of Adam and its kin.
        layer_decay: factor of the learning rate per layer away from the head; null for none.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a classification run, except where data and output lie.

    Args:
        model: the network.
        augment: what happens to training images.
        label_smoothing: of the cross-entropy.
        optim: the optimizer.
        schedule: the learning rate over time.
        loop: length, batch, precision, averaging, logging, saving.
    """

    model: Model
    augment: Augment
    optim: Optim
    schedule: Schedule
    loop: Loop
    label_smoothing: float = 0.1


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe for a few small steps: to see that it runs, not what it reaches."""
    return replace(
        recipe,
        model=replace(recipe.model, image_size=min(recipe.model.image_size, 64)),
        schedule=replace(recipe.schedule, warmup_steps=1, warmup_epochs=0.0),
        loop=replace(
            recipe.loop,
            batch_size=8,
            accumulate=1,
            epochs=None,
            steps=4,
            workers=0,
            precision="no",
            log_every=2,
            evaluate_every=4,
            save_every=2,
            compile=False,
        ),
    )


HALF_WIDTH = {
    "depths": [1, 1, 2, 1],
    "embed_dims": [32, 64, 96, 128],
    "num_heads": [2, 4, 6, 8],
    "head_hidden_size": 256,
}


def digits() -> Recipe:
    """A half-width SECViT-nano on scikit-learn's 1,797 handwritten digits (8x8 px, shown at 32x32).

    secvit train classification.digits --output runs/digits
    """
    return Recipe(
        model=Model("secvit_nano", HALF_WIDTH, image_size=32),
        augment=Augment(crop="pad", padding=3, flip=0.0),
        optim=Optim(lr=3e-3),
        schedule=Schedule(warmup_epochs=1, min_lr=1e-5),
        loop=Loop(
            batch_size=64,
            epochs=8,
            ema_decay=0.95,
            clip_grad=5.0,
            log_every=20,
            evaluate_every=46,
            save_every=92,
        ),
    )


def cifar10_secvit_nano() -> Recipe:
    """SECViT-nano on CIFAR-10: shifted and flipped crops, mixup or cutmix on half the batches.

    secvit train classification.cifar10_secvit_nano --data cifar10 --output runs/cifar10
    """
    return Recipe(
        model=Model("secvit_nano", image_size=32),
        augment=Augment(crop="pad", mixup=0.2, cutmix=1.0, mix=0.5),
        optim=Optim(lr=2e-3),
        schedule=Schedule(warmup_epochs=2, min_lr=1e-5),
        loop=Loop(batch_size=128, epochs=30, clip_grad=1.0, ema_decay=0.999, save_every=500, workers=1),
    )


def cifar10_secvit_nano_hour() -> Recipe:
    """The same in 12 epochs, which fit an hour of two CPU cores: bf16, compiled (needs a C++ compiler).

    secvit train classification.cifar10_secvit_nano_hour --data cifar10 --output runs/cifar10_hour

    So short a run is better without mixing, and in smaller steps.
    """
    recipe = cifar10_secvit_nano()
    return replace(
        recipe,
        augment=Augment(crop="pad"),
        optim=replace(recipe.optim, lr=1e-3),
        schedule=replace(recipe.schedule, warmup_epochs=1),
        loop=replace(recipe.loop, batch_size=64, epochs=12, precision="bf16", compile=True, evaluate_every=1250),
    )


def imagenet_secvit_tiny() -> Recipe:
    """SECViT-T on ImageNet-1k by the DeiT recipe (paper 4.1, Table 3): 300 epochs at 224 px.

    torchrun --nproc-per-node 8 -m secvit.cli train classification.imagenet_secvit_tiny \
        --data imagenet --output runs/secvit_tiny

    Source: section 4.1 and the authors' released training logs.  Batch 2048 at 2e-3 is DeiT's
    5e-4 per 512.
    """
    return Recipe(
        model=Model("secvit_tiny", {"drop_path_rate": 0.1}, image_size=224, crop_pct=0.875),
        augment=Augment(crop="resized", auto="rand-m9-mstd0.5-inc1", erase=0.25, mixup=0.8, cutmix=1.0),
        optim=Optim(lr=2e-3, weight_decay=0.05),
        schedule=Schedule(warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5),
        loop=Loop(batch_size=2048, epochs=300, repeats=3, ema_decay=0.99996, precision="bf16", workers=8),
    )
