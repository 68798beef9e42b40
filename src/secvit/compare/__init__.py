"""Variants of a recipe, each trained with the same seeds, and what their scores can tell: `secvit compare`."""

from secvit.compare.report import markdown, reopen
from secvit.compare.training import compare

__all__ = ["compare", "markdown", "reopen"]
