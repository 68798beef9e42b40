"""Connectors behind the projectors of current vision-language models: one file a family, base.py is what they share."""

from secvit.vlm.families import gemma3, idefics3, internvl, llava_onevision, paligemma, qwen  # noqa: F401
from secvit.vlm.families.base import FAMILIES, become, config_as, connector_of, family_of, parts, restore, use

__all__ = ["FAMILIES", "become", "config_as", "connector_of", "family_of", "parts", "restore", "use"]
