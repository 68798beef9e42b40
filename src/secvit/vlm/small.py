"""A LLaVA of a few hundred thousand random weights and its processor, made on the spot: for tests and first steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from secvit.vlm.llava import SecLlavaConfig, SecLlavaForConditionalGeneration, SecLlavaProcessor

# The space after "ASSISTANT:" belongs to the answer: it is one piece with the first word, which is learned only so.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- if parts is string %}{% set parts = [{'type': 'text', 'text': parts}] %}{% endif -%}
{%- if message['role'] == 'assistant' -%}
ASSISTANT:{% generation %}{% for part in parts %}{{ ' ' + part['text'] }}{% endfor %}{{ eos_token }}{% endgeneration %}
{%- else -%}
{{ message['role'].upper() + ': ' }}
{%- for part in parts %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor -%}
{{ ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}ASSISTANT:{% endif -%}"""


def small_tokenizer(texts: Iterable[str] = (), vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `texts`: it can spell any text, with <image>, <s>, </s> and padding on the left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def small_llava(
    tokenizer: PreTrainedTokenizerFast,
    connector: str | None = "sec",
    num_tokens: int = 144,
    *,
    extra_token: str | None = "cls",
    image_size: int = 96,
    patch_size: int = 4,
    dim: int = 64,
    vision_layers: int = 3,
    text_layers: int = 2,
    max_length: int = 4096,
    head_dim: int = 16,
    next_tiles: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A random LLaVA-1.5 with a CLIP tower of 24 x 24 patches and a Llama -> (model in eval mode, processor).

    connector: a name of `secvit.connectors` with its `options`; None for the model as transformers has it.
    next_tiles: LLaVA-NeXT instead, whose images are cut in tiles (only with connector=None; `use_connector` does
    the rest).  dim is the width of both towers, in heads of head_dim (vLLM on CPUs takes 32, not 16).
    """
    heads: dict[str, Any] = {"num_attention_heads": dim // head_dim, "hidden_size": dim, "intermediate_size": 2 * dim}
    patches: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size}
    vision = CLIPVisionConfig(**patches, num_hidden_layers=vision_layers, projection_dim=dim, **heads)
    text = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=text_layers, max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        **heads,
    )  # fmt: skip
    common: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": (image_size // patch_size) ** 2,
    }
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}
    }  # fmt: skip
    # of LLaVA's processors: the tower's tokens, [cls] included, less the one that "default" drops
    counting: dict[str, Any] = {
        "patch_size": patch_size, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
        "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    if next_tiles:
        if connector is not None:
            raise ValueError("next_tiles=True makes a stock LLaVA-NeXT: connector=None, then use_connector(...)")
        shapes = [[image_size * h, image_size * w] for h, w in ((1, 2), (2, 1), (2, 2))]
        tiled = LlavaNextForConditionalGeneration(LlavaNextConfig(image_grid_pinpoints=shapes, **common))
        images = LlavaNextImageProcessor(image_grid_pinpoints=shapes, **sizes)
        return tiled.eval(), LlavaNextProcessor(images, tokenizer, **counting)
    if connector is None:
        stock = LlavaForConditionalGeneration(LlavaConfig(**common))
        return stock.eval(), LlavaProcessor(LlavaImageProcessor(**sizes), tokenizer, **counting)
    chosen = {"name": connector, "num_tokens": num_tokens, "extra_token": extra_token, **options}
    model = SecLlavaForConditionalGeneration(SecLlavaConfig(connector=chosen, **common))
    counting["num_image_tokens"] = model.config.image_seq_length
    processor = SecLlavaProcessor(LlavaImageProcessor(**sizes), tokenizer, **counting)
    return model.eval(), processor
