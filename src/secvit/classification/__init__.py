"""Image classification: data, task, evaluation, recipes."""

from secvit.classification.evaluate import evaluate, evaluate_checkpoint
from secvit.classification.recipes import Recipe, tiny
from secvit.classification.sources import Images, load_split
from secvit.classification.task import ClassificationTask
from secvit.classification.train import train

__all__ = [
    "ClassificationTask",
    "Images",
    "Recipe",
    "evaluate",
    "evaluate_checkpoint",
    "load_split",
    "tiny",
    "train",
]
