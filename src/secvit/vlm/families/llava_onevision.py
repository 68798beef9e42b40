"""LLaVA-OneVision: each tile, the whole image first, is L = 729 tokens; an image ends with the newline of its own.

Newlines between rows, cutting away padding and shrinking many tiles need rows of tokens, which groups of similar tokens
no longer have: with a connector all three are left out.  Videos keep their own pooling and count.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
    LlavaOnevisionProcessor,
)
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from secvit.vlm.families.base import ConnectedGeneration, ConnectedModel, Family, Kind, register


@strict
class SecLlavaOnevisionConfig(LlavaOnevisionConfig):
    """LLaVA-OneVision's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_llava_onevision"

    connector: dict | None = None

    @property
    def tile_tokens(self) -> int:
        """L: tokens that LLaVA-OneVision itself makes of a tile."""
        vision: Any = self.vision_config
        return (vision.image_size // vision.patch_size) ** 2


class SecLlavaOnevisionModel(ConnectedModel, LlavaOnevisionModel):
    """Tower, projector, connector, language model; no head."""

    config_class = SecLlavaOnevisionConfig

    def pack_image_features(
        self,
        image_features: Any,
        image_sizes: Any,
        image_newline: Tensor | None = None,
        vision_aspect_ratio: str = "anyres_max_9",
    ) -> tuple[list[Tensor], Tensor]:
        """(tiles, L, C) of each image -> (tiles x T, C) and the newline, where there is one; and their lengths."""
        if self.config.connector["name"] == "mlp":  # all tokens are left, in rows
            return super().pack_image_features(image_features, image_sizes, image_newline, vision_aspect_ratio)
        tokens = self.image_connector(torch.cat(list(image_features)))
        end = tokens[:0, 0] if image_newline is None else image_newline[None].to(tokens)
        tiles = tokens.split([len(image) for image in image_features])
        packed = [torch.cat([image.flatten(0, 1), end]) for image in tiles]
        return packed, torch.tensor([len(image) for image in packed], device=tokens.device)


class SecLlavaOnevisionForConditionalGeneration(ConnectedGeneration, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision with the connector of its config."""

    config_class = SecLlavaOnevisionConfig


class SecLlavaOnevisionProcessor(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor that writes `tile_tokens` placeholders for each tile, and one for the newline.

    num_image_tokens is the tower's, which videos are counted by.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
        tile_tokens: int = 144,
        **kwargs: Any,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            video_processor,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            video_token=video_token,
            vision_aspect_ratio=vision_aspect_ratio,
            **kwargs,
        )
        self.tile_tokens = tile_tokens

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What <image> becomes: several images of one prompt have one tile each."""
        alone = [count == 1 for count in image_inputs["batch_num_images"] for _ in range(count)][image_idx]
        size, side = image_inputs["image_sizes"][image_idx], image_inputs["pixel_values"][0][0].shape[-1]
        return self.image_token * self._count(size, side, alone)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any) -> Any:
        """The same, asked by servers before they see an image."""
        counts = super()._get_num_multimodal_tokens(image_sizes=image_sizes, video_sizes=video_sizes, **kwargs)
        if image_sizes is not None:
            side = self.image_processor.size.get("height") or self.image_processor.size["shortest_edge"]
            counts.num_image_tokens = [self._count(size, side, alone=True) for size in image_sizes]
        return counts

    def _count(self, size: Any, side: int, alone: bool) -> int:
        size = size.tolist() if hasattr(size, "tolist") else list(size)
        tiles = image_size_to_num_patches(size, self.image_processor.image_grid_pinpoints, side) if alone else 1
        return tiles * self.tile_tokens + 1


register(
    Family(
        Kind(LlavaOnevisionForConditionalGeneration, LlavaOnevisionModel, LlavaOnevisionConfig),
        Kind(SecLlavaOnevisionForConditionalGeneration, SecLlavaOnevisionModel, SecLlavaOnevisionConfig),
        "multi_modal_projector",
        (LlavaOnevisionProcessor, SecLlavaOnevisionProcessor),
        "tile_tokens",
    )
)
