"""Detection and instance segmentation: Mask R-CNN, Cascade Mask R-CNN and RetinaNet on any backbone of timm."""

try:
    import faster_coco_eval  # noqa: F401
except ImportError:
    raise ImportError('secvit.detection needs faster-coco-eval: pip install "secvit[detection]"') from None

from secvit.detection.models import cascade_mask_rcnn, mask_rcnn, retinanet
from secvit.detection.predict import load_detector, predict
from secvit.detection.recipes import tiny
from secvit.detection.train import train

__all__ = ["cascade_mask_rcnn", "load_detector", "mask_rcnn", "predict", "retinanet", "tiny", "train"]
