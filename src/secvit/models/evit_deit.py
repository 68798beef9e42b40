"""EViT-DeiT, the pruning baseline of Table 1: DeiT that goes on with the tokens that [cls] attends to.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
ICLR 2022.  Numbers of its DeiT-S: tokens are dropped in blocks 4, 7 and 10, between attention and MLP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from secvit.models.secvit import preset_cfg

__all__ = ["EViTDeiT"]


class EViTBlock(Block):
    """timm's block with DeiT's weights; with keep_rate < 1 it gives fewer tokens than it takes.

    (B, 1 + L, C) -> (B, 1 + ceil(keep_rate L) + 1, C): [cls], the tokens that it attends to most, in their order, and
    the rest as one, their sum weighted by that attention (mean over heads).
    """

    keep_rate = 1.0

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        kept = math.ceil(self.keep_rate * (x.shape[1] - 1))
        if kept >= x.shape[1] - 1:
            return super().forward(x)
        out, attention = _attend(self.attn, self.norm1(x))
        x = x + self.drop_path1(self.ls1(out))
        x = reorganise(x, attention, kept)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _attend(attn: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """timm's attention, and what [cls] attends to.  (B, 1 + L, C) -> (B, 1 + L, C), (B, L)"""
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    attention = (q[:, :, :1].float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return attn.proj_drop(attn.proj(out.transpose(1, 2).flatten(2))), attention[:, :, 0, 1:].mean(1)


def reorganise(x: Tensor, attention: Tensor, kept: int) -> Tensor:
    """[cls], the `kept` most attended tokens, the others fused.  (B, 1 + L, C), (B, L) -> (B, kept + 2, C)"""
    order = attention.argsort(dim=-1, descending=True, stable=True)
    best, rest = order[:, :kept].sort(-1).values, order[:, kept:]
    patches = x[:, 1:]
    share = attention.gather(1, rest).to(x.dtype)
    fused = (share.unsqueeze(-1) * _take(patches, rest)).sum(1, keepdim=True)
    return torch.cat([x[:, :1], _take(patches, best), fused], 1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class EViTDeiT(VisionTransformer):
    """Table 1: EViT-DeiT.  Images (B, in_chans, img_size, img_size) -> (B, num_classes).

    keep_rate: part of the tokens that each of the blocks `drop_in` (from 0) keeps.  It holds from the first step on;
    the authors lower theirs over the first epochs.  Attention and weights are DeiT's.
    """

    def __init__(self, *, keep_rate: float = 0.9, drop_in: Sequence[int] = (3, 6, 9), **kwargs: Any) -> None:
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate={keep_rate}; choose a part of the tokens above 0 and up to 1, like 0.9")
        super().__init__(block_fn=EViTBlock, **kwargs)
        for i, block in enumerate(self.blocks):
            if i in drop_in:
                block.keep_rate = keep_rate  # type: ignore[assignment]  # an EViTBlock


default_cfgs = generate_default_cfgs(
    {
        "evit_deit_small": preset_cfg(
            first_conv="patch_embed.proj", classifier="head", pool_size=None, fixed_input_size=True
        )
    }
)


@register_model
def evit_deit_small(pretrained: bool = False, **kwargs: Any) -> EViTDeiT:
    """EViT-DeiT-S of Table 1, keep rate 0.9: 22.05 M parameters."""
    if kwargs.get("features_only"):
        raise RuntimeError("EViT drops tokens and has no map of all of them ('not suit' in Table 1)")
    arguments = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, **kwargs}
    return build_model_with_cfg(
        EViTDeiT, "evit_deit_small", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **arguments
    )
