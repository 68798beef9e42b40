"""LLaVA with SEC and its rivals as connector: models for transformers, training, evaluation.  Imports transformers."""

from secvit.extras import needs

with needs("secvit.vlm", "transformers", "vlm"):
    import transformers  # noqa: F401

from secvit.vlm.adapt import load_connector, restore_connector, save_connector, use_connector
from secvit.vlm.asking import ask, load_trained
from secvit.vlm.config import Recipe
from secvit.vlm.llava import SecLlavaConfig, SecLlavaForConditionalGeneration, SecLlavaModel, SecLlavaProcessor
from secvit.vlm.next import (
    SecLlavaNextConfig,
    SecLlavaNextForConditionalGeneration,
    SecLlavaNextModel,
    SecLlavaNextProcessor,
)
from secvit.vlm.recipes import tiny
from secvit.vlm.task import VlmTask
from secvit.vlm.training import train

__all__ = [
    "Recipe",
    "SecLlavaConfig",
    "SecLlavaForConditionalGeneration",
    "SecLlavaModel",
    "SecLlavaNextConfig",
    "SecLlavaNextForConditionalGeneration",
    "SecLlavaNextModel",
    "SecLlavaNextProcessor",
    "SecLlavaProcessor",
    "VlmTask",
    "ask",
    "load_connector",
    "load_trained",
    "restore_connector",
    "save_connector",
    "tiny",
    "train",
    "use_connector",
]
