"""RoI heads of one or more stages: Faster and Mask R-CNN are the case of one, Cascade R-CNN of three.

Cai and Vasconcelos: "Cascade R-CNN", CVPR 2018, with one mask head a stage as in Cascade Mask R-CNN.
Sampling, matching, box coding and the mask loss are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, generalized_box_iou_loss, roi_align
from torchvision.ops.poolers import LevelMapper

Targets = list[dict[str, Tensor]]
BOX_LOSSES = ("l1", "smooth_l1", "giou")


class AlignedRoIAlign(nn.Module):
    """RoIAlign with half-pixel offsets and adaptive sampling, as detectron2 and mmdet have it by default.

    strides: pixels of the image to a pixel of each map, by the map's name; each twice the one before.
    size: S of what comes out.
    """

    def __init__(self, strides: Mapping[str, int], size: int) -> None:
        super().__init__()
        self.strides, self.size = dict(strides), size

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """features (B, C, H_l, W_l) by name, boxes (n_i, 4) of each image in pixels -> (sum n_i, C, S, S)"""
        maps = {stride: x[name] for name, stride in self.strides.items()}
        rois = torch.cat([F.pad(boxes_, (1, 0), value=float(i)) for i, boxes_ in enumerate(boxes)])
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp_min(0).sqrt()
        # FPN, eq. 1: a box of 224 px goes to the map of stride 16
        wanted = 2 ** torch.floor(4 + torch.log2(side / 224 + 1e-6)).clamp(math.log2(min(maps)), math.log2(max(maps)))
        first = maps[min(maps)]
        # coordinates do not fit in half precision
        precision = torch.promote_types(first.dtype, torch.float32)
        rois = rois.to(precision)
        out = first.new_zeros(len(rois), first.shape[1], self.size, self.size)
        for stride, features in maps.items():
            here = torch.where(wanted == stride)[0]
            pooled = roi_align(features.to(precision), rois[here], self.size, 1 / stride, 0, aligned=True)
            out = out.index_copy(0, here, pooled.to(out.dtype))
        return out


def plain_roi_align(strides: Mapping[str, int], size: int) -> MultiScaleRoIAlign:
    """torchvision's RoIAlign, told the strides, which it would guess from the images that it sees first."""
    pool = MultiScaleRoIAlign(list(strides), size, 2)
    levels = [int(math.log2(stride)) for stride in strides.values()]
    pool.scales = [1 / stride for stride in strides.values()]
    pool.map_levels = LevelMapper(min(levels), max(levels), pool.canonical_scale, pool.canonical_level)
    return pool


