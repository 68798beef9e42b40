"""transformers' vision towers, through its public attention interface: `model.set_attn_implementation("secvit")`.

The interface is one function for all models; each attention module carries its own settings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "secvit"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What the interface calls: q k v (B, h, L, D) -> (B, L, h, D).  Layers that are not patched use SDPA."""
    clustered = getattr(module, "secvit", None)
    if clustered is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if kwargs.get("output_attentions"):
        raise ValueError("clustered attention has no L x L weights to return; drop output_attentions, or unpatch")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    out = clustered(query, key, value, attention_mask, dropout, bool(causal), scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The self-attention modules of a vision tower by name; a ValueError with the reason if it is none."""
    if hasattr(model.config, "text_config"):
        towers = [name for name, m in model.named_modules() if _sees_images(m) and name]
        raise ValueError(
            f"{type(model).__name__} has a text tower; patch its vision tower instead: "
            + " or ".join(f"secvit.patch(model.{name}, ...)" for name in towers[:1] or ["vision_model"])
        )
    if not _sees_images(model):
        raise ValueError(
            f"{type(model).__name__} reads {model.main_input_name}, not images.  A causal tower cannot be clustered: "
            "the centre and every token's rank depend on later tokens; patch the vision tower"
        )
    found = [(name, m) for name, m in model.named_modules() if hasattr(m, "is_causal")]
    if not found:
        raise ValueError(
            f"{type(model).__name__} does not go through transformers' attention interface, so there is nothing to "
            "patch; for an attention of your own give modules=[names]"
        )
    return found


def _sees_images(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel) and module.main_input_name == "pixel_values" and not hasattr(
        module.config, "text_config"
    )  # fmt: skip


def num_prefix_tokens(model: PreTrainedModel) -> int:
    """[cls], distillation and register tokens in front of the patches."""
    names = ("cls_token", "class_embedding", "distillation_token")
    found = {name for m in model.modules() for name in names if torch.is_tensor(getattr(m, name, None))}
    return len(found) + int(getattr(model.config, "num_register_tokens", 0) or 0)


def use(model: PreTrainedModel) -> str:
    """Set the attention to ours; returns what it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    return before
