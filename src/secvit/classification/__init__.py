"""Image classification: data, task, evaluation, recipes."""

from secvit.classification.config import Recipe
from secvit.classification.prediction import predict
from secvit.classification.recipes import tiny
from secvit.classification.scoring import evaluate, evaluate_checkpoint
from secvit.classification.task import ClassificationTask
from secvit.classification.training import train
from secvit.images import Images, load_split

__all__ = [
    "ClassificationTask",
    "Images",
    "Recipe",
    "evaluate",
    "evaluate_checkpoint",
    "load_split",
    "predict",
    "tiny",
    "train",
]
