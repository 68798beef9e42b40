"""The one training loop.  It knows no model and no application."""

from secvit.train.checkpoint import latest
from secvit.train.config import Loop, Schedule
from secvit.train.engine import fit
from secvit.train.result import Result, write_result
from secvit.train.schedule import learning_rate

__all__ = [
    "Loop",
    "Result",
    "Schedule",
    "fit",
    "latest",
    "learning_rate",
    "write_result",
]
