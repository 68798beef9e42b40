"""SEC-DeiT: DeiT with SEC among its patch tokens (Table 1), through timm's `attn_layer=`.

[cls] stays outside the partition: it is a key and value of every cluster, and its query attends to all
tokens (197 tokens are prime, so it cannot be inside).  LePE runs over the patch grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.layers import LayerType, PatchEmbed, register_notrace_module, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from secvit.adapt import ClusteredAttention, Clustering
from secvit.models.secvit import _cfg
from secvit.ops import Partition

__all__ = ["SECDeiT"]


class Grid:
    """Height and width of the patch grid in the forward pass that is running."""

    size: tuple[int, int] = (0, 0)


@register_notrace_module  # in a traced model, too, the grid is that of the pass that is running
class GridPatchEmbed(PatchEmbed):
    """timm's, which keeps its grid where attention finds it.  (B, in_chans, H, W) -> (B, H / 16, W / 16, C)"""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.grid = Grid()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.grid.size = (x.shape[1], x.shape[2])
        return x


@register_notrace_module
class SECDeiTAttention(nn.Module):
    """Eqs. 1 to 4 among patch tokens, plus LePE.  (B, P + L, C), children named as timm's `Attention`."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: LayerType | None = None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.q_norm = norm_layer(dim // num_heads, **dd) if qk_norm else nn.Identity()  # type: ignore[operator, misc]
        self.k_norm = norm_layer(dim // num_heads, **dd) if qk_norm else nn.Identity()  # type: ignore[operator, misc]
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, **dd)
        self.norm = norm_layer(dim, **dd) if scale_norm else nn.Identity()  # type: ignore[operator, misc]
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def cluster_by(self, clustering: Clustering, grid: Grid) -> None:
        """What `attn_layer=` has no room for."""
        self.clustering, self.grid = clustering, grid

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        prefix, (height, width) = self.clustering.num_prefix_tokens, self.grid.size
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        attend = ClusteredAttention(replace(self.clustering, grid=(height, width)))
        out = attend(q, k, v, attn_mask, self.attn_drop if self.training else 0.0, is_causal)
        patches = v[:, :, prefix:].transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))
        lepe = self.lepe(patches).flatten(2).transpose(1, 2)
        out = out.transpose(1, 2).flatten(2) + nn.functional.pad(lepe, (0, 0, prefix, 0))
        return self.proj_drop(self.proj(self.norm(out)))


class SECDeiT(VisionTransformer):
    """Table 1: DeiT with SEC attention.  Images (B, in_chans, H, W) of any size -> (B, num_classes).

    num_clusters: M over the patch tokens at every resolution (4 in the paper), or cluster_size: the most
    a cluster may hold.  partition: as in `secvit.cluster`.
    img_size: where the position table is at home; other sizes resample it, padded to whole patches.
    With gradient checkpointing, a forward pass of one size goes backward before another size comes.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_clusters: int | None = None,
        cluster_size: int | None = None,
        partition: Partition = "sec",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        if num_clusters is None and cluster_size is None:
            num_clusters = 4
        clustering = Clustering(num_clusters, cluster_size, num_prefix_tokens=1, partition=partition)
        super().__init__(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, num_classes=num_classes,
            global_pool=global_pool, embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio,
            drop_rate=drop_rate, pos_drop_rate=pos_drop_rate, proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate, dynamic_img_size=True,
            dynamic_img_pad=True, embed_layer=GridPatchEmbed, attn_layer=SECDeiTAttention, device=device, dtype=dtype,
        )  # fmt: skip
        for block in self.blocks:
            block.attn.cluster_by(clustering, self.patch_embed.grid)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """timm's DeiT, and LePE as in SECViT."""
        super().init_weights(mode, needs_reset)
        for module in self.modules():
            if isinstance(module, SECDeiTAttention):
                trunc_normal_(module.lepe.weight, std=0.02)
                nn.init.zeros_(module.lepe.bias)


default_cfgs = generate_default_cfgs(
    {
        name: _cfg(first_conv="patch_embed.proj", classifier="head", pool_size=None)
        for name in ("sec_deit_small", "sec_deit_base")
    }
)


def _create(variant: str, pretrained: bool, arguments: dict[str, Any], **kwargs: Any) -> SECDeiT:
    return build_model_with_cfg(
        SECDeiT, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**arguments, **kwargs},
    )  # fmt: skip


@register_model
def sec_deit_small(pretrained: bool = False, **kwargs: Any) -> SECDeiT:
    """SEC-DeiT-S of Table 1: 22.17 M parameters, 4.37 GMAC at 224 px (4.1 in 2**30, as the paper prints)."""
    return _create("sec_deit_small", pretrained, dict(embed_dim=384, depth=12, num_heads=6), **kwargs)


@register_model
def sec_deit_base(pretrained: bool = False, **kwargs: Any) -> SECDeiT:
    """SEC-DeiT-B of Table 1: 86.81 M parameters, 17.10 GMAC at 224 px (the paper's 14.8 is out of reach)."""
    return _create("sec_deit_base", pretrained, dict(embed_dim=768, depth=12, num_heads=12), **kwargs)
