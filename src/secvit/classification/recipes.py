"""Recipes of image classification: a function each, returning one complete frozen dataclass.

A recipe's name on the command line is its import path below `secvit`: `classification.digits`.
Variants are made with `dataclasses.replace`; `tiny` makes any recipe run in seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import replace

from secvit.classification.augment import Augment
from secvit.classification.config import Model, Recipe
from secvit.classification.imagenet import (  # noqa: F401  (recipes too)
    finetune_simmim,
    imagenet,
    imagenet_deit_base,
    imagenet_deit_small,
    imagenet_evit_deit_small,
    imagenet_sec_deit_base,
    imagenet_sec_deit_small,
    imagenet_sec_swin_base,
    imagenet_sec_swin_base_simmim,
    imagenet_sec_swin_small,
    imagenet_sec_swin_tiny,
    imagenet_secvit_base,
    imagenet_secvit_base_release,
    imagenet_secvit_large,
    imagenet_secvit_large_release,
    imagenet_secvit_small,
    imagenet_secvit_small_release,
    imagenet_secvit_tiny,
    imagenet_secvit_xlarge,
    imagenet_swin_base,
    imagenet_swin_base_simmim,
    imagenet_swin_small,
    imagenet_swin_tiny,
    table10_24_tokens,
    table10_49_tokens,
    table10_64_tokens,
    table10_196_tokens,
)
from secvit.models.small import HALF_WIDTH, small
from secvit.train.config import Loop, Schedule
from secvit.train.optim import Optim


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe for a few small steps of a small network: to see that it runs, not what it reaches."""
    model = replace(recipe.model, image_size=min(recipe.model.image_size, 64))
    if not model.pretrained:
        args = {**model.args, **small(model.name)}
        model = replace(model, args=args, image_size=args.get("img_size", model.image_size))
    return replace(
        recipe,
        model=model,
        schedule=recipe.schedule.tiny(),
        loop=recipe.loop.tiny(),
    )


# -- images of your own ------------------------------------------------------------------------


def folder() -> Recipe:
    """SECViT-nano from scratch on a folder of your own: thousands of images rather than hundreds.

    secvit train classification.folder --data DIR --output runs/mine

    128 px; a finished run on two CPU cores takes about a minute per epoch and 3,000 images.  With
    fewer images, start from weights instead: classification.finetune.
    """
    return Recipe(
        model=Model("secvit_nano", {"stem_stride": 4}, image_size=128, crop_pct=0.9),
        augment=Augment(crop="resized", scale=(0.35, 1.0), color_jitter=0.3),
        optim=Optim("nmuon", lr=5e-3),
        schedule=Schedule(warmup_epochs=2, min_lr=1e-5),
        loop=Loop(batch_size=64, epochs=60, clip_grad=1.0, ema_decay=0.99, ema_warmup=True),
    )


def finetune() -> Recipe:
    """Pretrained weights with a new head on a folder of your own: every layer learns, early ones less.

    secvit train classification.finetune --data DIR --output runs/mine
    secvit train classification.finetune --data DIR --output runs/mine \
        --model.name vit_small_patch16_224 --model.image_size 224 --optim.layer_decay 0.75

    Any network of timm; its weights are downloaded if they are not ours.  A file or run of your own
    goes to --model.init, with --model.pretrained false.  Source: layer decay as in BEiT's and
    SimMIM's fine-tuning, weaker here because SECViT-nano has nine blocks.
    """
    recipe = folder()
    return replace(
        recipe,
        model=Model("secvit_nano.clothing10", image_size=128, crop_pct=0.9, pretrained=True),
        optim=Optim("adamw", lr=1e-3, layer_decay=0.85),
        loop=replace(recipe.loop, epochs=20),
    )


def head_only() -> Recipe:
    """Pretrained weights of which only the head learns: for a first look, or for very few images.

    secvit train classification.head_only --data DIR --output runs/mine
    """
    recipe = finetune()
    return replace(
        recipe,
        model=replace(recipe.model, frozen=("stem", "stages")),
        optim=Optim("adamw", lr=2e-3),
        loop=replace(recipe.loop, epochs=10),
    )


