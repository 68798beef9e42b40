"""The one training loop.  It knows no model and no application."""

from secvit.train.checkpoint import latest
from secvit.train.config import Loop, Schedule
from secvit.train.engine import fit
from secvit.train.job import Job
from secvit.train.result import Result
from secvit.train.schedule import learning_rate

__all__ = [
    "Job",
    "Loop",
    "Result",
    "Schedule",
    "fit",
    "latest",
    "learning_rate",
]
