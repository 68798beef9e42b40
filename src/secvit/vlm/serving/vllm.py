"""vLLM's own LLaVA with our connector where its projector stands.

Untested: written from the sources of vLLM 0.33, never run.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from secvit.connectors import Connector
from secvit.vlm.llava import new_connector


class SecLlavaProcessingInfo(LlavaProcessingInfo):
    """What vLLM asks before it sees a picture."""

    def get_num_image_tokens(self, **sizes: Any) -> int:
        """As many as the connector makes, whatever the size."""
        return self.get_hf_config().image_seq_length


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=SecLlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class SecLlava(LlavaForConditionalGeneration):
    """vLLM's LLaVA: its tower and language model, our connector."""

    supports_tower_connector_lora = False  # vLLM counts a token in front of the projector for each behind it

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        connector = new_connector(self.config)
        if connector.needs_cls_attention:
            raise NotImplementedError(
                f"vLLM's tower returns no attention of [cls], which {connector.name} needs; serve it with transformers"
            )
        if connector.needs_cls:
            self.config.vision_feature_select_strategy = "full"
            connector.register_forward_pre_hook(take_cls)
        self.multi_modal_projector = connector


def take_cls(connector: Connector, features: tuple[Tensor]) -> tuple[Tensor, Tensor]:
    """All of the tower's tokens (B, 1 + L, C) as the connector takes them: patches (B, L, C), [cls] (B, C)."""
    return features[0][:, 1:], features[0][:, 0]
