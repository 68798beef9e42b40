"""Gemma 3: an image, and each crop of pan-and-scan, is a tile of L = 256 tokens, means of 4 x 4 patches, projected."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Model, Gemma3Processor

from secvit.vlm.families.base import ConnectedGeneration, ConnectedModel, Family, Kind, connected, register


@strict
class SecGemma3Config(Gemma3Config):
    """Gemma 3's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_gemma3"

    connector: dict | None = None

    @property
    def tile_tokens(self) -> int:
        """L: tokens that Gemma 3 itself makes of a tile."""
        count: Any = self.mm_tokens_per_image
        return count


class SecGemma3Model(ConnectedModel, Gemma3Model):
    """Tower, projector, connector, language model; no head."""

    config_class = SecGemma3Config
    get_image_features = connected(Gemma3Model.get_image_features)


class SecGemma3ForConditionalGeneration(ConnectedGeneration, Gemma3ForConditionalGeneration):
    """Gemma 3 with the connector of its config."""

    config_class = SecGemma3Config


register(
    Family(
        Kind(Gemma3ForConditionalGeneration, Gemma3Model, Gemma3Config),
        Kind(SecGemma3ForConditionalGeneration, SecGemma3Model, SecGemma3Config),
        "multi_modal_projector",
        (Gemma3Processor, Gemma3Processor),
        "image_seq_length",
    )
)
