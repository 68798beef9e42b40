"""vLLM's own LLaVA with our connector where its projector stands.

Run with vLLM 0.32 on a CPU (`make test-vllm`): greedy tokens equal transformers'.  vLLM 0.33's LLaVA is the same file.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig
from vllm.config import VllmConfig
from vllm.inputs import MultiModalInput
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs

from secvit.vlm.llava import REMEDY, SecLlavaConfig, new_connector, num_patches


class SecLlavaProcessingInfo(LlavaProcessingInfo):
    """What vLLM asks before it sees an image; made in the caller's process, where errors are seen: it refuses here."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check(self.get_hf_config())

    def get_num_image_tokens(self, **sizes: Any) -> int:
        """As many as the connector makes, whatever the size."""
        return self.get_hf_config().image_seq_length


class SecLlavaMultiModalProcessor(LlavaMultiModalProcessor):
    """vLLM's, which would leave an <image> without an image in the prompt as if it were a word."""

    def apply(self, inputs: ProcessorInputs, *args: Any, **kwargs: Any) -> MultiModalInput:
        """The prompt with its placeholders; ValueError unless it has one <image> for each image."""
        written = inputs.prompt.count(self.info.get_hf_config().image_token_index)
        images = inputs.mm_data_items.get_count("image", strict=False)
        if written != images:
            raise ValueError(f"the prompt has {written} <image> for {images} image(s); {REMEDY}")
        return super().apply(inputs, *args, **kwargs)


@MULTIMODAL_REGISTRY.register_processor(
    SecLlavaMultiModalProcessor, info=SecLlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class SecLlava(LlavaForConditionalGeneration):
    """vLLM's LLaVA: its tower and language model, our connector."""

    supports_tower_connector_lora = False  # vLLM counts a token in front of the projector for each behind it
    # transformers 5 saves a tower without `vision_model.` if it was not loaded from a LLaVA's file that has it
    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_regex={re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."}
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.multi_modal_projector = new_connector(self.config)

    def _process_image_input(self, image_input: Any) -> Tensor:
        """pixel_values (B, 3, H, W) -> tokens for the language model (B, T (+1), C); image_embeds are such already.

        `vision_feature_select_strategy` is not asked: the connector takes patches and, where it needs it, [cls].
        """
        if image_input["type"] == "image_embeds":
            return image_input["data"]
        features = self.vision_tower(image_input["pixel_values"], feature_select_strategy="full")
        prefix = features.shape[1] - num_patches(self.config)  # [cls], if the tower has one
        connector = self.multi_modal_projector
        return connector(features[:, prefix:], cls=features[:, 0] if connector.needs_cls else None)


def check(config: SecLlavaConfig) -> None:
    """NotImplementedError or ValueError for a LLaVA that vLLM cannot serve, before weights are loaded."""
    with torch.device("meta"):
        connector = new_connector(config)
    if connector.needs_cls_attention:
        raise NotImplementedError(
            f"vLLM's tower returns no attention of [cls], which {connector.name} needs; serve it with transformers"
        )
    if not isinstance(config.vision_feature_layer, int):
        raise NotImplementedError(
            f"vLLM's LLaVA gives the last of vision_feature_layer={config.vision_feature_layer} only; serve it with "
            "transformers"
        )
    if connector.needs_cls and not isinstance(config.vision_config, CLIPVisionConfig):
        raise ValueError(
            f"{type(config.vision_config).__name__}: a tower without [cls], which extra_token='cls' needs; choose "
            "extra_token='mean' or None"
        )
    made = connector.num_output_tokens(num_patches(config))
    if config.image_seq_length != made:
        raise ValueError(
            f"config.json: image_seq_length is {config.image_seq_length}, but the connector {connector.name} makes "
            f"{made} tokens of an image; save the model again with save_pretrained"
        )
