"""LLaVA-1.5 with a connector in place of its projector, as classes that transformers loads, saves and serves.

Everything but the connector is transformers' own: the tower, the language model, chat templates, caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
    LlavaProcessor,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import MultiModalData
from transformers.utils.generic import can_return_tuple

from secvit import connectors
from secvit.connectors import Connector, Merged

DEFAULT = {"name": "sec", "num_tokens": 144, "extra_token": "cls"}


@strict
class SecLlavaConfig(LlavaConfig):
    """LLaVA's config and `connector`: its name in `secvit.connectors` and its options, widths left out.

    image_seq_length: tokens that an image becomes, the extra one included; the model sets it.
    """

    model_type = "sec_llava"

    connector: dict | None = None

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        self.connector = dict(DEFAULT if self.connector is None else self.connector)


def num_patches(config: Any) -> int:
    """L: patches of one square image (one tile) in the tower of a LLaVA's config."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def new_connector(config: Any) -> Connector:
    """The connector that `config.connector` describes; its widths, activation and biases are those of LLaVA's MLP."""
    if config.vision_config.model_type == "pixtral":
        raise NotImplementedError("Pixtral's grids differ from image to image; take a LLaVA with CLIP or SigLIP")
    layers = config.vision_feature_layer
    connector = connectors.create(
        **{
            **config.connector,
            "in_dim": config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers)),
            "out_dim": config.text_config.hidden_size,
            "act": config.projector_hidden_act,
            "bias": config.multimodal_projector_bias,
            "num_patches": num_patches(config),
        }
    )
    if not any(p.is_meta for p in connector.parameters()):
        module: Any
        for module in connector.modules():
            module._is_hf_initialized = True  # transformers would draw normal(0, 0.02) over its start
    return connector


def cls_attention(layer: Any, hidden: Tensor) -> Tensor:
    """What [cls] attends to in one encoder layer, mean over heads: its input (B, 1 + L, C) -> (B, L).

    One row, computed again: SDPA and flash attention return no weights.
    """
    if not hasattr(layer, "layer_norm1") or not hasattr(layer.self_attn, "q_proj"):
        raise NotImplementedError(
            f"[cls]'s attention is read from CLIP's layers, not from {type(layer).__name__}; "
            "choose a connector that does without it"
        )
    attention = layer.self_attn
    x = layer.layer_norm1(hidden)
    q, k = (
        y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for y in (attention.q_proj(x[:, :1]), attention.k_proj(x))
    )
    return (q * attention.scale @ k.mT).softmax(dim=-1, dtype=torch.float32)[:, :, 0, 1:].mean(dim=1)


