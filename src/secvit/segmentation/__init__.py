"""Semantic segmentation: Semantic FPN and UperNet on any backbone of timm, data, evaluation, recipes."""

from secvit.segmentation.config import Recipe
from secvit.segmentation.models import semantic_fpn, upernet
from secvit.segmentation.prediction import label_picture, load_trained
from secvit.segmentation.recipes import tiny
from secvit.segmentation.scoring import evaluate, evaluate_checkpoint
from secvit.segmentation.task import SegmentationTask
from secvit.segmentation.training import train

__all__ = [
    "Recipe",
    "SegmentationTask",
    "evaluate",
    "evaluate_checkpoint",
    "label_picture",
    "load_trained",
    "semantic_fpn",
    "tiny",
    "train",
    "upernet",
]
