"""transformers' vision towers, through its public attention interface: `model.set_attn_implementation("secvit")`.

The interface is one function for all models; each attention module carries its own settings.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
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
    """What the interface calls: q k v (B, h, L, D) -> (B, L, h, D).  Layers left out by `layers=` use SDPA."""
    if not hasattr(module, "secvit"):
        raise ValueError(
            f"this {type(module).__name__} is told to use {NAME!r} and has no clusters: secvit.patch(model, ...) sets "
            "both; set_attn_implementation alone cannot"
        )
    clustered = module.secvit
    if clustered is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if biases := [name for name in ("position_bias", "softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} adds {biases[0]} to its scores, which clusters cannot keep; unpatch")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    out = clustered(query, key, value, attention_mask, dropout, bool(causal), scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def refuse_weights(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> None:
    """Before the model's forward: there are none to return, and transformers would return None in silence."""
    asked = kwargs.get("output_attentions", getattr(model.config, "output_attentions", False))
    if asked and model.config._attn_implementation == NAME:
        raise ValueError("clustered attention has no L x L weights to return; drop output_attentions, or unpatch")


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
    name = type(model).__name__
    if not _sees_images(model) and "image" in getattr(model, "input_modalities", ()):
        raise ValueError(f"{name} packs images into one sequence without pixel_values of its own; give modules=[names]")
    if not _sees_images(model):
        raise ValueError(
            f"{name} reads {model.main_input_name}, not images.  A causal tower cannot be clustered: "
            "the centre and every token's rank depend on later tokens; patch the vision tower"
        )
    settings = [item for _, config in _configs(model) for item in vars(config).items()]
    windows = [key for key, value in settings if "window_size" in key and value]
    biases = [key for key, _ in [*model.named_modules(), *model.named_parameters()] if "relative_position" in key]
    if windows or biases:
        raise ValueError(
            f"{name} has windows or position biases ({(windows + biases)[0]}), which clusters cannot keep; patch a "
            "tower with plain attention over all tokens (ViT, CLIP, SigLIP, DINOv2, DINOv3, ...)"
        )
    found = [(name, m) for name, m in model.named_modules() if hasattr(m, "is_causal")]
    if not found:
        raise ValueError(
            f"{name} does not go through transformers' attention interface, so there is nothing to "
            "patch; for an attention of your own give modules=[names]"
        )
    return found


def _configs(model: nn.Module) -> list[tuple[nn.Module, PreTrainedConfig]]:
    return [(m, m.config) for m in model.modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)]


def _sees_images(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel) and module.main_input_name == "pixel_values" and not hasattr(
        module.config, "text_config"
    )  # fmt: skip


def num_prefix_tokens(model: PreTrainedModel) -> int:
    """[cls], distillation and register tokens in front of the patches."""
    names = ("cls_token", "class_embedding", "distillation_token")
    found = {name for m in model.modules() for name in names if torch.is_tensor(getattr(m, name, None))}
    return len(found) + int(getattr(model.config, "num_register_tokens", 0) or 0)


def use(model: PreTrainedModel) -> list[tuple[nn.Module, Any]]:
    """Set the attention to ours, in configs of the model's own: others may share those it had, which are returned."""
    before = _configs(model)
    copies: dict[int, Any] = {}
    for module, config in before:
        module.config = copy.deepcopy(config, copies)
    model.set_attn_implementation(NAME)
    return before
