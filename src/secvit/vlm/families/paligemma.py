"""PaliGemma and PaliGemma 2: an image is one tile, L = 256 at 224 px, 1024 at 448 px; the projector is one layer."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaModel, PaliGemmaProcessor

from secvit.vlm.families.base import ConnectedGeneration, ConnectedModel, Family, Kind, connected, register


@strict
class SecPaliGemmaConfig(PaliGemmaConfig):
    """PaliGemma's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_paligemma"

    connector: dict | None = None

    @property
    def tile_tokens(self) -> int:
        """L: tokens that PaliGemma itself makes of an image."""
        vision: Any = self.vision_config
        return (vision.image_size // vision.patch_size) ** 2


class SecPaliGemmaModel(ConnectedModel, PaliGemmaModel):
    """Tower, projector, connector, language model; no head."""

    config_class = SecPaliGemmaConfig
    get_image_features = connected(PaliGemmaModel.get_image_features)


class SecPaliGemmaForConditionalGeneration(ConnectedGeneration, PaliGemmaForConditionalGeneration):
    """PaliGemma with the connector of its config."""

    config_class = SecPaliGemmaConfig


class SecPaliGemmaProcessor(PaliGemmaProcessor):
    """PaliGemma's processor that writes `image_seq_length` placeholders for an image, whatever its tower makes."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_seq_length: int = 256,
        **kwargs: Any,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.image_seq_length = image_seq_length


register(
    Family(
        Kind(PaliGemmaForConditionalGeneration, PaliGemmaModel, PaliGemmaConfig),
        Kind(SecPaliGemmaForConditionalGeneration, SecPaliGemmaModel, SecPaliGemmaConfig),
        "multi_modal_projector",
        (PaliGemmaProcessor, SecPaliGemmaProcessor),
        "image_seq_length",
    )
)
