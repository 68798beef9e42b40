"""Work and memory of a LLaVA by the number of image tokens, from a configuration's numbers: no weights are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secvit import connectors
from secvit.hub import hub
from secvit.measure.macs import count_macs


@dataclass(frozen=True)
class Shape:
    """The numbers of a LLaVA: a CLIP tower (image and patch in px) and a Llama-like language model."""

    name: str
    image_size: int
    patch_size: int
    vision_dim: int
    vision_mlp: int
    vision_layers: int
    vision_heads: int
    dim: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class Work:
    """What `tokens` image tokens cost; work in multiply-accumulates, memory in bytes of two-byte numbers.

    connector: the one that gives so many.  prompt: image and text tokens.  parameters: of the connector.
    macs: of "vision", "connector", "prefill" and "decode".  kv_bytes: keys and values at the answer's end.
    step_bytes: what a decoding step reads, by batch size.
    """

    tokens: int
    connector: str
    prompt: int
    parameters: int
    macs: dict[str, int]
    kv_bytes: int
    step_bytes: dict[int, int]


SHAPES = {
    "7b": Shape("LLaVA-1.5-7B", 336, 14, 1024, 4096, 24, 16, 4096, 11008, 32, 32, 32, 128, 32064),
    "13b": Shape("LLaVA-1.5-13B", 336, 14, 1024, 4096, 24, 16, 5120, 13824, 40, 40, 40, 128, 32064),
    "eighth": Shape("an eighth of LLaVA-1.5-7B", 336, 14, 128, 512, 3, 2, 512, 1376, 4, 4, 4, 128, 4008),
}


def shape_of(model: str) -> Shape:
    """A shape by name ("7b", "13b", "eighth"), or that of a LLaVA's folder, config.json or hub name."""
    if model in SHAPES:
        return SHAPES[model]
    from transformers import AutoConfig

    try:
        with hub(model):
            config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{model}: ")
        raise ValueError(f"{model}: no model by that name or folder ({reason}); choose {', '.join(SHAPES)}") from None
    vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if vision is None or text is None or vision.model_type != "clip_vision_model":
        raise ValueError(
            f"{model}: {config.model_type} is no LLaVA with a CLIP tower; give one, or {', '.join(SHAPES)}"
        )
    return Shape(
        Path(model).name, vision.image_size, vision.patch_size, vision.hidden_size, vision.intermediate_size,
        vision.num_hidden_layers, vision.num_attention_heads, text.hidden_size, text.intermediate_size,
        text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads,
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads, text.vocab_size,
    )  # fmt: skip


# -- work and memory, from the numbers ---------------------------------------------------------------


def vision_macs(shape: Shape) -> int:
    """Multiply-accumulates of the tower for one image: all its layers run, also the last, which LLaVA does not use."""
    dim, length = shape.vision_dim, shape.patches + 1
    patches = shape.patches * 3 * shape.patch_size**2 * dim
    layer = length * (4 * dim**2 + 2 * dim * shape.vision_mlp) + 2 * length**2 * dim
    return patches + shape.vision_layers * layer


def prefill_macs(shape: Shape, length: int) -> int:
    """Multiply-accumulates of the language model over a prompt, to the first logits; attention counted unmasked."""
    attention = 2 * length**2 * shape.heads * shape.head_dim
    return shape.layers * (length * _layer_weights(shape) + attention) + shape.dim * shape.vocab


def decode_macs(shape: Shape, length: int, new: int) -> int:
    """Multiply-accumulates of the tokens after the first of `new`, one by one, after a prompt of `length`."""
    keys = sum(range(length + 1, length + new))
    return (new - 1) * _read_weights(shape) + 2 * shape.layers * shape.heads * shape.head_dim * keys


def kv_bytes(shape: Shape, length: int, bytes_each: int = 2) -> int:
    """Keys and values of `length` tokens; two bytes each in float16 and bfloat16."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * length * bytes_each


def step_bytes(shape: Shape, length: int, batch: int = 1, bytes_each: int = 2) -> int:
    """What one decoding step has to read: every weight once, and the keys and values of each sample."""
    return bytes_each * _read_weights(shape) + batch * kv_bytes(shape, length, bytes_each)


def _layer_weights(shape: Shape) -> int:
    attention = 2 * shape.dim * shape.head_dim * (shape.heads + shape.kv_heads)
    return attention + 3 * shape.dim * shape.mlp


def _read_weights(shape: Shape) -> int:
    return shape.layers * _layer_weights(shape) + shape.dim * shape.vocab


def connector_of(shape: Shape, name: str, num_tokens: int, extra_token: str | None) -> connectors.Connector:
    """The connector that gives so many tokens; LLaVA's MLP where that is all of them."""
    name = "mlp" if num_tokens == shape.patches else name
    options = {"extra_token": extra_token, "num_patches": shape.patches}
    return connectors.create(name, shape.vision_dim, shape.dim, num_tokens, **options)


def connector_macs(shape: Shape, connector: connectors.Connector) -> int:
    """Multiply-accumulates of a connector for one image, norms and scores included."""
    return count_macs(_OnTower(connector), (1, shape.patches + 1, shape.vision_dim)).total


class _OnTower(nn.Module):
    """A connector that is given (B, 1, 1 + L, C), [cls] first."""

    def __init__(self, connector: connectors.Connector) -> None:
        super().__init__()
        self.connector = connector

    def forward(self, features: Tensor) -> Tensor:
        return connect(self.connector, features.squeeze(1))


def connect(connector: connectors.Connector, features: Tensor) -> Tensor:
    """Features (B, 1 + L, C) to tokens.  The [cls] attention some ask for is a row that the tower has anyway."""
    attention = features.new_ones(features.shape[0], features.shape[1] - 1) / (features.shape[1] - 1)
    return connector(features[:, 1:], cls=features[:, 0], cls_attention=attention)


def work(
    shape: Shape, name: str, tokens: Sequence[int], extra_token: str | None, text: int, new: int
) -> tuple[list[Work], list[str]]:
    """A row for each number of tokens; and what a connector cannot do, in its own words."""
    rows, notes = [], []
    for count in tokens:
        try:
            with torch.device("meta"):
                connector = connector_of(shape, name, count, extra_token)
        except ValueError as error:
            notes.append(f"{name} at {count}: {error}")
            continue
        length = text + connector.num_output_tokens(shape.patches)
        macs = {
            "vision": vision_macs(shape), "connector": connector_macs(shape, connector),
            "prefill": prefill_macs(shape, length), "decode": decode_macs(shape, length, new),
        }  # fmt: skip
        parameters = sum(p.numel() for p in connector.parameters())
        reads = {batch: step_bytes(shape, length, batch) for batch in (1, 32)}
        cached = kv_bytes(shape, length + new - 1)
        rows.append(Work(count, connector.name, length, parameters, macs, cached, reads))
    return rows, notes
