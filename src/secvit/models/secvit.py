"""SECViT: a four-stage backbone on Semantic Equitable Clustering.

Fan, Huang, Chen, He: "Semantic Equitable Clustering: A Simple and Effective Strategy for Clustering
Vision Tokens", ICCV 2025, section 3.1 and supplement table 1; what the paper leaves open follows the
authors' released classification code (docs/differences.md).

Feature maps are (B, C, H, W) in channels-last memory, so that tokens (B, H, W, C) are a view and
every projection is a Linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerScale, calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from secvit.models.blocks import Block, Head, Stage, channels_last, stage_clusterings, stem
from secvit.models.convert import checkpoint_filter_fn
from secvit.models.packed import fold_layers
from secvit.ops import Partition

__all__ = ["SECViT"]


def clusters_at_224(tokens: int) -> tuple[int, int, int]:
    """Table 10: M of stages 1 to 3 that give clusters of so many tokens, or fewer, at 224 px; 32, 8, 2 for 98."""
    first, second, third = (-(-length // tokens) for length in (3136, 784, 196))
    return first, second, third


class SECViT(nn.Module):
    """Section 3.1, figure 3 (a), supplement table 1.  Images (B, in_chans, H, W) of any size -> (B, num_classes).

    num_clusters: M of stages 1 to 3 at every resolution (the paper's rule, 32, 8, 2), or
    cluster_size: the most tokens a cluster may hold (98 is the same at 224 px; cost linear in H W).
    Table 10 varies the tokens per cluster.
    Stage 4 is full attention.  partition: as in `secvit.cluster`; near, far: as in `secvit.sec_attention`.
    layer_scale: for each stage, whether its residuals are scaled (initially by init_values).
    stem_stride: 4, or 2 for small images.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 9, 2),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 3.0,
        num_clusters: Sequence[int] | None = None,
        cluster_size: int | None = None,
        partition: Partition = "sec",
        near: int = 1,
        far: bool = False,
        layer_scale: Sequence[bool] = (False, False, False, False),
        init_values: float = 1e-6,
        stem_stride: int = 4,
        head_hidden_size: int = 1024,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        clusterings = stage_clusterings(len(depths), num_clusters, cluster_size, partition, near, far)
        if not 1 <= len(depths) == len(embed_dims) == len(num_heads) <= len(layer_scale) <= 4:
            raise ValueError(
                f"depths={depths}, embed_dims={embed_dims}, num_heads={num_heads}, layer_scale={layer_scale}; give "
                "each a value for each of the stages, of which there are at most four"
            )
        if stem_stride not in (2, 4):
            raise ValueError(f"stem_stride={stem_stride}; choose 4, or 2 for small images")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = embed_dims[-1]
        self.feature_info = []

        self.stem = stem(in_chans, embed_dims[0], stem_stride, dd)
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (depth, dim, heads) in enumerate(zip(depths, embed_dims, num_heads)):
            scale = init_values if layer_scale[i] else None
            blocks: list[nn.Module] = [
                Block(dim, heads, mlp_ratio, clusterings[i], drop_path[i][j], scale, dd) for j in range(depth)
            ]
            in_dim = embed_dims[i - 1] if i else dim
            stages.append(Stage(in_dim, dim, blocks, dim // heads, dd))
            self.feature_info.append({"num_chs": dim, "reduction": stem_stride * 2**i, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.head = Head(self.num_features, head_hidden_size, num_classes, global_pool, drop_rate, dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of std 0.02 for every conv and linear weight, zero biases, norms at 1 and 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, LayerScale)):
                module.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^head\.(?:proj|norm)", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def fuse(self) -> SECViT:
        """The same function for inference only, faster: changed in place, in eval mode, and returned.

        Batch norms are folded into convolutions, x + DW(x) into kernels, and on CPUs the weights of linear layers are
        laid out beforehand.  Load weights before, not after; timm.utils.reparameterize_model does the same for
        a backbone inside another model.
        """
        self.eval()
        fold_layers(self.stem)
        modules: list[Any] = list(self.modules())
        for module in modules:
            if module is not self and hasattr(module, "reparameterize"):
                module.reparameterize()
        return self

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of chosen stages, each before the next downsample.  -> list, or (features, list)

        indices: the last n stages if an int, all if None, else those named.  There is no norm between
        stages and head, so `norm` changes nothing.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt}; SECViT gives NCHW")
        take, last = feature_take_indices(len(self.stages), indices)
        stages = self.stages[: last + 1] if stop_early else self.stages
        intermediates = []
        x = self.forward_stem(x)
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(self, indices=1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop the stages after the last chosen one, and with them (or with prune_head) the head."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if shortened:
            self.num_features = self.head.in_features = self.feature_info[last]["num_chs"]
        if prune_head or prune_norm or shortened:
            self.num_classes = 0
            self.head.reset(0, "", prune=True)
            self.head_hidden_size = self.head.num_features
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Output of the last stage.  (B, in_chans, H, W) -> (B, num_features, H/32, W/32), sizes rounded up"""
        return self.forward_stages(self.forward_stem(x))

    def forward_stem(self, x: Tensor) -> Tensor:
        """Images to the first stage's input, where masked pre-training puts its mask tokens.

        (B, in_chans, H, W) -> (B, channels of feature_info[0], H/4, W/4), or H/2, W/2 with stem_stride=2
        """
        return self.stem(channels_last(x))

    def forward_stages(self, x: Tensor) -> Tensor:
        """The rest of `forward_features`: output of `forward_stem` -> output of the last stage"""
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def preset_cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.9,
        "interpolation": "bicubic", "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0", "classifier": "head.fc", "license": "apache-2.0",
        "paper_ids": "arXiv:2405.13337", **kwargs,
    }  # fmt: skip


def _shipped(tag: str, size: int, crop_pct: float, classes: tuple[str, ...]) -> dict[str, Any]:
    """Weights of secvit_nano that come with the package; each folder's README.md says how they were made."""
    folder = Path(__file__).parents[1] / "pretrained" / f"secvit_nano.{tag}"
    return preset_cfg(
        file=str(folder / "model.safetensors"), num_classes=len(classes), label_names=classes,
        input_size=(3, size, size), pool_size=(2, 2) if size == 32 else (3, 3), crop_pct=crop_pct,
    )  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        "secvit_nano.cifar10": _shipped(
            "cifar10",
            32,
            1.0,
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        ),
        "secvit_nano.clothing10": _shipped(
            "clothing10",
            96,
            0.9,
            ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"),
        ),
        "secvit_tiny": preset_cfg(),
        "secvit_small": preset_cfg(),
        "secvit_base": preset_cfg(),
        "secvit_large": preset_cfg(),
        "secvit_xlarge": preset_cfg(),
        "secvit_small_release": preset_cfg(),
        "secvit_base_release": preset_cfg(),
        "secvit_large_release": preset_cfg(),
    }
)


def _create(variant: str, pretrained: bool, arguments: dict[str, Any], **kwargs: Any) -> SECViT:
    arguments = {**arguments, **kwargs}
    if kwargs.get("cluster_size") is not None:  # the preset's counts give way to a size
        arguments["num_clusters"] = kwargs.get("num_clusters")
    return build_model_with_cfg(
        SECViT, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **arguments,
    )  # fmt: skip


LATE_LAYER_SCALE = (False, False, True, True)


@register_model
def secvit_nano(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """Ours, not the paper's: for small images and CPUs, 2.0 M parameters.  Stride-2 stem; at 32 px clusters of 32.

    The tag clothing10 has a stride-4 stem, for larger images.
    """
    arguments = dict(
        depths=(2, 2, 4, 1), embed_dims=(32, 64, 128, 256), num_heads=(1, 2, 4, 8), num_clusters=(8, 2, 1),
        stem_stride=4 if kwargs.get("pretrained_cfg") == "clothing10" else 2, head_hidden_size=512,
    )  # fmt: skip
    return _create("secvit_nano", pretrained, arguments, **kwargs)


@register_model
def secvit_tiny(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """SECViT-T of supplement table 1: 15.0 M parameters, 2.72 GMAC at 224 px."""
    arguments = dict(depths=(2, 2, 9, 2), embed_dims=(64, 128, 256, 512), num_heads=(2, 4, 8, 16))
    return _create("secvit_tiny", pretrained, arguments, **kwargs)


@register_model
def secvit_small(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """SECViT-S of supplement table 1: 26.8 M parameters, 4.94 GMAC at 224 px."""
    arguments = dict(depths=(4, 4, 18, 4), embed_dims=(64, 128, 256, 512), num_heads=(2, 4, 8, 16))
    return _create("secvit_small", pretrained, arguments, **kwargs)


@register_model
def secvit_base(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """SECViT-B of supplement table 1: 57.3 M parameters, 10.54 GMAC at 224 px."""
    arguments = dict(
        depths=(4, 8, 26, 9), embed_dims=(80, 160, 320, 512), num_heads=(2, 4, 8, 16), layer_scale=LATE_LAYER_SCALE
    )
    return _create("secvit_base", pretrained, arguments, **kwargs)


@register_model
def secvit_large(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """SECViT-L of supplement table 1: 100.6 M parameters, 19.59 GMAC at 224 px."""
    arguments = dict(
        depths=(4, 8, 26, 9), embed_dims=(112, 224, 448, 640), num_heads=(4, 8, 14, 20), layer_scale=LATE_LAYER_SCALE
    )
    return _create("secvit_large", pretrained, arguments, **kwargs)


@register_model
def secvit_xlarge(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """SECViT-XL of supplement table 1, which prints 205 M: counted, 218.9 M parameters, 33.88 GMAC at 224 px."""
    arguments = dict(
        depths=(6, 12, 28, 12), embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32),
        layer_scale=LATE_LAYER_SCALE,
    )  # fmt: skip
    return _create("secvit_xlarge", pretrained, arguments, **kwargs)


@register_model
def secvit_small_release(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """S as in the authors' released code: three blocks in stage 1.  26.8 M parameters, 4.76 GMAC at 224 px."""
    arguments = dict(depths=(3, 4, 18, 4), embed_dims=(64, 128, 256, 512), num_heads=(2, 4, 8, 16))
    return _create("secvit_small_release", pretrained, arguments, **kwargs)


@register_model
def secvit_base_release(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """B as in the authors' released code ("M"): eight blocks in stage 4.  54.7 M parameters, 10.41 GMAC at 224 px."""
    arguments = dict(
        depths=(4, 8, 26, 8), embed_dims=(80, 160, 320, 512), num_heads=(5, 5, 10, 16), layer_scale=LATE_LAYER_SCALE
    )
    return _create("secvit_base_release", pretrained, arguments, **kwargs)


@register_model
def secvit_large_release(pretrained: bool = False, **kwargs: Any) -> SECViT:
    """L as in the authors' released code: eight blocks in stage 4.  96.5 M parameters, 19.38 GMAC at 224 px."""
    arguments = dict(
        depths=(4, 8, 26, 8), embed_dims=(112, 224, 448, 640), num_heads=(7, 7, 14, 20), layer_scale=LATE_LAYER_SCALE
    )
    return _create("secvit_large_release", pretrained, arguments, **kwargs)