class ConnectedModel:
    """What a LLaVA's inner model (tower, projector, language model) does otherwise with a connector; a mixin."""

    config: Any  # of transformers' class behind this mixin, whose parts are configs, dicts or None to a checker
    vision_tower: Any
    multi_modal_projector: Any

    # nor quantised, so that a model in 4 bits saves and loads a connector that can be trained
    _keep_in_fp32_modules: Any = [r"(?:model\.)?multi_modal_projector"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        """Weights that a checkpoint lacks: those of the connector start as the connector has it."""
        projector = self.multi_modal_projector
        if isinstance(projector, Connector) and any(module is part for part in projector.modules()):
            module.reset_parameters()
        else:
            behind: Any = super()
            behind._init_weights(module)

    def connector_inputs(
        self, pixel_values: Tensor, vision_feature_layer: int | list[int] | None = None
    ) -> tuple[Any, dict]:
        """What the tower sees: pixel_values (B, 3, H, W) -> (its output, the connector's arguments).

        A frozen tower keeps nothing for a backward pass.
        """
        learns = pixel_values.requires_grad or any(p.requires_grad for p in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return self._connector_inputs(pixel_values, vision_feature_layer)

    def _connector_inputs(self, pixel_values: Tensor, vision_feature_layer: int | list[int] | None) -> tuple[Any, dict]:
        layers = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        layers = [layers] if isinstance(layers, int) else list(layers)
        depth = self.config.vision_config.num_hidden_layers
        layers = [i % (depth + 1) for i in layers]
        connector = self.multi_modal_projector
        deepest = max(layers)
        # all of them: given a list, transformers below 5.23 returns fewer, and an index finds another layer
        outputs = self.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
        if len(outputs.hidden_states) != depth + 1:
            raise RuntimeError(
                f"{type(self.vision_tower).__name__} returned {len(outputs.hidden_states)} hidden states for {depth} "
                "layers; this version of transformers is not supported (see pyproject.toml for those that are)"
            )
        features = torch.cat([outputs.hidden_states[i] for i in layers], dim=-1)
        dtype = next((p.dtype for p in connector.parameters() if p.is_floating_point()), features.dtype)
        features = features.to(dtype)

        patch = self.config.vision_config.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        prefix = features.shape[1] - grid[0] * grid[1]  # [cls] and registers, if any
        inputs = {"tokens": features[:, prefix:], "grid": grid}
        if (connector.needs_cls or connector.needs_cls_attention) and not prefix:
            raise ValueError(
                f"{type(self.vision_tower).__name__} has no [cls]; choose extra_token='mean' or None, and a connector "
                "that does without it"
            )
        if connector.needs_cls:
            inputs["cls"] = features[:, 0]
        if connector.needs_cls_attention:
            attention = cls_attention(self.vision_tower.encoder.layers[deepest - 1], outputs.hidden_states[deepest - 1])
            inputs["cls_attention"] = attention[:, prefix - 1 :]
        return outputs, inputs

    def connect(self, inputs: Mapping[str, Any]) -> Tensor:
        """The connector's tokens of what `connector_inputs` gives it.  -> (B, T(+1), C)"""
        inputs = dict(inputs)
        return self.multi_modal_projector(inputs.pop("tokens"), **inputs)

    def merged(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Merged:
        """Of which patches each output token is made, and where they lie; pixel_values as for forward (NeXT: tiles)."""
        _, inputs = self.connector_inputs(self.tiles(pixel_values, image_sizes)[0])
        return self.multi_modal_projector.merged(inputs.pop("tokens"), **inputs)

    def tiles(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, list[int]]:
        """(tiles, 3, H, W) and how many each image has: one."""
        return pixel_values, [1] * len(pixel_values)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: Literal["default", "full"] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """The tower's output; its pooler_output are the images' tokens, (tiles x T(+1), C) each.

        vision_feature_select_strategy is not asked: the connector takes patches and, where it needs it, [cls].
        """
        tiles, counts = self.tiles(pixel_values, image_sizes)
        outputs, inputs = self.connector_inputs(tiles, vision_feature_layer)
        outputs.pooler_output = [tokens.flatten(0, 1) for tokens in self.connect(inputs).split(counts)]
        return outputs

    def get_placeholder_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
        """Where the prompt has image tokens; a ValueError with the remedy if they are not as many as the images'."""
        behind: Any = super()
        try:
            return behind.get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds, image_features=image_features)
        except ValueError:
            made = image_features.shape[:-1].numel()
            image_token = self.config.image_token_id
            amount = (
                "other than" if input_ids is None else f"{(input_ids == image_token).sum()} image tokens instead of"
            )
        each = self.config.image_seq_length
        raise ValueError(
            f"the prompt has {amount} the {made} that the connector makes ({each} for an image or tile).  Take the "
            "processor that use_connector returned, or AutoProcessor from this model's own folder "
            f"(processor.num_image_tokens is {each}); and do not cut prompts to a max_length"
        )


class Connected:
    """The same for the model with its head; a mixin."""

    model: Any

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; `connector={...}` gives a stock LLaVA one."""
        behind: Any = super()
        loaded = behind.from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        inner = model.model
        # what must not be quantised is loaded in float32 where the rest is float16
        inner.multi_modal_projector.to(inner.vision_tower.dtype)
        return loaded

    def merged(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Merged:
        """Of which patches each output token is made, and where they lie; pixel_values as for forward (NeXT: tiles)."""
        return self.model.merged(pixel_values, image_sizes)


class SecLlavaModel(ConnectedModel, LlavaModel):
    """CLIP or SigLIP tower, connector, language model; no head."""

    config_class = SecLlavaConfig

    def __init__(self, config: SecLlavaConfig):
        super().__init__(config)
        connector = new_connector(config)
        self.multi_modal_projector = connector
        config.image_seq_length = connector.num_output_tokens(num_patches(config))


class SecLlavaForConditionalGeneration(Connected, LlavaForConditionalGeneration):
    """Tables 7 to 9: LLaVA-1.5 with the connector of its config; loss, generate, save and load as any LLaVA."""

    config_class = SecLlavaConfig

    def __init__(self, config: SecLlavaConfig):
        LlavaPreTrainedModel.__init__(self, config)  # not LLaVA's own, which would build the towers a second time
        self.model = SecLlavaModel(config)
        text: Any = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


class ConnectedProcessor:
    """What a LLaVA's processor does otherwise with a connector; a mixin."""

    image_token: Any

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 0,
        num_image_tokens: int | None = None,
        **kwargs: Any,
    ):
        behind: Any = super()
        behind.__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        if num_image_tokens is None:
            raise ValueError("num_image_tokens is missing: give the model's config.image_seq_length")
        self.num_image_tokens = num_image_tokens

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> None:
        """As in transformers; each prompt has one <image> for each image; the error names the prompt that has not."""
        if text is not None and images is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            written = [prompt.count(self.image_token) for prompt in prompts]
            nested = isinstance(images, (list, tuple)) and all(isinstance(item, (list, tuple)) for item in images)
            counts = [len(some) for some in images] if nested else None
            if counts is not None and len(counts) == len(prompts):
                for i, (here, there) in enumerate(zip(written, counts)):
                    if here != there:
                        raise ValueError(f"prompt {i} has {here} {self.image_token} for {there} image(s); {REMEDY}")
            else:
                flat: Any = make_flat_list_of_images(images)
                if sum(written) != len(flat):
                    raise ValueError(f"{written} {self.image_token} in the prompts for {len(flat)} image(s); {REMEDY}")
        others = {name: value for name, value in (("videos", videos), ("audio", audio)) if value is not None}
        behind: Any = super()
        behind.validate_inputs(images=images, text=text, **others, **kwargs)


REMEDY = "write it once where each image goes"


class SecLlavaProcessor(ConnectedProcessor, LlavaProcessor):
    """LLaVA's processor that writes `num_image_tokens` placeholders for an image, whatever its size."""

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What <image> becomes."""
        return self.image_token * self.num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """The same, asked by servers before they see an image."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)


def register(model_type: str, config: type, model: type, generation: type, processor: type, stock: tuple) -> None:
    """With the Auto classes, and the names that LLaVA checkpoints are saved under: without, a language model is lost.

    stock: the names whose weights' names are the same, of the model type and of the inner model's class.
    """
    AutoConfig.register(model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForImageTextToText.register(config, generation, exist_ok=True)
    AutoProcessor.register(config, processor, exist_ok=True)
    for ours, theirs in ((model_type, stock[0]), (generation.__name__, stock[0]), (model.__name__, stock[1])):
        register_checkpoint_conversion_mapping(ours, get_checkpoint_conversion_mapping(theirs), overwrite=True)


register(
    "sec_llava",
    SecLlavaConfig,
    SecLlavaModel,
    SecLlavaForConditionalGeneration,
    SecLlavaProcessor,
    ("llava", "LlavaModel"),
)
