"""SEC-DeiT: DeiT with SEC among its patch tokens (Table 1), through timm's `attn_layer=`.

[cls] stays outside the partition: it is a key and value of every cluster, and its query attends to all
tokens (197 tokens are prime, so it cannot be inside).  LePE runs over the patch grid.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from timm.layers import LayerType, register_notrace_module, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from secvit.adapt.attend import attend, scored
from secvit.layers import Depthwise5x5, route_linears
from secvit.models.secvit import preset_cfg
from secvit.ops import Clustering, Keys, Partition, Plan, Projections

__all__ = ["SECDeiT"]


@register_notrace_module
class SECDeiTAttention(nn.Module):
    """Eqs. 1 to 4 among patch tokens, plus LePE.  (B, P + L, C), children named as timm's `Attention`.

    clustering: what `attn_layer=` has no room for; the network sets it.
    """

    clustering: Clustering

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
        self.lepe = Depthwise5x5(dim, **dd)
        self.norm = norm_layer(dim, **dd) if scale_norm else nn.Identity()  # type: ignore[operator, misc]
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: Tensor, grid: tuple[int, int], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """grid: (H, W) of the L patch tokens."""
        prefix = self.clustering.num_prefix_tokens
        q, k, v = self._heads(x)
        if is_causal:
            raise ValueError("SEC cannot be causal: the centre and every token's rank depend on later tokens")
        dropout = self.attn_drop if self.training else 0.0
        out = attend(self.clustering, q, k, v, attn_mask, dropout, grid=grid)
        patches = v[:, :, prefix:].transpose(2, 3).flatten(1, 2).unflatten(2, grid)
        lepe = self.lepe(patches).flatten(2).transpose(1, 2)
        out = out.transpose(1, 2).flatten(2) + nn.functional.pad(lepe, (0, 0, prefix, 0))
        return self.proj_drop(self.proj(self.norm(out)))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, h, P + L, D)"""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def keys(self, x: Tensor, grid: tuple[int, int], *args: Any, **kwargs: Any) -> Keys:
        """What `forward` clusters of the same input."""
        return scored(self.clustering, *self._heads(x), grid)

    def plan(self, *inputs: Any, **kwargs: Any) -> Plan:
        """Eqs. 1 to 3: the partition that `forward` makes of the same inputs."""
        return self.clustering.plan(self.keys(*inputs, **kwargs))

    def projections(self, x: Tensor, *args: Any, **kwargs: Any) -> Projections:
        """What `forward` computes attention of, of the same input."""
        q, k, v = self._heads(x)
        return Projections(q, k, v, q.shape[-1] ** -0.5)


class SECDeiTBlock(Block):
    """timm's, which passes on the grid of the patch tokens.  (B, P + L, C)"""

    def forward(  # type: ignore[override]
        self, x: Tensor, grid: tuple[int, int], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), grid, attn_mask, is_causal)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class SECDeiT(VisionTransformer):
    """Table 1: DeiT with SEC attention.  Images (B, in_chans, H, W) of any size -> (B, num_classes).

    num_clusters: M over the patch tokens at every resolution (4 in the paper), or cluster_size: the most
    a cluster may hold.  partition: as in `secvit.cluster`; near, far: as in `secvit.sec_attention`.
    img_size: where the position table is at home; other sizes resample it, padded to whole patches.
    """

    borrows_weights = True  # it can start from DeiT's

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
        near: int = 1,
        far: bool = False,
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
        clustering = Clustering(
            num_clusters, cluster_size, num_prefix_tokens=1, partition=partition, near=near, far=far
        )
        super().__init__(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, num_classes=num_classes,
            global_pool=global_pool,  # type: ignore[arg-type]
            embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio,
            drop_rate=drop_rate, pos_drop_rate=pos_drop_rate, proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate, dynamic_img_size=True,
            dynamic_img_pad=True, block_fn=SECDeiTBlock, attn_layer=SECDeiTAttention, device=device, dtype=dtype,
        )  # fmt: skip
        block: Any
        for block in self.blocks:
            block.attn.clustering = clustering
        route_linears(self)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """timm's DeiT, and LePE as in SECViT."""
        super().init_weights(mode, needs_reset)
        for module in self.modules():
            lepe: Any = getattr(module, "lepe", None)
            if lepe is not None:
                trunc_normal_(lepe.weight, std=0.02)
                nn.init.zeros_(lepe.bias)

    def _run(
        self, x: Tensor, take: Collection[int], depth: int, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, list[Tensor], tuple[int, int]]:
        """Tokens after the first `depth` blocks, those after blocks `take`, and the grid (H, W) of the patches."""
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))
        taken = []
        for i, block in enumerate(self.blocks[:depth]):
            if self.grad_checkpointing and attn_mask is None:
                x = checkpoint(block, x, grid)
            else:
                x = block(x, grid, attn_mask, is_causal)
            if i in take:
                taken.append(x)
        return x, taken, grid

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Normalised tokens after the last block.  (B, in_chans, H, W) -> (B, 1 + L, C)"""
        return self.norm(self._run(x, (), len(self.blocks), attn_mask, is_causal)[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """As timm's ViT: tokens after chosen blocks, (B, C, H, W) or (B, L, C), and those after the last one."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt}; choose NCHW or NLC")
        take, last = feature_take_indices(len(self.blocks), indices)
        depth = last + 1 if stop_early else len(self.blocks)
        x, taken, grid = self._run(x, take, depth, attn_mask, is_causal)
        taken = [self.norm(y) for y in taken] if norm else taken
        prefix = [y[:, : self.num_prefix_tokens] for y in taken]
        maps = [y[:, self.num_prefix_tokens :] for y in taken]
        if output_fmt == "NCHW":
            maps = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in maps]
        if output_dict:
            outputs: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens:
                outputs["image_intermediates_prefix"] = prefix
            return outputs if intermediates_only else {**outputs, "image_features": self.norm(x)}
        features = list(zip(maps, prefix)) if return_prefix_tokens else maps
        return features if intermediates_only else (self.norm(x), features)


default_cfgs = generate_default_cfgs(
    {
        name: preset_cfg(first_conv="patch_embed.proj", classifier="head", pool_size=None)
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
