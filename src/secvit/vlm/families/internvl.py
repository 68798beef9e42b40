"""InternVL 3 (transformers' own port, "-hf"): each tile is L = 256 tokens, 2 x 2 patches each, behind its projector."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLModel, InternVLProcessor

from secvit.vlm.families.base import ConnectedGeneration, ConnectedModel, Family, Kind, connected, register


@strict
class SecInternVLConfig(InternVLConfig):
    """InternVL's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_internvl"

    connector: dict | None = None

    @property
    def tile_tokens(self) -> int:
        """L: tokens that InternVL itself makes of a tile, or of a frame."""
        vision: Any = self.vision_config
        height, width = (side // patch for side, patch in zip(vision.image_size, vision.patch_size))
        return int(height * self.downsample_ratio) * int(width * self.downsample_ratio)


class SecInternVLModel(ConnectedModel, InternVLModel):
    """Tower, projector, connector, language model; no head."""

    config_class = SecInternVLConfig
    get_image_features = connected(InternVLModel.get_image_features)


class SecInternVLForConditionalGeneration(ConnectedGeneration, InternVLForConditionalGeneration):
    """InternVL with the connector of its config."""

    config_class = SecInternVLConfig


register(
    Family(
        Kind(InternVLForConditionalGeneration, InternVLModel, InternVLConfig),
        Kind(SecInternVLForConditionalGeneration, SecInternVLModel, SecInternVLConfig),
        "multi_modal_projector",
        (InternVLProcessor, InternVLProcessor),
        "image_seq_length",
    )
)