class StagedRoIHeads(RoIHeads):
    """Each stage classifies and refines the boxes of the one before it; scores and masks are averaged over stages.

    box_heads, box_predictors, mask_heads, mask_predictors: one a stage (no mask heads: boxes only).
    ious: overlap with a ground truth from which on a box is positive, a stage.
    weights: box-regression weights (x, y, w, h) of each stage.
    box_loss: "l1" (mmdet's configs), "smooth_l1" with beta 1/9 (torchvision) or "giou" (weight 10).
    loss_weights: of each stage.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        mask_roi_pool: nn.Module | None,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        mask_heads: Sequence[nn.Module],
        mask_predictors: Sequence[nn.Module],
        ious: Sequence[float],
        weights: Sequence[tuple[float, float, float, float]],
        loss_weights: Sequence[float],
        box_loss: str = "l1",
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 100,
    ) -> None:
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss={box_loss!r}; choose one of {', '.join(BOX_LOSSES)}")
        sampled, kept = (batch_size_per_image, positive_fraction), (score_thresh, nms_thresh, detections_per_img)
        super().__init__(box_roi_pool, None, None, ious[-1], ious[-1], *sampled, weights[-1], *kept)
        # torchvision's, for what a stage does by its own IoU and weights: samples to learn from, coding of boxes
        self.stages = [
            RoIHeads(None, None, None, iou, iou, *sampled, coded, *kept)
            for iou, coded in zip(ious, weights, strict=True)
        ]
        self.mask_pool: nn.Module | None = mask_roi_pool
        self.box_heads, self.box_predictors = nn.ModuleList(box_heads), nn.ModuleList(box_predictors)
        self.mask_heads, self.mask_predictors = nn.ModuleList(mask_heads), nn.ModuleList(mask_predictors)
        self.loss_weights = tuple(loss_weights)
        self.box_loss = box_loss

    def has_mask(self) -> bool:
        return len(self.mask_heads) > 0

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[Targets, dict[str, Tensor]]:
        """Pyramid and proposals (n_i, 4) -> detections of each image, or losses by name in training.

        Outside, classes count from 0; inside, as torchvision has it, 0 is the background.
        """
        if self.training:
            targets = [{**t, "labels": t["labels"] + 1} for t in targets or []]
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for i, weight in enumerate(self.loss_weights):
            with torch.no_grad():
                boxes, matched, labels, goals = self.stages[i].select_training_samples(list(proposals), targets)
            logits, deltas = self._box_stage(i, features, boxes, image_shapes)
            stage_losses = {
                "classifier": F.cross_entropy(logits, torch.cat(labels)),
                "box_reg": self._box_loss(i, deltas, torch.cat(labels), torch.cat(goals), torch.cat(boxes)),
            }
            if self.has_mask() and targets is not None:
                positive = [torch.where(label > 0)[0] for label in labels]
                masked = [box[p] for box, p in zip(boxes, positive)]
                truth = ([t["masks"] for t in targets], [t["labels"] for t in targets])
                at = [m[p] for m, p in zip(matched, positive)]
                stage_losses["mask"] = maskrcnn_loss(
                    self._mask_stage(i, features, masked, image_shapes), masked, *truth, at
                )
            name = "" if len(self.loss_weights) == 1 else f"_{i + 1}"
            losses |= {f"loss_{kind}{name}": weight * loss for kind, loss in stage_losses.items()}
            if i + 1 < len(self.loss_weights):
                with torch.no_grad():
                    all_labels = torch.cat(labels)
                    classes = torch.where(all_labels > 0, all_labels, logits[:, 1:].argmax(1) + 1)
                    refined = self._refined(i, deltas, boxes, classes, image_shapes)
                    # boxes that are a ground truth already teach the next stage nothing
                    proposals = [new[~_among(old, t["boxes"])] for new, old, t in zip(refined, boxes, targets or [])]
        return losses

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Targets:
        scores: list[Tensor] = []
        boxes = proposals
        for i in range(len(self.box_heads)):
            logits, deltas = self._box_stage(i, features, boxes, image_shapes)
            scores.append(logits.softmax(-1))
            if i + 1 < len(self.box_heads):
                boxes = self._refined(i, deltas, boxes, logits[:, 1:].argmax(1) + 1, image_shapes)
        mean = torch.stack(scores).mean(0)
        # torchvision takes the softmax of what it is given: that of a logarithm is the mean again
        detections = self.postprocess_detections(mean.clamp_min(1e-37).log(), deltas, boxes, image_shapes)
        result = [{"boxes": b, "scores": s, "labels": c - 1} for b, s, c in zip(*detections)]
        if self.has_mask():
            where, labels = [r["boxes"] for r in result], detections[2]
            stages = [self._mask_stage(i, features, where, image_shapes) for i in range(len(self.mask_heads))]
            masks = torch.stack([stage.sigmoid() for stage in stages]).mean(0)
            for r, mask in zip(result, maskrcnn_inference(torch.logit(masks, eps=1e-6), labels)):
                r["masks"] = mask
        return result

    def _box_stage(
        self, i: int, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (n, K + 1) and box deltas (n, 4 (K + 1)) of stage i."""
        return self.box_predictors[i](self.box_heads[i](self.box_roi_pool(features, boxes, image_shapes)))

    def _mask_stage(
        self, i: int, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Mask logits (n, K + 1, 28, 28) of stage i."""
        assert self.mask_pool is not None  # has_mask
        return self.mask_predictors[i](self.mask_heads[i](self.mask_pool(features, boxes, image_shapes)))

    def _refined(
        self, i: int, deltas: Tensor, boxes: list[Tensor], classes: Tensor, image_shapes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Boxes moved by the deltas of their class, inside the image."""
        moved = self.stages[i].box_coder.decode(deltas, boxes)
        moved = moved[torch.arange(len(classes), device=classes.device), classes]
        sizes = [len(b) for b in boxes]
        return [clip_boxes_to_image(b, shape) for b, shape in zip(moved.split(sizes), image_shapes)]

    def _box_loss(self, i: int, deltas: Tensor, labels: Tensor, goals: Tensor, boxes: Tensor) -> Tensor:
        """Over positive boxes, divided by all sampled ones."""
        positive = torch.where(labels > 0)[0]
        predicted, goal = deltas.unflatten(1, (-1, 4))[positive, labels[positive]], goals[positive]
        if self.box_loss == "giou":
            coder = self.stages[i].box_coder
            pairs = (coder.decode_single(d, boxes[positive]) for d in (predicted, goal))
            return 10 * generalized_box_iou_loss(*pairs, reduction="sum") / labels.numel()
        beta = 0.0 if self.box_loss == "l1" else 1 / 9
        return F.smooth_l1_loss(predicted, goal, beta=beta, reduction="sum") / labels.numel()


def _among(boxes: Tensor, others: Tensor) -> Tensor:
    """Which boxes (n, 4) are exactly one of the others (m, 4)."""
    return (boxes.unsqueeze(1) == others.to(boxes).unsqueeze(0)).all(-1).any(-1)
