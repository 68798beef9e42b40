"""The paper's recipes on ImageNet-1k: section 4.1 and Tables 1, 2, 3 and 10.  On the command line, beside the others,
`classification.imagenet_secvit_tiny` and so on (`recipes`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secvit.classification.augment import Augment
from secvit.classification.config import Model, Recipe
from secvit.train.config import Loop, Schedule
from secvit.train.optim import Optim


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
