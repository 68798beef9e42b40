"""Recipes of detection: a function each, returning one complete frozen dataclass.

A recipe's name on the command line is its import path below `secvit`: `detection.mask_rcnn_1x_secvit_tiny`.
Variants are made with `dataclasses.replace`; `tiny` makes any recipe run in seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secvit.detection.config import Model, Recipe
from secvit.models.secvit import clusters_at_224
from secvit.models.small import small
from secvit.train.config import Loop, Schedule
from secvit.train.optim import Optim


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe for a few small steps of a small backbone: to see that it runs, not what it reaches."""
    nano = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 4, 4], "stem_stride": 4}
    model = replace(recipe.model, min_size=(64,), max_size=96)
    if not model.backbone_args.get("pretrained"):
        if model.backbone.startswith("secvit_"):
            model = replace(model, backbone="secvit_nano", backbone_args=nano)
        else:
            model = replace(model, backbone_args={**model.backbone_args, **small(model.backbone)})
    if model.detector != "retinanet":
        model = replace(model, args={**model.args, **FEW_BOXES, "box_detections_per_img": 5})
    loop = replace(recipe.loop.tiny(), batch_size=2)
    return replace(recipe, model=model, schedule=recipe.schedule.tiny(), loop=loop)


# -- images of your own ------------------------------------------------------------------------

FEW_BOXES = {
    "box_batch_size_per_image": 32,
    "rpn_batch_size_per_image": 128,
    "rpn_pre_nms_top_n_train": 500,
    "rpn_post_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 500,
    "rpn_post_nms_top_n_test": 200,
}


def folder() -> Recipe:
    """Mask R-CNN on a data set of your own, from the small weights that come along.

    secvit train detection.folder --data DIR --output runs/mine

    DIR is what CVAT, Label Studio or Roboflow exports, or in COCO's, YOLO's or Pascal VOC's layout
    (docs/detection.md); boxes alone are learned where there are no masks.  Hundreds of images with few objects
    each, on a CPU too; for more and larger ones raise --model.min_size and --model.max_size, and bring better
    weights with --model.init.
    """
    return Recipe(
        model=Model(
            backbone="secvit_nano.cifar10",
            backbone_args={"pretrained": True, "stem_stride": 4},
            min_size=(256, 288, 320),
            max_size=512,
            args=FEW_BOXES,
        ),
        optim=Optim("adamw", lr=5e-4, weight_decay=0.05),
        schedule=Schedule(warmup_steps=50),
        loop=Loop(batch_size=4, epochs=12, clip_grad=5.0, precision="bf16"),
    )


def pets599() -> Recipe:
    """Mask R-CNN on 419 photographs of pets of three breeds at 224 px: half an hour on one CPU core.

    secvit train detection.pets599 --data pets599 --output runs/pets
    secvit train detection.pets599 --data pets599 --output runs/pets_resnet18 \
        --model.backbone resnet18

    Its images are a small part of the Oxford-IIIT Pet data set (Parkhi et al. 2012) as COCO instances.
    """
    base = folder()
    model = replace(base.model, min_size=(160, 176, 192, 208, 224), max_size=288)
    loop = replace(base.loop, epochs=None, steps=320, evaluate_every=160, save_every=80, log_every=20)
    return replace(base, model=model, loop=loop)


def nuclei471() -> Recipe:
    """Mask R-CNN on 330 micrographs with up to 151 small nuclei each, so that 300 detections count.

    secvit train detection.nuclei471 --data nuclei471 --output runs/nuclei

    A subset of the 2018 Data Science Bowl (BBBC038).
    """
    base = folder()
    boxes = {"box_batch_size_per_image": 64, "rpn_batch_size_per_image": 256, "rpn_pre_nms_top_n_train": 1000,
             "rpn_post_nms_top_n_train": 500, "rpn_pre_nms_top_n_test": 1000, "rpn_post_nms_top_n_test": 500,
             "box_detections_per_img": 300}  # fmt: skip
    model = replace(base.model, min_size=(256, 288, 320), max_size=400, args=boxes)
    loop = replace(base.loop, batch_size=2, epochs=None, steps=400, evaluate_every=200, save_every=80, log_every=20)
    return replace(base, model=model, loop=loop, max_dets=300)


