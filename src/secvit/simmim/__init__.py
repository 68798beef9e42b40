"""SimMIM pre-training (the paper's Table 2): task, masks, data, evaluation, recipes."""

from secvit.simmim.data import EvalView, TrainView, random_mask
from secvit.simmim.recipes import Recipe, tiny
from secvit.simmim.scoring import evaluate
from secvit.simmim.task import MaskedImageTask
from secvit.simmim.training import train

__all__ = [
    "EvalView",
    "MaskedImageTask",
    "Recipe",
    "TrainView",
    "evaluate",
    "random_mask",
    "tiny",
    "train",
]
