"""LLaVA-NeXT (1.6) with a connector: every tile becomes T tokens, tile after tile, without newlines or unpadding.

Those two need a grid of tokens, which groups of similar tokens no longer have.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    LlavaNextPreTrainedModel,
    LlavaNextProcessor,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.processing_utils import MultiModalData

from secvit.vlm.llava import (
    DEFAULT,
    Connected,
    ConnectedModel,
    ConnectedProcessor,
    new_connector,
    num_patches,
    register,
)


@strict
class SecLlavaNextConfig(LlavaNextConfig):
    """LLaVA-NeXT's config and `connector`: its name in `secvit.connectors` and its options, widths left out.

    image_seq_length: tokens that a tile becomes, the extra one included; the model sets it.
    """

    model_type = "sec_llava_next"

    connector: dict | None = None

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        self.connector = dict(DEFAULT if self.connector is None else self.connector)


class SecLlavaNextModel(ConnectedModel, LlavaNextModel):
    """Tower, connector, language model; no head."""

    config_class = SecLlavaNextConfig

    def __init__(self, config: SecLlavaNextConfig):
        super().__init__(config)
        connector = new_connector(config)
        self.multi_modal_projector = connector
        config.image_seq_length = connector.num_output_tokens(num_patches(config))

    def tiles(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, list[int]]:
        """(images, most tiles, 3, H, W) padded -> (tiles, 3, H, W), and how many each image has."""
        if image_sizes is None:
            raise ValueError("LLaVA-NeXT cuts images by their size: pass image_sizes, which the processor returns")
        side = self.config.vision_config.image_size
        counts = [image_size_to_num_patches(size, self.config.image_grid_pinpoints, side) for size in image_sizes]
        if pixel_values.dim() == 5:
            pixel_values = torch.cat([tiles[:count] for tiles, count in zip(pixel_values, counts)])
        return pixel_values, counts


class SecLlavaNextForConditionalGeneration(Connected, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT with the connector of its config, tile by tile."""

    config_class = SecLlavaNextConfig

    def __init__(self, config: SecLlavaNextConfig):
        LlavaNextPreTrainedModel.__init__(self, config)  # not LLaVA-NeXT's own, which would build the towers twice
        self.model = SecLlavaNextModel(config)
        text: Any = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


class SecLlavaNextProcessor(ConnectedProcessor, LlavaNextProcessor):
    """LLaVA-NeXT's processor that writes `num_image_tokens` placeholders for each tile of an image."""

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What <image> becomes."""
        return self.image_token * self._count(image_inputs["image_sizes"][image_idx])

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """The same, asked by servers before they see an image."""
        if image_sizes is None:
            return MultiModalData()
        counts = [self._count(size) for size in image_sizes]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))

    def _count(self, image_size: Any) -> int:
        """Tokens of an image of (height, width) pixels."""
        images = self.image_processor
        size = image_size.tolist() if hasattr(image_size, "tolist") else list(image_size)
        return self.num_image_tokens * image_size_to_num_patches(
            size, images.image_grid_pinpoints, images.crop_size["height"]
        )


register(
    "sec_llava_next",
    SecLlavaNextConfig,
    SecLlavaNextModel,
    SecLlavaNextForConditionalGeneration,
    SecLlavaNextProcessor,
    ("llava_next", "LlavaNextModel"),
)