# -- COCO, Tables 1, 4 and 5 -------------------------------------------------------------------


MULTI_SCALE = tuple(range(480, 801, 32))  # short sides of 3x, in px
OF_HEAD: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"rpn_post_nms_top_n_train": 1000},
    "cascade_mask_rcnn": {"box_loss": "giou"},
    "retinanet": {},
}


def coco(detector: Any, backbone: str, drop_path_rate: float, epochs: int = 12, **args: Any) -> Recipe:
    """Section 4.2; AdamW, 16 images a step, lr 1e-4 and weight decay 0.05 as in Swin's configs of these heads.

    1x is 12 epochs at 800 px with a tenth of the rate from 8 and 11 on; 3x is 36 (27, 33) at 480 to 800 px, half of
    the images cut first.  Mask R-CNN learns from 1,000 proposals of an image, the cascade from 2,000, with GIoU and
    norms over all processes; RetinaNet's weight decay is 1e-4.  args: of the backbone.
    Sources: Swin's configs and those of the first author's preceding backbone (qhfan/RMT); docs/differences.md says
    where ours are still others.
    """
    decay = (27 / 36, 33 / 36) if epochs == 36 else (8 / 12, 11 / 12)
    sizes, crop = (MULTI_SCALE, 0.5) if epochs == 36 else ((800,), 0.0)
    backbone_args = {"drop_path_rate": drop_path_rate, **args}
    return Recipe(
        model=Model(detector, backbone, backbone_args, min_size=sizes, args=OF_HEAD[detector]),
        optim=Optim("adamw", lr=1e-4, weight_decay=1e-4 if detector == "retinanet" else 0.05),
        schedule=Schedule("step", warmup_steps=500, warmup_lr=1e-7, decay_at=decay),
        loop=Loop(batch_size=16, epochs=epochs, precision="bf16", workers=8),
        crop=crop,
        sync_norm=detector == "cascade_mask_rcnn",
    )


# arguments by which these take images of any size
PLAIN: dict[str, Any] = {"dynamic_img_size": True}
WINDOWS: dict[str, Any] = {"strict_img_size": False}


def mask_rcnn_1x_secvit_tiny() -> Recipe:
    """Mask R-CNN 1x, SECViT-T on COCO (Table 4: 47.8 box AP, 43.0 mask AP in the paper).  Not run.

    torchrun --nproc-per-node 8 -m secvit.cli train detection.mask_rcnn_1x_secvit_tiny \
        --data coco --model.init SECVIT_TINY.safetensors --output runs/mask_rcnn

    --data is COCO's own layout: annotations/instances_train2017.json, train2017/ and those of val.
    """
    return coco("mask_rcnn", "secvit_tiny", 0.1)


