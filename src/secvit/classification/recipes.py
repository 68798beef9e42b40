"""Recipes of image classification: a function each, returning one complete frozen dataclass.

A recipe's name on the command line is its import path below `secvit`: `classification.digits`.
Variants are made with `dataclasses.replace`; `tiny` makes any recipe run in seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secvit.classification.augment import Augment
from secvit.classification.config import Model, Recipe
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


# -- ImageNet-1k: the DeiT recipe of section 4.1 -----------------------------------------------


def imagenet(name: str, drop_path_rate: float, **args: Any) -> Recipe:
    """Section 4.1 and the authors' training logs: 300 epochs at 224 px, for a network of that name.

    AdamW at 2e-3 for 2048 images (DeiT's 5e-4 per 512), 5 epochs of warm-up from 1e-6, cosine to
    1e-5, weight decay 0.05, label smoothing 0.1, mixup 0.8, cutmix 1.0, RandAugment 9, erasing
    0.25, each image three times in a row, norms over all processes.  Averaged weights: 0.99996 for 512
    images is 0.99984 a step of 2048; they and the plain ones are scored.
    """
    return Recipe(
        model=Model(name, {"drop_path_rate": drop_path_rate, **args}, image_size=224, crop_pct=0.875),
        augment=Augment(crop="resized", auto="rand-m9-mstd0.5-inc1", erase=0.25, mixup=0.8, cutmix=1.0),
        label_smoothing=0.1,
        optim=Optim("adamw", lr=2e-3, weight_decay=0.05),
        schedule=Schedule(warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5),
        loop=Loop(
            batch_size=2048,
            epochs=300,
            repeats=3,
            ema_decay=0.99984,
            score_plain=True,
            precision="bf16",
            workers=8,
        ),
        sync_norm=True,
    )


def imagenet_secvit_tiny() -> Recipe:
    """SECViT-T on ImageNet-1k (section 4.1, Table 3, and 98 tokens of Table 10: 82.7 % top-1 in the paper).

    torchrun --nproc-per-node 8 -m secvit.cli train classification.imagenet_secvit_tiny \
        --data imagenet --output runs/secvit_tiny

    Reproduced: not run.
    """
    return imagenet("secvit_tiny", 0.1)


def imagenet_secvit_small() -> Recipe:
    """SECViT-S on ImageNet-1k (section 4.1, Table 3: 84.3 % top-1 in the paper).  Not run."""
    return imagenet("secvit_small", 0.15)


def imagenet_secvit_base() -> Recipe:
    """SECViT-B on ImageNet-1k (section 4.1, Table 3: 85.2 % top-1 in the paper).  Not run."""
    return imagenet("secvit_base", 0.4)


def imagenet_secvit_large() -> Recipe:
    """SECViT-L on ImageNet-1k (section 4.1, Table 3: 85.7 % top-1 in the paper).  Not run."""
    return imagenet("secvit_large", 0.5)


def imagenet_secvit_xlarge() -> Recipe:
    """SECViT-XL of supplement table 1 on ImageNet-1k, by the recipe of L.  Not run."""
    return imagenet("secvit_xlarge", 0.5)


def imagenet_secvit_small_release() -> Recipe:
    """S as in the authors' released code on ImageNet-1k, the network of their logs.  Not run."""
    return imagenet("secvit_small_release", 0.15)


def imagenet_secvit_base_release() -> Recipe:
    """B as in the authors' released code on ImageNet-1k, the network of their logs.  Not run."""
    return imagenet("secvit_base_release", 0.4)


def imagenet_secvit_large_release() -> Recipe:
    """L as in the authors' released code on ImageNet-1k, the network of their logs.  Not run."""
    return imagenet("secvit_large_release", 0.5)


# -- Table 1: DeiT and Swin with SEC for their attention --------------------------------------------


def imagenet_sec_deit_small() -> Recipe:
    """SEC-DeiT-S on ImageNet-1k (Table 1: 80.5 % top-1 in the paper, DeiT-S 79.8).  Not run."""
    return imagenet("sec_deit_small", 0.1)


def imagenet_sec_deit_base() -> Recipe:
    """SEC-DeiT-B on ImageNet-1k (Table 1: 82.4 % top-1 in the paper, DeiT-B 81.8).  Not run."""
    return imagenet("sec_deit_base", 0.1)


def imagenet_sec_swin_tiny() -> Recipe:
    """SEC-Swin-T on ImageNet-1k (Table 1: 83.8 % top-1 in the paper, Swin-T 81.3).  Not run."""
    return imagenet("sec_swin_tiny", 0.2)


def imagenet_sec_swin_small() -> Recipe:
    """SEC-Swin-S on ImageNet-1k (Table 1: 85.0 % top-1 in the paper, Swin-S 83.0).  Not run."""
    return imagenet("sec_swin_small", 0.3)


def imagenet_sec_swin_base() -> Recipe:
    """SEC-Swin-B on ImageNet-1k (Table 2: 85.3 % top-1 in the paper without pre-training).  Not run.

    After pre-training: imagenet_sec_swin_base_simmim.
    """
    return imagenet("sec_swin_base", 0.5)


def imagenet_deit_small() -> Recipe:
    """DeiT-S on ImageNet-1k, the baseline of SEC-DeiT-S (Table 1: 79.8 % top-1 in the paper).  Not run.

    secvit train classification.imagenet_deit_small --data imagenet --output runs/deit_small

    The paper quotes DeiT's own number; here only the attention differs between the two.
    """
    return imagenet("deit_small_patch16_224", 0.1)


def imagenet_deit_base() -> Recipe:
    """DeiT-B on ImageNet-1k, the baseline of SEC-DeiT-B (Table 1: 81.8 % top-1 in the paper).  Not run."""
    return imagenet("deit_base_patch16_224", 0.1)


def imagenet_evit_deit_small() -> Recipe:
    """EViT-DeiT-S, keep rate 0.9, on ImageNet-1k (Table 1: 79.8 % top-1 in the paper).  Not run.

    secvit train classification.imagenet_evit_deit_small --data imagenet --output runs/evit_deit_small

    Its authors lower the keep rate over the first epochs; here it is 0.9 from the first step on.
    """
    return imagenet("evit_deit_small", 0.1)


def imagenet_swin_tiny() -> Recipe:
    """Swin-T on ImageNet-1k, the baseline of SEC-Swin-T (Table 1: 81.3 % top-1 in the paper).  Not run."""
    return imagenet("swin_tiny_patch4_window7_224", 0.2)


def imagenet_swin_small() -> Recipe:
    """Swin-S on ImageNet-1k, the baseline of SEC-Swin-S (Table 1: 83.0 % top-1 in the paper).  Not run."""
    return imagenet("swin_small_patch4_window7_224", 0.3)


def imagenet_swin_base() -> Recipe:
    """Swin-B on ImageNet-1k, the baseline of SEC-Swin-B (Table 2: 83.5 % top-1 in the paper).  Not run."""
    return imagenet("swin_base_patch4_window7_224", 0.5)


# -- Table 2: after SimMIM -------------------------------------------------------------------------


def finetune_simmim(name: str) -> Recipe:
    """SimMIM's fine-tuning of Swin-B: 100 epochs at 224 px, 5e-3 for 2048 images, each layer 0.9 of the one above.

    20 epochs of warm-up from 1e-6, cosine to 1e-6, drop path 0.1, clipping at 5; augmentation as in `imagenet`,
    without repeats and averages.  Sources: SimMIM's released configuration and mmselfsup's
    swin-base_ft-8xb256-coslr-100e, which agree.
    """
    recipe = imagenet(name, 0.1)
    return replace(
        recipe,
        optim=Optim("adamw", lr=5e-3, weight_decay=0.05, layer_decay=0.9),
        schedule=Schedule(warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-6),
        loop=replace(recipe.loop, epochs=100, repeats=1, ema_decay=0.0, score_plain=False, clip_grad=5.0),
    )


def imagenet_sec_swin_base_simmim() -> Recipe:
    """SEC-Swin-B on ImageNet-1k after 800 epochs of SimMIM (Table 2: 85.9 % top-1 in the paper).  Not run.

    secvit train classification.imagenet_sec_swin_base_simmim --data imagenet \
        --model.init runs/simmim_sec_swin_base --output runs/sec_swin_base_simmim

    --model.init: a run of simmim.imagenet_sec_swin_base.
    """
    return finetune_simmim("sec_swin_base")


def imagenet_swin_base_simmim() -> Recipe:
    """Swin-B on ImageNet-1k after 800 epochs of SimMIM (Table 2's baseline: 84.0 % top-1 in the paper).  Not run.

    secvit train classification.imagenet_swin_base_simmim --data imagenet \
        --model.init runs/simmim_swin_base --output runs/swin_base_simmim

    --model.init: a run of simmim.imagenet_swin_base.
    """
    return finetune_simmim("swin_base_patch4_window7_224")


# -- Table 10: tokens per cluster.  98 is imagenet_secvit_tiny -----------------------------------


def table10_196_tokens() -> Recipe:
    """Table 10: SECViT-T with clusters of 196 tokens (83.0 % top-1 in the paper).  Not run."""
    return imagenet("secvit_tiny", 0.1, cluster_size=196)


def table10_64_tokens() -> Recipe:
    """Table 10: SECViT-T with clusters of 64 tokens (82.7 % top-1 in the paper).  Not run.

    64 divides neither 784 nor 196 tokens; ours are clusters of 64 or fewer, as equal as can be.
    """
    return imagenet("secvit_tiny", 0.1, cluster_size=64)


def table10_49_tokens() -> Recipe:
    """Table 10: SECViT-T with clusters of 49 tokens (82.6 % top-1 in the paper).  Not run."""
    return imagenet("secvit_tiny", 0.1, cluster_size=49)


def table10_24_tokens() -> Recipe:
    """Table 10: SECViT-T with clusters of 24 tokens (82.0 % top-1 in the paper).  Not run.

    24 divides none of the grids; ours are clusters of 24 or fewer, as equal as can be.
    """
    return imagenet("secvit_tiny", 0.1, cluster_size=24)
