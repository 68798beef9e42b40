"""Where masked pre-training opens a network: behind its stem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

Half = Callable[[Tensor], Tensor]
SEAM = ("forward_stem", "forward_stages", "feature_info")


def halves(model: nn.Module) -> tuple[Half, Half]:
    """Stem and stages of a network: images (B, 3, H, W) -> tokens (B, C, h, w) -> last features (B, C, H/s, W/s).

    Methods `forward_stem` and `forward_stages` of ours, which together are `forward_features`; and timm's Swin.
    ValueError for other networks.
    """
    if isinstance(model, SwinTransformer) and not hasattr(model, SEAM[0]):
        return partial(_swin_stem, model), partial(_swin_stages, model)
    if lacking := [name for name in SEAM if not hasattr(model, name)]:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(lacking)}; pre-training needs a model with "
            f"{', '.join(SEAM)}, where forward_features(x) is forward_stages(forward_stem(x)), such as SECViT, "
            "or a Swin"
        )
    return model.forward_stem, model.forward_stages  # type: ignore[return-value]


def _swin_stem(model: SwinTransformer, images: Tensor) -> Tensor:
    return model.patch_embed(images).permute(0, 3, 1, 2)


def _swin_stages(model: SwinTransformer, x: Tensor) -> Tensor:
    return model.norm(model.layers(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
