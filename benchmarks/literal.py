"""SECViT as one writes it from the page: Eqs. 1 to 4 and supplement A, line by line, nothing optimised.

The baseline of the speed claims, and a second opinion on the numbers: `like(model)` gives a network
with the weights of one of ours, and the logits of both are compared before anything is timed.
Feature maps are (B, C, H, W), projections 1x1 convolutions; needs torch only.
"""

import torch
import torch.nn.functional as F
from torch import nn


def positions(height, width, dim, x):
    """Sine and cosine of each token's angles: rows turn the first half of a head's channels, columns the second."""
    angle = (1 / 10000 ** torch.linspace(0, 1, dim // 4)).repeat_interleave(2)
    angle = angle.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
    rows = torch.arange(height, device=x.device)[:, None] * angle
    columns = torch.arange(width, device=x.device)[:, None] * angle
    rows = rows[:, None].expand(height, width, -1)
    columns = columns[None].expand(height, width, -1)
    both = torch.cat([rows, columns], dim=-1).reshape(height * width, dim)
    return both.sin(), both.cos()


def rotate(x, sin, cos):
    """(e, o) -> (e cos - o sin, o cos + e sin).  x (B, h, L, D)"""
    quarter = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + quarter * sin.to(x.dtype)


def cluster_attention(q, k, v, num_clusters):
    """Eqs. 1 to 4.  q k v (B, h, L, D)"""
    B, h, L, D = q.shape
    if L % num_clusters:
        raise ValueError(f"{num_clusters} clusters do not divide {L} tokens; Eq. 3 is written for those that do")
    k_c = k.mean(dim=-2, keepdim=True)  # Eq. 1
    sim = (F.normalize(k, dim=-1) * F.normalize(k_c, dim=-1)).sum(dim=-1)  # Eq. 2
    idx = torch.argsort(sim, dim=-1, descending=True)
    index = idx.unsqueeze(-1).expand(B, h, L, D)
    q, k, v = (torch.gather(x, 2, index) for x in (q, k, v))
    q, k, v = (x.reshape(B, h, num_clusters, L // num_clusters, D) for x in (q, k, v))  # Eq. 3
    weights = torch.softmax(q @ k.transpose(-1, -2) * D**-0.5, dim=-1)  # Eq. 4
    out = (weights @ v).reshape(B, h, L, D)
    back = torch.argsort(idx, dim=-1)
    return torch.gather(out, 2, back.unsqueeze(-1).expand(B, h, L, D))


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * self.gamma[:, None, None]


class Attention(nn.Module):
    def __init__(self, dim, num_heads, num_clusters):
        super().__init__()
        self.num_heads, self.num_clusters = num_heads, num_clusters
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x, sin, cos):
        B, C, H, W = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=1)
        lepe = self.lepe(v)
        q, k, v = (t.reshape(B, self.num_heads, C // self.num_heads, H * W).transpose(-1, -2) for t in (q, k, v))
        q, k = rotate(q, sin, cos), rotate(k, sin, cos)
        if self.num_clusters > 1:
            out = cluster_attention(q, k, v, self.num_clusters)
        else:
            out = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
        out = out.transpose(-1, -2).reshape(B, C, H, W)
        return self.proj(out + lepe)


class FFN(nn.Module):
    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x):
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class Block(nn.Module):
    def __init__(self, dim, num_heads, num_clusters, hidden_dim, layer_scale):
        super().__init__()
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, num_clusters)
        self.ls1 = Scale(dim) if layer_scale else nn.Identity()
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.ffn = FFN(dim, hidden_dim)
        self.ls2 = Scale(dim) if layer_scale else nn.Identity()

    def forward(self, x, sin, cos):
        x = x + self.cpe(x)
        x = x + self.ls1(self.attn(self.norm1(x), sin, cos))
        return x + self.ls2(self.ffn(self.norm2(x)))


def conv_bn(in_dim, dim, stride):
    return [nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1), nn.BatchNorm2d(dim)]


class Stage(nn.Module):
    def __init__(self, in_dim, dim, depth, num_heads, num_clusters, hidden_dim, layer_scale):
        super().__init__()
        self.head_dim = dim // num_heads
        self.downsample = nn.Identity() if in_dim == dim else nn.Sequential(*conv_bn(in_dim, dim, 2))
        self.blocks = nn.ModuleList(Block(dim, num_heads, num_clusters, hidden_dim, layer_scale) for _ in range(depth))

    def forward(self, x):
        x = self.downsample(x)
        sin, cos = positions(*x.shape[2:], self.head_dim, x)
        for block in self.blocks:
            x = block(x, sin, cos)
        return x


class Head(nn.Module):
    def __init__(self, dim, hidden_dim, num_classes):
        super().__init__()
        self.proj = nn.Conv2d(dim, hidden_dim, 1)
        self.norm = nn.BatchNorm2d(hidden_dim)
        self.fc = nn.Linear(hidden_dim, num_classes)

    def forward(self, x):
        return self.fc(F.silu(self.norm(self.proj(x))).mean(dim=(2, 3)))


class SECViT(nn.Module):
    """Figure 3 (a).  Each stage is (depth, channels, heads, clusters, FFN channels, layer scale)."""

    def __init__(self, stages, stem_stride=4, head_dim=1024, num_classes=1000):
        super().__init__()
        dim = stages[0][1]
        self.stem = nn.Sequential(
            *conv_bn(3, dim // 2, stem_stride // 2), nn.GELU(),
            *conv_bn(dim // 2, dim // 2, 1), nn.GELU(),
            *conv_bn(dim // 2, dim // 2, 1), nn.GELU(),
            *conv_bn(dim // 2, dim, 2),
        )  # fmt: skip
        self.stages = nn.Sequential()
        for depth, width, heads, clusters, hidden, layer_scale in stages:
            self.stages.append(Stage(dim, width, depth, heads, clusters, hidden, layer_scale))
            dim = width
        self.head = Head(dim, head_dim, num_classes)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)))


def like(model):
    """The literal twin of one of ours: same shapes, same weights, same mode, same dtype."""
    stages = []
    for stage in model.stages:
        first = stage.blocks[0]
        attn, hidden = first.attn, first.ffn.fc1.out_features
        scaled = any(name.startswith("ls1") for name in first.state_dict())
        if attn.clustering.cluster_size is not None:
            raise ValueError("the paper fixes the number of clusters; there is no literal twin for cluster_size")
        clusters = attn.clustering.num_clusters
        stages.append((len(stage.blocks), attn.proj.in_features, attn.num_heads, clusters, hidden, scaled))
    strides = model.stem[0].stride[0] * model.stem[-2].stride[0]
    twin = SECViT(stages, strides, model.head.proj.out_channels, model.num_classes)
    twin.load_state_dict(from_ours(model.state_dict(), [stage[2] for stage in stages]))
    return twin.to(next(model.parameters()).dtype).train(model.training)


def from_ours(state, num_heads):
    """Our state dict for this network: Linear weights become 1x1, rows of qkv go from (h, 3, D) to (3, h, D)."""
    theirs = {}
    for key, value in state.items():
        if ".qkv." in key:
            value = value.unflatten(0, (num_heads[int(key.split(".")[1])], 3, -1)).transpose(0, 1).flatten(0, 2)
        if value.dim() == 2 and not key.startswith("head.fc."):
            value = value[:, :, None, None]
        theirs[key] = value
    return theirs
