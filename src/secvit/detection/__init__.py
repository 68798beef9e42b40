"""Detection and instance segmentation: Mask R-CNN, Cascade Mask R-CNN and RetinaNet on any backbone of timm."""

from secvit.extras import needs

with needs("secvit.detection", "faster-coco-eval", "detection"):
    import faster_coco_eval  # noqa: F401

from secvit.detection.config import Recipe
from secvit.detection.evaluate import evaluate_checkpoint
from secvit.detection.models import cascade_mask_rcnn, mask_rcnn, retinanet
from secvit.detection.prediction import predict
from secvit.detection.recipes import tiny
from secvit.detection.saved import load_detector
from secvit.detection.task import DetectionTask
from secvit.detection.training import train

__all__ = [
    "DetectionTask",
    "Recipe",
    "cascade_mask_rcnn",
    "evaluate_checkpoint",
    "load_detector",
    "mask_rcnn",
    "predict",
    "retinanet",
    "tiny",
    "train",
]
