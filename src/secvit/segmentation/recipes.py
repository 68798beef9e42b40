"""Recipes of semantic segmentation: a function each, returning one complete frozen dataclass.

A recipe's name on the command line is its import path below `secvit`: `segmentation.camvid_semantic_fpn`.
Variants are made with `dataclasses.replace`; `tiny` makes any recipe run in seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from secvit.models.secvit import clusters_at_224
from secvit.models.small import small
from secvit.segmentation.config import Augment, Look, Model, Recipe
from secvit.train.config import Loop, Schedule
from secvit.train.optim import Optim


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe for a few small steps of a small backbone: to see that it runs, not what it reaches."""
    model = replace(recipe.model, args={"channels": 8, **NARROW[recipe.model.head]})
    if model.backbone.startswith("secvit_") and not model.init:
        model = replace(model, backbone="secvit_nano", backbone_args=SMALL, weights="random")
    elif not model.init and model.weights == "random":
        model = replace(model, backbone_args={**model.backbone_args, **small(model.backbone)})
    return replace(
        recipe,
        model=model,
        augment=replace(recipe.augment, short_side=64, crop=64),
        look=replace(recipe.look, short_side=64),
        schedule=recipe.schedule.tiny(),
        loop=replace(recipe.loop.tiny(), batch_size=4),
        sync_norm=False,
    )


SMALL: dict[str, Any] = {
    "depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 4, 4], "stem_stride": 4,
}  # fmt: skip
NARROW = {"semantic_fpn": {"pyramid": 16}, "upernet": {"auxiliary_channels": 8}}

# -- images of your own ------------------------------------------------------------------------


def folder() -> Recipe:
    """Semantic FPN on a folder of your own, from the small weights that come along.

    secvit train segmentation.folder --data DIR --output runs/mine
    secvit segment runs/mine photo.jpg

    DIR holds images/train and masks/train with val beside them, or images and masks alone; more in
    docs/segmentation.md.  Hundreds of images, on a CPU too; for better weights --model.backbone and
    --model.init, or --model.weights timm.
    """
    return Recipe(
        model=Model("semantic_fpn", "secvit_nano.clothing10", weights="shipped", args={"pyramid": 64, "channels": 64}),
        augment=Augment(short_side=240, crop=192),
        look=Look(short_side=240),
        optim=Optim("nmuon", lr=5e-3),
        schedule=Schedule("poly", warmup_steps=50, power=0.9),
        loop=Loop(
            batch_size=8,
            epochs=40,
            clip_grad=1.0,
            ema_decay=0.99,
            ema_warmup=True,
            precision="bf16",
            log_every=20,
            evaluate_every=200,
            save_every=100,
        ),
    )


def pets599() -> Recipe:
    """Semantic FPN on 419 photographs of pets: animal or background; about ten minutes of one CPU core.

    secvit train segmentation.pets599 --data pets599 --output runs/pets

    Its images are a small part of the Oxford-IIIT Pet data set (Parkhi et al. 2012); borders are ignored.
    """
    base = folder()
    augment = replace(base.augment, short_side=192, crop=160)
    return replace(base, augment=augment, look=Look(192), loop=replace(base.loop, epochs=None, steps=800))


def camvid_semantic_fpn() -> Recipe:
    """Semantic FPN on CamVid: 331 street scenes, 11 classes, at two thirds of 480x360; 20 minutes of one CPU core.

    secvit train segmentation.camvid_semantic_fpn --data camvid --output runs/camvid
    secvit train segmentation.camvid_semantic_fpn --data camvid --output runs/camvid_resnet18 \
        --model.backbone resnet18

    Score the test drives: secvit evaluate runs/camvid --data camvid --split test
    Muon, as in the classification recipes for small networks.  resnet18 begins with random weights, the backbone
    of SECViT-nano with those that come along (clothes); with --model.weights random it does, too.
    Test mIoU here 57.0 %, ResNet-18 54.2 %, one seed each.
    """
    base = folder()
    return replace(base, loop=replace(base.loop, epochs=None, steps=1400, evaluate_every=700, save_every=200))


def camvid_upernet() -> Recipe:
    """UperNet on CamVid, otherwise as camvid_semantic_fpn; 25 minutes of one CPU core.

    secvit train segmentation.camvid_upernet --data camvid --output runs/camvid_upernet

    Test mIoU here 57.3 %, ResNet-18 55.0 %, one seed each.
    """
    base = camvid_semantic_fpn()
    return replace(base, model=replace(base.model, head="upernet", args={"channels": 64, "auxiliary_channels": 64}))


def camvid_semantic_fpn_full() -> Recipe:
    """Semantic FPN with its own channels (256, 128) on CamVid at full size, for an accelerator's half hour.  Not run.

    secvit train segmentation.camvid_semantic_fpn_full --data camvid --output runs/camvid_full
    """
    return at_full_size(camvid_semantic_fpn())


