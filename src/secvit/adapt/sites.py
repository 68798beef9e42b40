"""Which modules of a model `secvit.patch` puts clusters in, and how many tokens in front are no patches."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models import eva, vision_transformer
from torch import nn

Site = tuple[str, nn.Module]  # an attention module by its name

# attention over all tokens by one call of scaled_dot_product_attention (two in DiffAttention)
TIMM_ATTENTION: tuple[type[nn.Module], ...] = (
    Attention,
    AttentionRope,
    DiffAttention,
    eva.EvaAttention,
    vision_transformer.ParallelScalingBlock,
    vision_transformer.DiffParallelScalingBlock,
)


def named_modules(model: nn.Module, names: Sequence[str]) -> list[Site]:
    present = dict(model.named_modules())
    if missing := [name for name in names if name not in present]:
        raise ValueError(f"modules={missing}: the model has none of that name; see model.named_modules()")
    if not names:
        raise ValueError("modules=[]; name the attention modules to cluster")
    return [(name, present[name]) for name in names]


def timm_attention(model: nn.Module) -> list[Site]:
    sites = [(name, m) for name, m in model.named_modules() if isinstance(m, TIMM_ATTENTION)]
    if not sites:
        raise ValueError(
            f"no attention that can be clustered in {type(model).__name__}: it needs plain self-attention over all "
            "tokens, without windows or position biases, as in timm's vit, deit, deit3, eva, clip, siglip and dinov3 "
            "models and in transformers' vision towers.  For a module of your own give modules=[names]"
        )
    if off := [name for name, m in sites if not getattr(m, "fused_attn", True)]:
        raise ValueError(
            f"{off[0]} and {len(off) - 1} more do not call scaled_dot_product_attention (fused_attn is off); create "
            "the model with fused attention on (timm.layers.set_fused_attn)"
        )
    return sites


def timm_prefix(model: nn.Module) -> int:
    counting = [(m, count) for m in model.modules() if isinstance(count := getattr(m, "num_prefix_tokens", None), int)]
    counts = {count for _, count in counting}
    if len(counts) > 1:
        counts = {count for m, count in counting if hasattr(m, "blocks")}
    if len(counts) > 1:
        raise ValueError(f"parts of the model count {sorted(counts)} prefix tokens; give num_prefix_tokens=")
    if not counts and any("cls_token" in name for name, _ in model.named_parameters()):
        raise ValueError(f"{type(model).__name__} has a [cls] token and does not say where; give num_prefix_tokens=")
    return counts.pop() if counts else 0


def chosen_layers(sites: Sequence[Site], layers: Sequence[int] | None) -> list[Site]:
    if layers is None:
        return list(sites)
    if not layers or any(not -len(sites) <= i < len(sites) for i in layers):
        raise ValueError(f"layers={layers}; choose from 0 to {len(sites) - 1}, or negative ones from the end")
    wanted = {i % len(sites) for i in layers}
    return [site for i, site in enumerate(sites) if i in wanted]