def mask_rcnn_1x_secvit_small() -> Recipe:
    """Mask R-CNN 1x, SECViT-S on COCO (Table 4: 49.9 box AP, 44.6 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_small", 0.15)


def mask_rcnn_1x_secvit_base() -> Recipe:
    """Mask R-CNN 1x, SECViT-B on COCO (Table 4: 51.5 box AP, 45.4 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_base", 0.4)


def mask_rcnn_1x_secvit_large() -> Recipe:
    """Mask R-CNN 1x, SECViT-L on COCO (Table 4: 52.0 box AP, 46.3 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_large", 0.5)


def mask_rcnn_1x_sec_swin_tiny() -> Recipe:
    """Mask R-CNN 1x, SEC-Swin-T on COCO (Table 1: 48.3 box AP, 43.4 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "sec_swin_tiny", 0.2)


def mask_rcnn_1x_sec_swin_small() -> Recipe:
    """Mask R-CNN 1x, SEC-Swin-S on COCO (Table 1: 50.2 box AP, 44.7 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "sec_swin_small", 0.3)


def mask_rcnn_1x_sec_deit_small() -> Recipe:
    """Mask R-CNN 1x, SEC-DeiT-S on COCO (Table 1: 47.7 box AP, 42.7 mask AP in the paper).  Not run.

    secvit train detection.mask_rcnn_1x_sec_deit_small --data coco --model.init SEC_DEIT --output runs/mask_rcnn

    Its maps are those of ViTDet's simple feature pyramid (`secvit.models.plain_pyramid`); the paper does not say how
    its own were made.
    """
    return coco("mask_rcnn", "sec_deit_small", 0.1)


def mask_rcnn_1x_deit_small() -> Recipe:
    """Mask R-CNN 1x, DeiT-S on COCO (Table 1's baseline: 44.5 box AP, 40.1 mask AP in the paper).  Not run.

    secvit train detection.mask_rcnn_1x_deit_small --data coco --model.init DEIT --output runs/mask_rcnn

    The maps are made as those of SEC-DeiT; only the attention differs.
    """
    return coco("mask_rcnn", "deit_small_patch16_224", 0.1, **PLAIN)


def mask_rcnn_1x_swin_tiny() -> Recipe:
    """Mask R-CNN 1x, Swin-T on COCO (Table 1's baseline: 43.7 box AP, 39.8 mask AP in the paper).  Not run.

    secvit train detection.mask_rcnn_1x_swin_tiny --data coco --model.init SWIN --output runs/mask_rcnn
    """
    return coco("mask_rcnn", "swin_tiny_patch4_window7_224", 0.2, **WINDOWS)


def mask_rcnn_1x_swin_small() -> Recipe:
    """Mask R-CNN 1x, Swin-S on COCO (Table 1's baseline: 45.7 box AP, 41.1 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "swin_small_patch4_window7_224", 0.3, **WINDOWS)


def mask_rcnn_3x_secvit_small() -> Recipe:
    """Mask R-CNN 3x+MS, SECViT-S on COCO (Table 5: 51.6 box AP, 45.6 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_small", 0.15, 36)


def mask_rcnn_3x_secvit_base() -> Recipe:
    """Mask R-CNN 3x+MS, SECViT-B on COCO (Table 5: 52.8 box AP, 46.4 mask AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_base", 0.4, 36)


def cascade_mask_rcnn_3x_secvit_small() -> Recipe:
    """Cascade Mask R-CNN 3x+MS, SECViT-S on COCO (Table 5: 54.1 box AP, 47.0 mask AP in the paper).  Not run."""
    return coco("cascade_mask_rcnn", "secvit_small", 0.15, 36)


def cascade_mask_rcnn_3x_secvit_base() -> Recipe:
    """Cascade Mask R-CNN 3x+MS, SECViT-B on COCO (Table 5: 55.4 box AP, 47.8 mask AP in the paper).  Not run."""
    return coco("cascade_mask_rcnn", "secvit_base", 0.4, 36)


def retinanet_1x_secvit_tiny() -> Recipe:
    """RetinaNet 1x, SECViT-T on COCO (Table 4: 45.8 box AP in the paper).  Not run."""
    return coco("retinanet", "secvit_tiny", 0.1)


def retinanet_1x_secvit_small() -> Recipe:
    """RetinaNet 1x, SECViT-S with the released depths on COCO (Table 4: 48.4 box AP in the paper).  Not run."""
    return coco("retinanet", "secvit_small_release", 0.15)


def retinanet_1x_secvit_base() -> Recipe:
    """RetinaNet 1x, SECViT-B with the released depths on COCO (Table 4: 49.3 box AP in the paper).  Not run."""
    return coco("retinanet", "secvit_base_release", 0.4)


def retinanet_1x_secvit_large() -> Recipe:
    """RetinaNet 1x, SECViT-L with the released depths on COCO (Table 4: 50.2 box AP in the paper).  Not run."""
    return coco("retinanet", "secvit_large_release", 0.5)


# -- the same with the released S, B and L, the only sizes above T whose weights are published ---------------


def mask_rcnn_1x_secvit_small_release() -> Recipe:
    """Mask R-CNN 1x, SECViT-S with the released depths on COCO (beside Table 4: 49.9, 44.6 AP).  Not run.

    secvit train detection.mask_rcnn_1x_secvit_small_release --data coco --model.init SECVIT_S.pth --output runs/s
    """
    return coco("mask_rcnn", "secvit_small_release", 0.15)


def mask_rcnn_1x_secvit_base_release() -> Recipe:
    """Mask R-CNN 1x, SECViT-B with the released depths on COCO (beside Table 4: 51.5, 45.4 AP).  Not run."""
    return coco("mask_rcnn", "secvit_base_release", 0.4)


def mask_rcnn_1x_secvit_large_release() -> Recipe:
    """Mask R-CNN 1x, SECViT-L with the released depths on COCO (beside Table 4: 52.0, 46.3 AP).  Not run."""
    return coco("mask_rcnn", "secvit_large_release", 0.5)


def mask_rcnn_3x_secvit_small_release() -> Recipe:
    """Mask R-CNN 3x+MS, SECViT-S with the released depths on COCO (beside Table 5: 51.6, 45.6 AP).  Not run."""
    return coco("mask_rcnn", "secvit_small_release", 0.15, 36)


def mask_rcnn_3x_secvit_base_release() -> Recipe:
    """Mask R-CNN 3x+MS, SECViT-B with the released depths on COCO (beside Table 5: 52.8, 46.4 AP).  Not run."""
    return coco("mask_rcnn", "secvit_base_release", 0.4, 36)


def cascade_mask_rcnn_3x_secvit_small_release() -> Recipe:
    """Cascade Mask R-CNN 3x+MS, SECViT-S with the released depths on COCO (beside Table 5: 54.1, 47.0 AP).  Not run."""
    return coco("cascade_mask_rcnn", "secvit_small_release", 0.15, 36)


def cascade_mask_rcnn_3x_secvit_base_release() -> Recipe:
    """Cascade Mask R-CNN 3x+MS, SECViT-B with the released depths on COCO (beside Table 5: 55.4, 47.8 AP).  Not run."""
    return coco("cascade_mask_rcnn", "secvit_base_release", 0.4, 36)


# -- Table 10 in detection: tokens per cluster at 224 px, whose number of clusters stays.
# 98 is mask_rcnn_1x_secvit_tiny.


def table10_mask_rcnn_196_tokens() -> Recipe:
    """Table 10: Mask R-CNN 1x, SECViT-T with clusters of 196 tokens (48.2, 43.4 AP in the paper).  Not run.

    secvit train detection.table10_mask_rcnn_196_tokens --data coco --output runs/table10_196 \
        --model.init RUN of classification.table10_196_tokens
    """
    return coco("mask_rcnn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(196))


def table10_mask_rcnn_64_tokens() -> Recipe:
    """Table 10: Mask R-CNN 1x, SECViT-T with clusters of 64 tokens (47.8, 42.8 AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(64))


def table10_mask_rcnn_49_tokens() -> Recipe:
    """Table 10: Mask R-CNN 1x, SECViT-T with clusters of 49 tokens (47.5, 42.7 AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(49))


def table10_mask_rcnn_24_tokens() -> Recipe:
    """Table 10: Mask R-CNN 1x, SECViT-T with clusters of 24 tokens (45.9, 40.6 AP in the paper).  Not run."""
    return coco("mask_rcnn", "secvit_tiny", 0.1, num_clusters=clusters_at_224(24))