# -- small data sets -----------------------------------------------------------------------------


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
    """SECViT-nano on CIFAR-10: shifted and flipped crops, bf16, compiled (needs a C++ compiler).

    secvit train classification.cifar10_secvit_nano --data cifar10 --output runs/cifar10

    Reached (seed 0, 103 minutes of one shared CPU core): 87.2 % of the 9,000 test images.
    Muon (with Nesterov momentum), because 1,000 steps of 64 images reached 71.4 % of the val images
    with Muon at 1e-2 and 59.1 % with AdamW at 1e-3.
    """
    return Recipe(
        model=Model("secvit_nano", image_size=32),
        augment=Augment(crop="pad"),
        optim=Optim("nmuon", lr=5e-3),
        schedule=Schedule(warmup_steps=200, min_lr=1e-5),
        loop=Loop(
            batch_size=64,
            epochs=20,
            clip_grad=1.0,
            ema_decay=0.998,
            precision="bf16",
            compile=True,
            evaluate_every=1250,
            save_every=500,
        ),
    )


def cifar10_vit() -> Recipe:
    """A small plain ViT on CIFAR-10: 8x8 patches of 4 px and [cls], six blocks of 128 channels, 5 epochs.

    secvit train classification.cifar10_vit --data cifar10 --output runs/vit

    What `secvit.patch` is tried on (benchmarks/patching.py): its length is what several seeds may cost
    on two CPU cores, not what a ViT needs.
    """
    recipe = cifar10_secvit_nano()
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
    return replace(
        recipe,
        model=Model("vit_tiny_patch16_224", small, image_size=32),
        loop=replace(recipe.loop, epochs=5, save_every=1000),
    )


def cifar10_vit_patched() -> Recipe:
    """A tenth of cifar10_vit's steps more, with 4 clusters of 16 tokens put into its attention by secvit.patch.

    secvit train classification.cifar10_vit_patched --data cifar10 --model.init runs/vit --output runs/vit_sec

    --model.patch '{"num_clusters": 4, "partition": "window"}' is a rival.  What patching costs and what
    this brings back: benchmarks/patching.py.
    """
    recipe = cifar10_vit()
    return replace(
        recipe,
        model=replace(recipe.model, patch={"num_clusters": 4}),
        optim=replace(recipe.optim, lr=1e-3),
        schedule=Schedule(warmup_steps=30, min_lr=1e-5),
        loop=replace(recipe.loop, epochs=None, steps=312, ema_decay=0.98, evaluate_every=312),
    )


def clothing10_secvit_nano() -> Recipe:
    """SECViT-nano from scratch on clothing10: 2,761 photos of ten kinds of clothes, 96 px, 15 epochs.

    secvit train classification.clothing10_secvit_nano --data clothing10_160 --output runs/clothing10

    Bf16, compiled (needs a C++ compiler).  The size and the length are what several seeds may cost
    on two CPU cores.  Reached: 76.0 % of the 335 test images (73.4 to 77.9, three seeds); with
    --model.init and a CIFAR-10 run of cifar10_secvit_nano 86.4 % (84.5 to 88.4, three seeds), of
    which seed 0 ships.
    """
    recipe = folder()
    return replace(
        recipe,
        model=replace(recipe.model, image_size=96),
        loop=replace(recipe.loop, epochs=15, precision="bf16", compile=True),
    )


def clothing10_secvit_nano_simmim() -> Recipe:
    """SECViT-nano on clothing10 from a SimMIM run (simmim.clothing10_secvit_nano) instead of random weights.

    secvit train classification.clothing10_secvit_nano_simmim --data clothing10_160 \
        --model.init runs/simmim --output runs/clothing10_simmim

    Reached: 68.2 % of the test images (66.9 and 69.6, two seeds), worse than from random weights;
    with --optim.layer_decay null 75.9 % (74.0 to 77.3, three seeds), no difference.
    """
    recipe = clothing10_secvit_nano()
    return replace(recipe, optim=replace(recipe.optim, layer_decay=0.85))
