"""Idefics3 and SmolVLM: each tile, the whole image last, is L tokens (64 to 169), shuffled pixels and one layer."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Model,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMModel,
    SmolVLMProcessor,
)

from secvit.vlm.families.base import REMEDY, ConnectedGeneration, ConnectedModel, Family, Kind, connected, register


def tile_tokens(config: Any) -> int:
    """L: tokens that the family itself makes of a tile, or of a frame."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2 // config.scale_factor**2


class CountsTokens:
    """Compares the prompt's image tokens with the images', which transformers did not before 5.24; a mixin."""

    config: Any

    def inputs_merger(self, input_ids: Any, inputs_embeds: Any, image_hidden_states: Any) -> Any:
        """As in transformers; ValueError for other counts in prompt and images."""
        made = image_hidden_states.shape[:-1].numel()
        if input_ids is not None and (wanted := int((input_ids == self.config.image_token_id).sum())) != made:
            raise ValueError(f"the prompts have {wanted} image tokens for the {made} of the images.  {REMEDY}")
        behind: Any = super()
        return behind.inputs_merger(input_ids, inputs_embeds, image_hidden_states)


@strict
class SecIdefics3Config(Idefics3Config):
    """Idefics3's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_idefics3"

    connector: dict | None = None
    tile_tokens = property(tile_tokens)


class SecIdefics3Model(CountsTokens, ConnectedModel, Idefics3Model):
    """Tower, projector, connector, language model; no head."""

    config_class = SecIdefics3Config
    get_image_features = connected(Idefics3Model.get_image_features)


class SecIdefics3ForConditionalGeneration(ConnectedGeneration, Idefics3ForConditionalGeneration):
    """Idefics3 with the connector of its config."""

    config_class = SecIdefics3Config


@strict
class SecSmolVLMConfig(SmolVLMConfig):
    """SmolVLM's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_smolvlm"

    connector: dict | None = None
    tile_tokens = property(tile_tokens)


class SecSmolVLMModel(CountsTokens, ConnectedModel, SmolVLMModel):
    """Tower, projector, connector, language model; no head."""

    config_class = SecSmolVLMConfig
    get_image_features = connected(SmolVLMModel.get_image_features)


class SecSmolVLMForConditionalGeneration(ConnectedGeneration, SmolVLMForConditionalGeneration):
    """SmolVLM with the connector of its config."""

    config_class = SecSmolVLMConfig


register(
    Family(
        Kind(Idefics3ForConditionalGeneration, Idefics3Model, Idefics3Config),
        Kind(SecIdefics3ForConditionalGeneration, SecIdefics3Model, SecIdefics3Config),
        "connector",
        (Idefics3Processor, Idefics3Processor),
        "image_seq_len",
    )
)
register(
    Family(
        Kind(SmolVLMForConditionalGeneration, SmolVLMModel, SmolVLMConfig),
        Kind(SecSmolVLMForConditionalGeneration, SecSmolVLMModel, SecSmolVLMConfig),
        "connector",
        (SmolVLMProcessor, SmolVLMProcessor),
        "image_seq_len",
    )
)
