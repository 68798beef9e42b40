"""Tables 4 and 5: Mask R-CNN, Cascade Mask R-CNN and RetinaNet on any backbone of timm, with torchvision's parts.

He et al. 2017, Cai and Vasconcelos 2018, Lin et al. 2017 (focal loss).  Head layouts are those of the
field's reference configs, which the published counts of parameters follow.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from secvit.detection.roi_heads import AlignedRoIAlign, StagedRoIHeads, plain_roi_align
from secvit.models.features import FeatureMaps

CHANNELS = 256
LEVELS = ["0", "1", "2", "3"]
# arguments of torchvision's constructors that are not for users: we give them
OURS = {
    *("backbone", "num_classes", "anchor_generator", "bbox_reg_weights", "box_fg_iou_thresh", "box_bg_iou_thresh"),
    *("box_roi_pool", "box_head", "box_predictor", "mask_roi_pool", "mask_head", "mask_predictor", "kwargs"),
}


class Pyramid(FeatureMaps):
    """A backbone's maps and an FPN over them.  images (B, 3, H, W) -> maps (B, 256, H_l, W_l) by name."""

    def __init__(self, backbone: str, levels: int, arguments: dict[str, Any] | None) -> None:
        super().__init__(backbone, arguments, levels)
        # two-stage detectors pool the top map once more, one-stage ones make two maps of the top stage
        extra = LastLevelMaxPool() if levels == 4 else LastLevelP6P7(self.channels[-1], CHANNELS)
        self.fpn = FeaturePyramidNetwork(self.channels, CHANNELS, extra_blocks=extra)
        self.out_channels = CHANNELS

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(super().forward(images))))

    def defaults(self) -> dict[str, list[float]]:
        """What torchvision's detectors are told of the images."""
        mean, std = self.normalization()
        return {"image_mean": list(mean), "image_std": list(std)}


def mask_rcnn(
    backbone: str = "secvit_tiny",
    num_classes: int = 80,
    *,
    box_loss: str = "l1",
    aligned: bool = True,
    masks: bool = True,
    backbone_args: dict[str, Any] | None = None,
    **options: Any,
) -> MaskRCNN:
    """Tables 4, 5: Mask R-CNN (He et al. 2017) with an FPN of 256 channels, or Faster R-CNN without masks.

    backbone: a timm name that offers features_only with maps of strides 4 to 32.
    num_classes: object classes; the background is not among them.
    box_loss: "l1", "smooth_l1" (torchvision's) or "giou".  aligned: RoIAlign with half-pixel offsets.
    backbone_args: of timm.create_model, such as {"pretrained": True, "cluster_size": 98}.
    options: of torchvision's MaskRCNN: min_size, max_size, box_score_thresh, box_detections_per_img, ...
    """
    body = Pyramid(backbone, 4, backbone_args)
    heads = [TwoMLPHead(CHANNELS * 7 * 7, 1024)]
    return _two_stage(
        body, num_classes, heads, (0.5,), ((10.0, 10.0, 5.0, 5.0),), (1.0,), box_loss, aligned, masks, options
    )


def cascade_mask_rcnn(
    backbone: str = "secvit_small",
    num_classes: int = 80,
    *,
    box_loss: str = "l1",
    aligned: bool = True,
    masks: bool = True,
    backbone_args: dict[str, Any] | None = None,
    **options: Any,
) -> MaskRCNN:
    """Table 5: Cascade Mask R-CNN, three stages at IoU 0.5, 0.6, 0.7 with 4conv1fc box heads and a mask head each.

    The layout of Swin's configs, class-specific boxes; arguments as in `mask_rcnn`.
    """
    body = Pyramid(backbone, 4, backbone_args)
    heads = [FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 4, [1024], norm_layer=nn.BatchNorm2d) for _ in range(3)]
    weights = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    return _two_stage(
        body, num_classes, heads, (0.5, 0.6, 0.7), weights, (1.0, 0.5, 0.25), box_loss, aligned, masks, options
    )


def retinanet(
    backbone: str = "secvit_tiny", num_classes: int = 80, *, backbone_args: dict[str, Any] | None = None, **options: Any
) -> RetinaNet:
    """Table 4: RetinaNet (Lin et al. 2017) on maps of strides 8 to 128.

    Arguments as in `mask_rcnn`; options: of torchvision's RetinaNet.
    """
    check_options(RetinaNet, options)
    body = Pyramid(backbone, 3, backbone_args)
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return RetinaNet(body, num_classes, anchor_generator=anchors, **{**body.defaults(), **options})


def check_options(detector: type[nn.Module], options: dict[str, Any]) -> None:
    """Refuse what torchvision's constructor would pass over in silence."""
    names = sorted(set(inspect.signature(detector).parameters) - OURS)
    if unknown := sorted(set(options) - set(names)):
        raise ValueError(f"{detector.__name__} has no option {', '.join(unknown)}; choose from {', '.join(names)}")


def _two_stage(
    body: Pyramid, num_classes: int, box_heads: list[nn.Module], ious: tuple[float, ...], weights: Any,
    loss_weights: tuple[float, ...], box_loss: str, aligned: bool, masks: bool, options: dict[str, Any],
) -> MaskRCNN:  # fmt: skip
    strides = dict(zip(LEVELS, body.strides, strict=True))
    align: Any = AlignedRoIAlign if aligned else plain_roi_align
    box_pool, mask_pool = (align(strides, size) for size in (7, 14))
    check_options(MaskRCNN, options)
    options = {**body.defaults(), **options}
    model = MaskRCNN(body, num_classes + 1, **options)
    stages = len(box_heads)
    old = model.roi_heads
    model.roi_heads = StagedRoIHeads(
        box_pool,
        mask_pool,
        box_heads,
        [FastRCNNPredictor(1024, num_classes + 1) for _ in range(stages)],
        [MaskRCNNHeads(CHANNELS, [CHANNELS] * 4, 1) for _ in range(stages if masks else 0)],
        [MaskRCNNPredictor(CHANNELS, CHANNELS, num_classes + 1) for _ in range(stages if masks else 0)],
        ious, weights, loss_weights, box_loss,
        old.fg_bg_sampler.batch_size_per_image, old.fg_bg_sampler.positive_fraction,
        old.score_thresh, old.nms_thresh, old.detections_per_img,
    )  # fmt: skip
    return model