def camvid_upernet_full() -> Recipe:
    """UperNet with its own channels (512, 256) on CamVid at full size, for an accelerator's half hour.  Not run."""
    return at_full_size(camvid_upernet())


def at_full_size(recipe: Recipe) -> Recipe:
    """A CamVid recipe at 480x360, with crops of 320 px and the head's own channels."""
    return replace(
        recipe,
        model=replace(recipe.model, args={}),
        augment=replace(recipe.augment, short_side=360, crop=320),
        look=Look(short_side=360),
        loop=replace(
            recipe.loop, batch_size=16, steps=8000, workers=8, evaluate_every=1000, save_every=1000, log_every=100
        ),
    )


# -- ADE20K ------------------------------------------------------------------------------------


def ade20k(head: Literal["semantic_fpn", "upernet"], backbone: str, drop_path_rate: float, **args: Any) -> Recipe:
    """The field's configs for these heads on ADE20K: 16 crops of 512 px a step, batch norms over all of them.

    Semantic FPN: 80k iterations, AdamW at 1e-4, weight decay 1e-4, poly with power 0.9 down to 1e-6.
    UperNet: 160k, 6e-5, weight decay 0.01, a linear warm-up of 1,500 and a linear decay.
    args: of the backbone.
    Sources: the first author's configs of his preceding backbone (qhfan/RMT), which follow PVT and Swin.
    """
    if head == "semantic_fpn":
        optim, steps = Optim("adamw", lr=1e-4, weight_decay=1e-4), 80_000
        schedule = Schedule("poly", power=0.9, min_lr=1e-6)
    else:
        optim, steps = Optim("adamw", lr=6e-5, weight_decay=0.01), 160_000
        schedule = Schedule("poly", power=1.0, warmup_steps=1500)
    return Recipe(
        model=Model(head, backbone, {"drop_path_rate": drop_path_rate, **args}),
        augment=Augment(),
        look=Look(),
        optim=optim,
        schedule=schedule,
        loop=Loop(batch_size=16, steps=steps, precision="bf16", workers=4, evaluate_every=8000, save_every=4000),
        sync_norm=True,
    )


def ade20k_semantic_fpn_secvit_tiny() -> Recipe:
    """Semantic FPN 80k, SECViT-T on ADE20K (Table 6: 47.2 mIoU in the paper).  Not run.

    torchrun --nproc-per-node 8 -m secvit.cli train segmentation.ade20k_semantic_fpn_secvit_tiny \
        --data ADEChallengeData2016 --model.init SECVIT_TINY.safetensors --output runs/semantic_fpn

    --data is ADE20K's own layout: images/training, annotations/training and those of validation.
    """
    return ade20k("semantic_fpn", "secvit_tiny", 0.1)


def ade20k_semantic_fpn_secvit_small() -> Recipe:
    """Semantic FPN 80k, SECViT-S on ADE20K (Table 6: 49.6 mIoU in the paper).  Not run."""
    return ade20k("semantic_fpn", "secvit_small", 0.15)


def ade20k_semantic_fpn_secvit_base() -> Recipe:
    """Semantic FPN 80k, SECViT-B on ADE20K (Table 6: 50.7 mIoU in the paper).  Not run."""
    return ade20k("semantic_fpn", "secvit_base", 0.4)


def ade20k_semantic_fpn_secvit_large() -> Recipe:
    """Semantic FPN 80k, SECViT-L on ADE20K (Table 6: 52.2 mIoU in the paper).  Not run."""
    return ade20k("semantic_fpn", "secvit_large", 0.5)


def ade20k_upernet_secvit_tiny() -> Recipe:
    """UperNet 160k, SECViT-T on ADE20K (Table 6: 48.8 mIoU at one scale in the paper).  Not run."""
    return ade20k("upernet", "secvit_tiny", 0.1)


def ade20k_upernet_secvit_small() -> Recipe:
    """UperNet 160k, SECViT-S on ADE20K (Table 6: 50.6 mIoU at one scale in the paper).  Not run."""
    return ade20k("upernet", "secvit_small", 0.15)


def ade20k_upernet_secvit_base() -> Recipe:
    """UperNet 160k, SECViT-B on ADE20K (Table 6: 52.2 mIoU at one scale in the paper).  Not run."""
    return ade20k("upernet", "secvit_base", 0.4)


def ade20k_upernet_secvit_large() -> Recipe:
    """UperNet 160k, SECViT-L on ADE20K (Table 6: 53.8 mIoU at one scale in the paper).  Not run."""
    return ade20k("upernet", "secvit_large", 0.5)


# -- Table 1: what the attention alone changes.  Its mIoU is UperNet's: Swin's own numbers there are -----------


