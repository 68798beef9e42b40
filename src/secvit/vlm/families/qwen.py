"""Qwen2.5-VL and Qwen3-VL: L tokens of 2 x 2 patches, as many as the image's size asks for; T of them are left.

An image of no more than T tokens keeps its own.  A token's place in M-RoPE is the mean place of what it was merged of,
rounded to the grid of the L; text goes on behind the image's L tokens as it does without a connector, so its positions
do not depend on T.  What Qwen3-VL adds in its first layers (DeepStack) is merged by the same weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLProcessor,
)
from transformers.utils.generic import can_return_tuple

from secvit.connectors import Connector, Merged
from secvit.vlm.families.base import ConnectedGeneration, ConnectedModel, Family, Kind, register


def connected(get_image_features: Callable[..., Any]) -> Callable[..., Any]:
    """Qwen's `get_image_features` with merged tokens: pooler_output, and deepstack_features where there are any."""

    @functools.wraps(get_image_features)
    @can_return_tuple
    def features(self: Any, pixel_values: Tensor, image_grid_thw: Any = None, **kwargs: Any) -> Any:
        outputs = get_image_features(self, pixel_values, image_grid_thw, **{**kwargs, "return_dict": True})
        images, grids = list(outputs.pooler_output), self.token_grids(image_grid_thw)
        merged = [self.merge(tokens, grid) for tokens, grid in zip(images, grids)]
        outputs.pooler_output = [tokens for tokens, _ in merged]
        lengths = [len(tokens) for tokens in images]
        deep = getattr(outputs, "deepstack_features", None)
        if deep is not None:
            outputs.deepstack_features = [_by_weights(layer, lengths, merged) for layer in deep]
        self.image_offsets = torch.cat([_offsets(one, len(t), grid) for (t, one), grid in zip(merged, grids)])
        return outputs

    return features


def _by_weights(layer: Any, lengths: list[int], merged: list[tuple[Tensor, Merged | None]]) -> Any:
    """A layer's features, of all images one after the other or split, as means by the connector's weights."""
    whole = isinstance(layer, Tensor)
    images = layer.split(lengths) if whole else layer
    means = [x if one is None else one.weights[0].to(x) @ x for x, (_, one) in zip(images, merged)]
    return torch.cat(means) if whole else means


def _offsets(merged: Merged | None, count: int, grid: tuple[int, int]) -> Tensor:
    """Rows and columns of an image's tokens from its first one.  -> (T, 2); zero for tokens that have places."""
    if merged is None:
        return torch.zeros(count, 2, dtype=torch.long)
    x, y = merged.coordinates[0].detach().unbind(-1)
    places = torch.stack([y * grid[0], x * grid[1]], dim=-1) - 0.5
    return places.round().long().clamp_min(0)


