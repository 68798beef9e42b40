"""SEC-Swin: Swin Transformer with SEC in place of shifted windows (Table 1; Table 2 pre-trains B by SimMIM).

Embedding, merging, norms, heads and names are timm's Swin; the block is written out, with SECViT's
attention: 32, 8, 2 and 1 clusters, LePE and rotary positions, no shift, no bias table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath, Mlp, PatchEmbed, calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as timm_filter
from torch import Tensor, nn

from secvit.layers import route_linears
from secvit.models.blocks import SECAttention, stage_clusterings
from secvit.models.convert import to_packed_rows
from secvit.models.rotary import RotaryTable
from secvit.models.secvit import preset_cfg
from secvit.ops import Clustering, Partition

__all__ = ["SECSwin"]


class SECSwinBlock(nn.Module):
    """Swin's block around SECViT's attention.  (B, H, W, C)"""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        clustering: Clustering,
        drop_path: float,
        dd: dict[str, Any],
    ) -> None:
        super().__init__()
        self.rotary = RotaryTable(dim // num_heads)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = SECAttention(dim, num_heads, clustering, dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        table = self.rotary(x.permute(0, 3, 1, 2))
        x = x + self.drop_path1(self.attn(self.norm1(x), table))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class SECSwin(SwinTransformer):
    """Table 1: Swin with SEC attention.  Images (B, in_chans, H, W) of any size -> (B, num_classes).

    num_clusters: M of stages 1 to 3 at every resolution, or cluster_size: the most tokens a cluster may
    hold; stage 4 is full attention.  partition: as in `secvit.cluster`; near, far: as in `secvit.sec_attention`.
    img_size is what timm's tools read; any other size works as well, and is padded to multiples of 4.
    """

    borrows_weights = True  # it can start from Swin's

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        num_clusters: Sequence[int] | None = None,
        cluster_size: int | None = None,
        partition: Partition = "sec",
        near: int = 1,
        far: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        clusterings = stage_clusterings(len(depths), num_clusters, cluster_size, partition, near, far)
        super().__init__(
            img_size=img_size, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool,
            embed_dim=embed_dim, depths=(0,) * len(depths), num_heads=tuple(num_heads), mlp_ratio=mlp_ratio,
            drop_rate=drop_rate, strict_img_size=False, weight_init="skip",
            embed_layer=partial(PatchEmbed, dynamic_img_pad=True),  # type: ignore[arg-type]
            **dd,
        )  # fmt: skip
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stage: Any
        for i, stage in enumerate(self.layers):
            stage.depth = depths[i]
            stage.blocks = nn.Sequential(
                *[
                    SECSwinBlock(embed_dim * 2**i, num_heads[i], mlp_ratio, clusterings[i], rates[i][j], dd)
                    for j in range(depths[i])
                ]
            )
        self.weight_init_mode = ""
        self.init_weights(needs_reset=False)
        route_linears(self)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """timm's Swin, and LePE as in SECViT."""
        super().init_weights(mode, needs_reset)
        for module in self.modules():
            lepe: Any = getattr(module, "lepe", None)
            if lepe is not None:
                trunc_normal_(lepe.weight, std=0.02)
                nn.init.zeros_(lepe.bias)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None) -> None:  # type: ignore[override]
        """What timm's tools read as the size; the network itself takes any."""
        embed: Any = self.patch_embed
        embed.set_input_size(img_size=img_size)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Images to the first stage's input, where masked pre-training puts its mask tokens.

        (B, in_chans, H, W) -> (B, embed_dim, H/4, W/4)
        """
        return self.patch_embed(x).permute(0, 3, 1, 2)

    def forward_stages(self, x: Tensor) -> Tensor:
        """The rest: output of `forward_stem` -> normalised output of the last stage, (B, C, H/32, W/32)."""
        return self.norm(self.layers(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's hook on loading: rows of Swin's qkv take our order and its bias tables go; ours pass unchanged."""
    if not any(key.endswith("relative_position_bias_table") for key in state):
        return dict(state)
    kept = {key: value for key, value in state.items() if "relative_position_bias_table" not in key}
    ours = timm_filter(kept, model)
    for key in ours:
        if place := re.match(r"layers\.(\d+)\..*\.qkv\.", key):
            stages: Any = model.layers
            ours[key] = to_packed_rows(ours[key], stages[int(place[1])].blocks[0].attn.num_heads)
    return ours


default_cfgs = generate_default_cfgs(
    {
        name: preset_cfg(first_conv="patch_embed.proj", classifier="head.fc")
        for name in ("sec_swin_tiny", "sec_swin_small", "sec_swin_base")
    }
)


def _create(variant: str, pretrained: bool, arguments: dict[str, Any], **kwargs: Any) -> SECSwin:
    return build_model_with_cfg(
        SECSwin, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **{**arguments, **kwargs},
    )  # fmt: skip


@register_model
def sec_swin_tiny(pretrained: bool = False, **kwargs: Any) -> SECSwin:
    """SEC-Swin-T of Table 1: 28.4 M parameters, 4.68 GMAC at 224 px (the paper prints 4.8)."""
    arguments = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    return _create("sec_swin_tiny", pretrained, arguments, **kwargs)


@register_model
def sec_swin_small(pretrained: bool = False, **kwargs: Any) -> SECSwin:
    """SEC-Swin-S of Table 1: 49.8 M parameters, 9.05 GMAC at 224 px (the paper prints 9.2)."""
    arguments = dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
    return _create("sec_swin_small", pretrained, arguments, **kwargs)


@register_model
def sec_swin_base(pretrained: bool = False, **kwargs: Any) -> SECSwin:
    """SEC-Swin-B of Tables 1, 2: 88.0 M parameters, 15.84 GMAC at 224 px (the paper prints 16.2)."""
    arguments = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
    return _create("sec_swin_base", pretrained, arguments, **kwargs)
