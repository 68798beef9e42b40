"""The parts of SECViT: stem, attention, feed-forward net, block, stage and head (section 3.1, supplement A).

Feature maps are (B, C, H, W) in channels-last memory, so that tokens (B, H, W, C) are a view and
every projection is a Linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerScale, SelectAdaptivePool2d, register_notrace_module
from timm.models import checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from secvit.layers import Depthwise5x5, Linear
from secvit.models.packed import PackedLinear, fold_layers
from secvit.models.rotary import RotaryTable, rotate_packed_
from secvit.ops import Clustering, Keys, Partition, Plan, Projections, sec_attention
from secvit.ops.attention import packed_attention_and_values


def conv_bn(in_dim: int, dim: int, stride: int, dd: dict[str, Any]) -> list[nn.Module]:
    """Conv3x3 with bias, then BN."""
    return [nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, **dd), nn.BatchNorm2d(dim, **dd)]


def stem(in_chans: int, dim: int, stride: int, dd: dict[str, Any]) -> nn.Sequential:
    """Supplement A: four Conv3x3 + BN, GELU between them and none after the last."""
    return nn.Sequential(
        *conv_bn(in_chans, dim // 2, 2 if stride == 4 else 1, dd), nn.GELU(),
        *conv_bn(dim // 2, dim // 2, 1, dd), nn.GELU(),
        *conv_bn(dim // 2, dim // 2, 1, dd), nn.GELU(),
        *conv_bn(dim // 2, dim, 2, dd),
    )  # fmt: skip


@register_notrace_module
class SECAttention(nn.Module):
    """Eqs. 1 to 4 on a feature map: attention within clusters of similar keys, plus LePE.  (B, H, W, C)

    Rows of `qkv` are ordered (head, q | k | v, channel): one token's q, k, v of one head lie side by
    side and move in one gather.
    """

    def __init__(self, dim: int, num_heads: int, clustering: Clustering, dd: dict[str, Any]) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")
        self.num_heads = num_heads
        self.clustering = clustering
        self.scale = (dim // num_heads) ** -0.5
        self.qkv: nn.Linear = Linear(dim, 3 * dim, **dd)
        self.lepe = Depthwise5x5(dim, **dd)
        self.proj: nn.Linear = Linear(dim, dim, **dd)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        B, H, W, C = x.shape
        out, v = self.attend(rotate_packed_(self._packed(x), table), H, W)
        lepe = self.lepe(v.reshape(B, H, W, C).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(out.reshape(B, H, W, C) + lepe)

    def _packed(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> q, k, v of each token and head side by side (B, L, h, 3, D)"""
        B, H, W, C = x.shape
        return self.qkv(x).view(B, H * W, self.num_heads, 3, C // self.num_heads)

    def attend(self, qkv: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """qkv (B, L, h, 3, D) -> (B, L, h, D), and v in the same shape"""
        num_clusters = self.clustering.clusters_for(H * W)
        sight = self.clustering.sight(num_clusters)
        if num_clusters > 1 and (self.clustering.partition != "sec" or sight != {"near": 1, "far": False}):
            q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
            plan = self.clustering.plan(Keys(k, (H, W), queries=q))
            return sec_attention(q, k, v, plan=plan, scale=self.scale, **sight).transpose(1, 2), v.transpose(1, 2)
        return packed_attention_and_values(qkv, num_clusters, self.scale)

    def keys(self, x: Tensor, table: Tensor) -> Keys:
        """What `forward` clusters of the same input.  x (B, H, W, C)"""
        qkv = self._packed(x)
        unturned = qkv[:, :, :, 1].transpose(1, 2).clone()
        queries, turned = rotate_packed_(qkv, table)[:, :, :, :2].permute(3, 0, 2, 1, 4).unbind(0)
        return Keys(turned, (x.shape[1], x.shape[2]), unturned=unturned, queries=queries)

    def plan(self, x: Tensor, table: Tensor) -> Plan:
        """Eqs. 1 to 3: the partition that `forward` makes of the same input, an order per head.  x (B, H, W, C)"""
        return self.clustering.plan(self.keys(x, table))

    def projections(self, x: Tensor, table: Tensor) -> Projections:
        """What `forward` computes attention of, of the same input.  x (B, H, W, C)"""
        q, k, v = rotate_packed_(self._packed(x), table).permute(3, 0, 2, 1, 4).unbind(0)
        return Projections(q, k, v, self.scale)

    def reparameterize(self) -> None:
        """For inference, `SECViT.fuse`."""
        self.qkv, self.proj = PackedLinear(self.qkv), PackedLinear(self.proj)


@register_notrace_module
class AddDepthwise(nn.Conv2d):
    """x + DW3x3(x).  (B, C, H, W)"""

    def __init__(self, dim: int, dd: dict[str, Any]) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim, **dd)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            return self._conv_forward(x, self.weight, self.bias)
        kind = x.device.type
        casts = kind != "meta" and torch.is_autocast_enabled(kind)
        if x.dtype in (torch.float32, torch.float64) and not casts:  # half precision would round weights near 1
            return self._conv_forward(x, self.weight + F.pad(x.new_ones(1, 1, 1, 1), [1, 1, 1, 1]), self.bias)
        return x + self._conv_forward(x, self.weight, self.bias)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """For inference, `SECViT.fuse`: the sum becomes part of the kernel's centre."""
        if not self.folded:
            self.weight[:, 0, 1, 1] += 1
            self.folded = True


class FFN(nn.Module):
    """Linear, GELU, y + DW3x3(y), Linear.  (B, H, W, C)"""

    def __init__(self, dim: int, hidden_dim: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.fc1: nn.Linear = Linear(dim, hidden_dim, **dd)
        self.act: nn.Module = nn.GELU()
        self.dwconv = AddDepthwise(hidden_dim, dd)
        self.fc2: nn.Linear = Linear(hidden_dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x)).permute(0, 3, 1, 2)
        return self.fc2(self.dwconv(x).permute(0, 2, 3, 1))

    def reparameterize(self) -> None:
        """For inference, `SECViT.fuse`."""
        self.fc1, self.fc2 = PackedLinear(self.fc1, gelu=True), PackedLinear(self.fc2)
        self.act = nn.Identity()


class Block(nn.Module):
    """Section 3.1: conditional positions (DW3x3), SEC attention, FFN, each a residual.  (B, C, H, W)"""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        clustering: Clustering,
        drop_path: float,
        init_values: float | None,
        dd: dict[str, Any],
    ) -> None:
        super().__init__()
        self.cpe = AddDepthwise(dim, dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = SECAttention(dim, num_heads, clustering, dd)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.ffn = FFN(dim, int(dim * mlp_ratio), dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        tokens = self.cpe(x).permute(0, 2, 3, 1)
        tokens = tokens + self.drop_path1(self.ls1(self.attn(self.norm1(tokens), table)))
        tokens = tokens + self.drop_path2(self.ls2(self.ffn(self.norm2(tokens))))
        return tokens.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Downsample (Conv3x3 s2 + BN, not in the first stage), then blocks on one grid.  (B, C, H, W)

    The downsample opens a stage, so that a stage's output is what dense heads see.
    """

    def __init__(self, in_dim: int, dim: int, blocks: list[nn.Module], head_dim: int, dd: dict[str, Any]) -> None:
        super().__init__()
        self.downsample = nn.Identity() if in_dim == dim else nn.Sequential(*conv_bn(in_dim, dim, 2, dd))
        self.rotary = RotaryTable(head_dim)
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(self.downsample(x))  # timm's FeatureListNet runs stages without SECViT.forward_features
        table = self.rotary(x)
        for block in self.blocks:
            if self.grad_checkpointing:
                x = checkpoint(block, x, table)
            else:
                x = block(x, table)
        return x

    def reparameterize(self) -> None:
        """For inference, `SECViT.fuse`."""
        if isinstance(self.downsample, nn.Sequential):
            fold_layers(self.downsample)


class Head(nn.Module):
    """1x1 projection, BN, SiLU, pooling, classifier.  (B, C, H, W) -> (B, num_classes)"""

    def __init__(
        self, in_features: int, hidden_size: int, num_classes: int, pool_type: str, drop_rate: float,
        dd: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features = in_features
        self.hidden_size = hidden_size
        self.proj: nn.Module = nn.Conv2d(in_features, hidden_size, 1, **dd)
        self.norm: nn.Module = nn.BatchNorm2d(hidden_size, **dd)
        self.act: nn.Module = nn.SiLU()
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        self.drop = nn.Dropout(drop_rate)
        self.fc = self._classifier(num_classes, dd)

    def _classifier(self, num_classes: int, dd: dict[str, Any]) -> nn.Module:
        self.num_features = self.hidden_size * self.global_pool.feat_mult()
        return nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()

    def reset(self, num_classes: int, pool_type: str | None = None, prune: bool = False) -> None:
        """New classifier; `prune` drops the projection too and pools what comes in."""
        reference = next(self.parameters(), None)
        dd: dict[str, Any] = {} if reference is None else {"device": reference.device, "dtype": reference.dtype}
        if prune:
            self.proj, self.norm, self.act = nn.Identity(), nn.Identity(), nn.Identity()
            self.hidden_size = self.in_features
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        self.fc = self._classifier(num_classes, dd)
        self.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(self.act(self.norm(self.proj(x))))
        x = self.drop(x)
        return x if pre_logits else self.fc(x)

    def reparameterize(self) -> None:
        """For inference, `SECViT.fuse`."""
        if isinstance(self.proj, nn.Conv2d) and isinstance(self.norm, nn.BatchNorm2d):
            self.proj, self.norm = fuse_conv_bn_eval(self.proj, self.norm), nn.Identity()


def stage_clusterings(
    num_stages: int, num_clusters: Sequence[int] | None, cluster_size: int | None, partition: Partition, near: int,
    far: bool,
) -> list[Clustering]:  # fmt: skip
    """How each stage clusters: (32, 8, 2) where neither numbers nor a size are given; stage 4 is one cluster."""
    if num_clusters is not None and cluster_size is not None:
        raise ValueError(f"num_clusters={num_clusters} and cluster_size={cluster_size}; give one of them")
    if num_clusters is None and cluster_size is None:
        num_clusters = (32, 8, 2)
    three = isinstance(num_clusters, Sequence) and len(num_clusters) == 3
    if num_clusters is not None and (not three or min(num_clusters) < 1):
        raise ValueError(f"num_clusters={num_clusters}; give three numbers >= 1, for stages 1 to 3")
    if num_clusters is None:
        clustered = [Clustering(cluster_size=cluster_size, partition=partition, near=near, far=far)] * 3
    else:
        clustered = [Clustering(count, partition=partition, near=near, far=far) for count in num_clusters]
    return [*clustered, Clustering(1, partition=partition)][:num_stages]


def channels_last(x: Tensor) -> Tensor:
    """The same map (B, C, H, W), its channels side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)
