"""The feature maps of any backbone of timm, as heads of dense prediction take them."""

from __future__ import annotations

import os
from typing import Any

import timm
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from secvit.fields import abridged
from secvit.models import plain_pyramid
from secvit.models.saved import check_name, fetching
from secvit.weights import misfit, read_weights

BODY = "backbone.body."


class FeatureMaps(nn.Module):
    """Maps of a backbone's last `levels` stages, the finest first.  (B, 3, H, W) -> [(B, C_l, H_l, W_l)]

    backbone: a timm name that offers features_only; each stage halves the map of the one before, down to 1/32.  Of a
        plain ViT with patches of 16 px, `PlainPyramid` makes such maps of the last one.
    arguments: of timm.create_model, {"pretrained": True, "cluster_size": 98}.
    `channels` and `strides` say what the maps are.  A ValueError names a backbone that has no such maps.
    """

    def __init__(self, backbone: str, arguments: dict[str, Any] | None = None, levels: int = 4) -> None:
        super().__init__()
        check_name(backbone)
        self.name, self.arguments = backbone, dict(arguments or {})
        try:
            with fetching(backbone, arguments or {}):
                self.body = timm.create_model(backbone, features_only=True, **(arguments or {}))
        except TypeError as error:
            reason = f"{error}; give --model.backbone_args that it takes, {{}} for none"
            raise ValueError(f"{backbone} with {dict(arguments or {})}: {reason}") from None
        except (RuntimeError, AttributeError, OSError, AssertionError) as error:
            raise ValueError(f"{backbone} gives no feature maps: {str(error).splitlines()[0]}") from None
        info: Any = self.body.feature_info
        strides, channels = info.reduction(), info.channels()
        self.scales: plain_pyramid.PlainPyramid | None = None
        if set(strides) == {plain_pyramid.STRIDE}:
            self.scales = plain_pyramid.PlainPyramid(channels[-1], levels)
            strides, channels = self.scales.strides, self.scales.channels
        self.strides, self.channels = strides[-levels:], channels[-levels:]
        if self.strides != [32 // 2**i for i in reversed(range(levels))]:
            ours = backbone.startswith("secvit_") and strides[0] == 2
            has = "it has with backbone_args {'stem_stride': 4}" if ours else "hierarchical backbones have"
            raise ValueError(
                f"{backbone} has maps of strides {strides}; the head needs {levels} that end with 8, 16, 32, as {has}"
            )
        self.patch = self._patch_side()
        self.channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")

    def _patch_side(self) -> int:
        """Pixels that height and width must be a multiple of; ValueError for a backbone of one image size."""
        embed = next((module for module in self.body.modules() if isinstance(module, PatchEmbed)), None)
        if embed is None:
            return 1
        if embed.strict_img_size and "img_size" not in self.arguments:
            raise ValueError(
                f"{self.name} takes images of {embed.img_size} px alone; give backbone_args "
                "{'dynamic_img_size': True} for a plain ViT, {'strict_img_size': False} for a Swin"
            )
        return int(embed.patch_size[0])

    def network(self) -> nn.Module:
        """The backbone as timm's network of that name, without a classifier, with these weights.

        What a network has behind its last map is new.
        """
        made = timm.create_model(self.name, num_classes=0, **{**self.arguments, "pretrained": False})
        own = made.state_dict()
        names = {name: key for key in own for name in _names(key)}
        state = {names.get(key, key): value for key, value in self.body.state_dict().items()}
        made.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
        return made.to(next(self.body.parameters()).device).eval()

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the images that the backbone learned from."""
        cfg = timm.data.resolve_data_config(model=self.body)
        return tuple(cfg["mean"]), tuple(cfg["std"])

    def forward(self, images: Tensor) -> Any:
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:  # whole patches, by the mean colour
            images = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        maps = self.body(images)
        if self.scales is not None:
            sizes = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
            return [x[..., :rows, :columns] for x, (rows, columns) in zip(self.scales(maps[-1]), sizes, strict=True)]
        maps = maps[-len(self.channels) :]
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def _names(key: str) -> tuple[str, str, str]:
    """A network's weight as timm's feature networks may call it: stages.0.x, stages_0.x, model.stages.0.x."""
    return key, key.replace(".", "_", 1), f"model.{key}"


def start_from(model: nn.Module, source: str | os.PathLike[str]) -> list[str]:
    """Load a classifier's weights into the `backbone` of a model with heads, or all that fit of such a model.

    source: a file or the folder of a run.  Returns the names of what stays new: heads, or, of the same network for
    other classes, what predicts them.  A ValueError says what the backbone lacks.
    """
    state, expected = read_weights(source), model.state_dict()
    if not any(key.startswith(BODY) for key in state):
        state = {BODY + name: value for key, value in state.items() for name in _names(key)}
    fitting = {key: state[key] for key in expected if key in state and state[key].shape == expected[key].shape}
    if report := misfit(fitting, {key: expected[key] for key in fitting}):
        raise ValueError(f"{source} does not fit the backbone: {report}")
    new = [key for key in expected if key not in fitting]
    if missing := [key.removeprefix(BODY) for key in new if key.startswith(BODY)]:
        raise ValueError(
            f"{source} does not fit the backbone: it lacks {abridged(missing)}; give its name and arguments"
        )
    model.load_state_dict(fitting, strict=False)
    return new