class QwenModel(ConnectedModel):
    """What both models share: L tokens of a grid that differs from image to image, and their places; a mixin."""

    visual: Any
    language_model: Any
    image_offsets: Tensor | None = None  # of the images that were encoded last, kept as rope_deltas are
    image_mask: Tensor | None = None

    def attach(self, connector: Connector) -> None:
        super().attach(connector)
        self._placing = self.language_model.register_forward_pre_hook(self._place, with_kwargs=True)

    def detach(self) -> None:
        super().detach()
        self._placing.remove()

    def token_grids(self, image_grid_thw: Any) -> list[tuple[int, int]]:
        """(height, width) of each image in tokens."""
        side = self.config.vision_config.spatial_merge_size
        return [(height // side, width // side) for _, height, width in torch.as_tensor(image_grid_thw).tolist()]

    def merge(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Merged | None]:
        """(L, C) of an image -> (T, C), and of what; where L <= T as it is, and None."""
        if len(tokens) <= self.image_connector.num_tokens:
            return tokens, None
        out, merged = self.image_connector(tokens[None], grid=grid, return_merged=True)
        return out[0], merged

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """Not with a connector."""
        raise NotImplementedError(
            f"a {self.config.model_type} takes images: where merged tokens of a video are in time is not worked out; "
            "restore_connector gives the model that takes videos"
        )

    def get_vision_position_ids(self, start_position: int, *args: Any, **kwargs: Any) -> Tensor:
        """As in transformers; merged tokens stand where their image starts until they are made (`_place`).  (3, T)"""
        behind: Any = super()
        positions = behind.get_vision_position_ids(start_position, *args, **kwargs)
        count = self.image_connector.num_tokens
        return positions if positions.shape[1] <= count else torch.full_like(positions[:, :count], start_position)

    def get_placeholder_mask(self, *args: Any, **kwargs: Any) -> Any:
        masks = super().get_placeholder_mask(*args, **kwargs)
        self.image_mask = masks[0][..., 0]
        return masks

    def _place(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Before the language model: adds to merged tokens' positions (.., B, S) where in the image they are."""
        mask, self.image_mask = self.image_mask, None
        positions = kwargs.get("position_ids")
        if mask is None or positions is None or positions.dim() != 3:
            return None
        counts, offsets = mask.sum(dim=1).tolist(), self.image_offsets
        if offsets is None:
            raise ValueError(
                "the places of these image tokens are not known; encode images by get_image_features first"
            )
        beams, rest = divmod(sum(counts), len(offsets))
        if rest:
            raise NotImplementedError("a prompt with merged tokens is not cut in chunks; leave prefill_chunk_size out")
        samples = offsets.split(counts[::beams])  # each stands for as many rows as there are beams
        offsets = torch.cat([sample for sample in samples for _ in range(beams)])
        positions = positions.expand(-1, len(mask), -1).clone()
        positions[-2:, mask.to(positions.device)] += offsets.T.to(positions)
        return args, {**kwargs, "position_ids": positions}

    def merged(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Any:
        """Of which of its L tokens each image's T are made, a list; None for an image that keeps its own."""
        stock: Any = super()
        with torch.no_grad():
            images = stock.get_image_features(pixel_values, image_grid_thw, return_dict=True).pooler_output
        return [self.merge(tokens, grid)[1] for tokens, grid in zip(images, self.token_grids(image_grid_thw))]


class CountsTokens:
    """A processor that writes `num_image_tokens` placeholders for an image, or fewer where it has fewer; a mixin."""

    image_token: Any

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: str | None = None,
        num_image_tokens: int = 144,
        **kwargs: Any,
    ):
        behind: Any = super()
        behind.__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **kwargs)
        self.num_image_tokens = num_image_tokens

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What <|image_pad|> becomes."""
        behind: Any = super()
        own = behind.replace_image_token(image_inputs, image_idx, **kwargs)
        return self.image_token * min(own.count(self.image_token), self.num_image_tokens)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any) -> Any:
        """The same, asked by servers before they see an image."""
        behind: Any = super()
        counts = behind._get_num_multimodal_tokens(image_sizes=image_sizes, video_sizes=video_sizes, **kwargs)
        if image_sizes is not None:
            counts.num_image_tokens = [min(own, self.num_image_tokens) for own in counts.num_image_tokens]
        return counts


@strict
class SecQwen2_5_VLConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_qwen2_5_vl"

    connector: dict | None = None
    tile_tokens = None  # L differs from image to image


class SecQwen2_5_VLModel(QwenModel, Qwen2_5_VLModel):
    """Tower, merger, connector, language model; no head."""

    config_class = SecQwen2_5_VLConfig
    get_image_features = connected(Qwen2_5_VLModel.get_image_features)


class SecQwen2_5_VLForConditionalGeneration(ConnectedGeneration, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with the connector of its config."""

    config_class = SecQwen2_5_VLConfig


class SecQwen2_5_VLProcessor(CountsTokens, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor that writes min(T, L) placeholders for an image."""


@strict
class SecQwen3VLConfig(Qwen3VLConfig):
    """Qwen3-VL's config and `connector`: its name in `secvit.connectors` and its options."""

    model_type = "sec_qwen3_vl"

    connector: dict | None = None
    tile_tokens = None  # L differs from image to image


class SecQwen3VLModel(QwenModel, Qwen3VLModel):
    """Tower, merger, connector, language model; no head."""

    config_class = SecQwen3VLConfig
    get_image_features = connected(Qwen3VLModel.get_image_features)


class SecQwen3VLForConditionalGeneration(ConnectedGeneration, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with the connector of its config."""

    config_class = SecQwen3VLConfig


class SecQwen3VLProcessor(CountsTokens, Qwen3VLProcessor):
    """Qwen3-VL's processor that writes min(T, L) placeholders for an image."""


register(
    Family(
        Kind(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2_5_VLConfig),
        Kind(SecQwen2_5_VLForConditionalGeneration, SecQwen2_5_VLModel, SecQwen2_5_VLConfig),
        "visual.merger",
        (Qwen2_5_VLProcessor, SecQwen2_5_VLProcessor),
        "num_image_tokens",
    )
)
register(
    Family(
        Kind(Qwen3VLForConditionalGeneration, Qwen3VLModel, Qwen3VLConfig),
        Kind(SecQwen3VLForConditionalGeneration, SecQwen3VLModel, SecQwen3VLConfig),
        "visual.merger",
        (Qwen3VLProcessor, SecQwen3VLProcessor),
        "num_image_tokens",
    )
)