def ade20k_upernet_sec_swin_tiny() -> Recipe:
    """UperNet 160k, SEC-Swin-T on ADE20K (Table 1: 49.3 mIoU in the paper).  Not run.

    secvit train segmentation.ade20k_upernet_sec_swin_tiny --data ADEChallengeData2016 --model.init SEC_SWIN \
        --output runs/upernet
    """
    return ade20k("upernet", "sec_swin_tiny", 0.2)


def ade20k_upernet_sec_swin_small() -> Recipe:
    """UperNet 160k, SEC-Swin-S on ADE20K (Table 1: 51.3 mIoU in the paper).  Not run."""
    return ade20k("upernet", "sec_swin_small", 0.3)


def ade20k_upernet_sec_deit_small() -> Recipe:
    """UperNet 160k, SEC-DeiT-S on ADE20K (Table 1: 47.5 mIoU in the paper), on a simple feature pyramid.  Not run."""
    return ade20k("upernet", "sec_deit_small", 0.1)


def ade20k_upernet_deit_small() -> Recipe:
    """UperNet 160k, DeiT-S on ADE20K (Table 1's baseline: 43.0 mIoU in the paper), maps as of SEC-DeiT.  Not run."""
    return ade20k("upernet", "deit_small_patch16_224", 0.1, dynamic_img_size=True)


def ade20k_upernet_swin_tiny() -> Recipe:
    """UperNet 160k, Swin-T on ADE20K (Table 1's baseline: 44.5 mIoU in the paper).  Not run."""
    return ade20k("upernet", "swin_tiny_patch4_window7_224", 0.2, strict_img_size=False)


def ade20k_upernet_swin_small() -> Recipe:
    """UperNet 160k, Swin-S on ADE20K (Table 1's baseline: 47.6 mIoU in the paper).  Not run."""
    return ade20k("upernet", "swin_small_patch4_window7_224", 0.3, strict_img_size=False)


# -- Table 6 with the released S, B and L, the only sizes above T whose weights are published ----------------


def ade20k_semantic_fpn_secvit_small_release() -> Recipe:
    """Semantic FPN 80k, SECViT-S with the released depths on ADE20K (beside Table 6: 49.6 mIoU).  Not run."""
    return ade20k("semantic_fpn", "secvit_small_release", 0.15)


def ade20k_semantic_fpn_secvit_base_release() -> Recipe:
    """Semantic FPN 80k, SECViT-B with the released depths on ADE20K (beside Table 6: 50.7 mIoU).  Not run."""
    return ade20k("semantic_fpn", "secvit_base_release", 0.4)


def ade20k_semantic_fpn_secvit_large_release() -> Recipe:
    """Semantic FPN 80k, SECViT-L with the released depths on ADE20K (beside Table 6: 52.2 mIoU).  Not run."""
    return ade20k("semantic_fpn", "secvit_large_release", 0.5)


def ade20k_upernet_secvit_small_release() -> Recipe:
    """UperNet 160k, SECViT-S with the released depths on ADE20K (beside Table 6: 50.6 mIoU).  Not run."""
    return ade20k("upernet", "secvit_small_release", 0.15)


def ade20k_upernet_secvit_base_release() -> Recipe:
    """UperNet 160k, SECViT-B with the released depths on ADE20K (beside Table 6: 52.2 mIoU).  Not run."""
    return ade20k("upernet", "secvit_base_release", 0.4)


def ade20k_upernet_secvit_large_release() -> Recipe:
    """UperNet 160k, SECViT-L with the released depths on ADE20K (beside Table 6: 53.8 mIoU).  Not run."""
    return ade20k("upernet", "secvit_large_release", 0.5)


# -- Table 10 in segmentation: tokens per cluster at 224 px, whose number of clusters stays.
# 98 is ade20k_semantic_fpn_secvit_tiny.


def table10_semantic_fpn_196_tokens() -> Recipe:
    """Table 10: Semantic FPN 80k, SECViT-T with clusters of 196 tokens (47.5 mIoU in the paper).  Not run.

    secvit train segmentation.table10_semantic_fpn_196_tokens --data ADEChallengeData2016 --output runs/table10_196 \
        --model.init RUN of classification.table10_196_tokens
    """
    return ade20k("semantic_fpn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(196))


def table10_semantic_fpn_64_tokens() -> Recipe:
    """Table 10: Semantic FPN 80k, SECViT-T with clusters of 64 tokens (46.9 mIoU in the paper).  Not run."""
    return ade20k("semantic_fpn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(64))


def table10_semantic_fpn_49_tokens() -> Recipe:
    """Table 10: Semantic FPN 80k, SECViT-T with clusters of 49 tokens (47.7 mIoU in the paper).  Not run."""
    return ade20k("semantic_fpn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(49))


def table10_semantic_fpn_24_tokens() -> Recipe:
    """Table 10: Semantic FPN 80k, SECViT-T with clusters of 24 tokens (44.6 mIoU in the paper).  Not run."""
    return ade20k("semantic_fpn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(24))
