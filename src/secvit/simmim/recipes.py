"""Recipes of SimMIM pre-training: a function each, returning one complete frozen dataclass.

A recipe's name on the command line is its import path below `secvit`: `simmim.digits`.
Variants are made with `dataclasses.replace`; `tiny` makes any recipe run in seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from secvit.models.small import HALF_WIDTH, small
from secvit.ops import written
from secvit.simmim.data import Augment, Masking
from secvit.train.config import Loop, Schedule
from secvit.train.optim import Optim


@dataclass(frozen=True)
class Model:
    """The network and what it looks at.

    Args:
        name: a name that timm.create_model knows; the model needs forward_stem and forward_stages.
        args: further arguments of timm.create_model.
        image_size: side of the square the network sees, in px; a multiple of its last stride.
    """

    name: str = "secvit_nano"
    args: dict[str, Any] = field(default_factory=dict)
    image_size: int = 192

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", written(self.args))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a pre-training run, except where data and output lie.

    Args:
        model: the network.
        masking: what is hidden.
        augment: what happens to training images.
        optim: the optimizer.
        schedule: the learning rate over time.
        loop: length, batch, precision, logging, saving; weights are not averaged here.
    """

    model: Model
    masking: Masking
    augment: Augment
    optim: Optim
    schedule: Schedule
    loop: Loop


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe for a few small steps of a small network: to see that it runs, not what it reaches."""
    args = {**recipe.model.args, **small(recipe.model.name)}
    size = min(recipe.model.image_size, 2 * max(recipe.masking.patch, 32))
    return replace(
        recipe,
        model=replace(recipe.model, args=args, image_size=size),
        schedule=recipe.schedule.tiny(),
        loop=recipe.loop.tiny(),
    )


def digits() -> Recipe:
    """A half-width SECViT-nano fills in scikit-learn's 1,797 handwritten digits (shown at 64x64).

    secvit train simmim.digits --output runs/simmim_digits

    Reached once (seed 0): L1 0.333 on the hidden pixels of 269 held-out digits, where each image's
    mean visible colour gives 1.360; two minutes of one shared CPU core.
    """
    return Recipe(
        model=Model("secvit_nano", {"stem_stride": 4, **HALF_WIDTH}, image_size=64),
        masking=Masking(patch=16),
        augment=Augment(flip=0.0),
        optim=Optim(lr=2e-3),
        schedule=Schedule(warmup_epochs=1, min_lr=1e-5),
        loop=Loop(batch_size=64, epochs=12, clip_grad=5.0, log_every=20, evaluate_every=92, save_every=230),
    )


def folder() -> Recipe:
    """SECViT-nano with a stride-4 stem on images of your own, at 128 px; their labels are not used.

    secvit train simmim.folder --data DIR --output runs/simmim
    secvit train classification.folder --data DIR --model.init runs/simmim --output runs/mine

    SimMIM's masks and crops; size, optimizer and length are ours, for thousands of images and CPUs.
    """
    return Recipe(
        model=Model("secvit_nano", {"stem_stride": 4}, image_size=128),
        masking=Masking(patch=32, ratio=0.6),
        augment=Augment(),
        optim=Optim("nmuon", lr=5e-3),
        schedule=Schedule(warmup_epochs=3, warmup_lr=1e-6, min_lr=1e-5),
        loop=Loop(batch_size=64, epochs=40, clip_grad=5.0, log_every=43),
    )


def clothing10_secvit_nano() -> Recipe:
    """SECViT-nano on 2,761 photographs of clothes, at 96 px, in bf16 and compiled (needs a C++ compiler).

    secvit train simmim.clothing10_secvit_nano --data clothing10_160 --output runs/simmim

    Reached (seed 0, 25 minutes of one shared CPU core): L1 0.477 on the hidden pixels of the 308
    val images, where each image's mean visible colour gives 0.841.  What it is worth to a classifier
    is said in classification.clothing10_secvit_nano_simmim.
    """
    recipe = folder()
    loop = replace(recipe.loop, precision="bf16", compile=True, evaluate_every=215, save_every=215)
    return replace(recipe, model=replace(recipe.model, image_size=96), loop=loop)


def imagenet(name: str, **args: Any) -> Recipe:
    """SimMIM's numbers for Swin-B (the paper's Table 2): 800 epochs of ImageNet-1k at 192 px.

    Source: SimMIM section 4.1 and its released configuration: AdamW, batch 2048, 1e-4 per 512 images, so 4e-4,
    warm-up from 5e-7 per 512 over 10 epochs, that rate until epoch 700, then a tenth of it; clipping at 5.
    args: of the network.
    """
    return Recipe(
        model=Model(name, args, image_size=192),
        masking=Masking(patch=32, ratio=0.6),
        augment=Augment(),
        optim=Optim(lr=4e-4, weight_decay=0.05),
        schedule=Schedule("step", warmup_epochs=10, warmup_lr=2e-6, decay_at=(7 / 8,)),
        loop=Loop(batch_size=2048, epochs=800, clip_grad=5.0, precision="bf16", workers=8),
    )


def imagenet_sec_swin_base() -> Recipe:
    """SEC-Swin-B on ImageNet-1k by SimMIM (the paper's Table 2: 85.9 % after fine-tuning).  Not run.

    torchrun --nproc-per-node 8 -m secvit.cli train simmim.imagenet_sec_swin_base \\
        --data imagenet --output runs/simmim_sec_swin_base

    Then classification.imagenet_sec_swin_base_simmim.
    """
    return imagenet("sec_swin_base")


def imagenet_swin_base() -> Recipe:
    """Swin-B on ImageNet-1k by SimMIM (the paper's Table 2's baseline: 84.0 % after fine-tuning).  Not run.

    secvit train simmim.imagenet_swin_base --data imagenet --output runs/simmim_swin_base

    Then classification.imagenet_swin_base_simmim.  Windows stay 7x7 at 192 px, padded, so that its tables of
    positions fit at 224 px; the released configuration has 6x6 and resamples them.
    """
    return imagenet("swin_base_patch4_window7_224", strict_img_size=False)
