"""Random models of current families, of a few ten thousand weights, with processors as their checkpoints have them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from secvit.vlm.small import small_tokenizer

WIDTHS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
SIDE, PATCH = 32, 4  # 8 x 8 patches
VISION: dict[str, Any] = {"image_size": SIDE, "patch_size": PATCH, **WIDTHS}
SQUARE = {"height": SIDE, "width": SIDE}


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """`small_tokenizer` with the tokens that a family's processor asks its tokenizer for, by their names there."""
    plain = small_tokenizer(["describe the image <image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"], extra_special_tokens=named, padding_side="left",
    )  # fmt: skip


def text(made: PreTrainedTokenizerFast, kind: type = LlamaConfig, **more: Any) -> Any:
    return kind(
        vocab_size=len(made), num_key_value_heads=2, head_dim=16, pad_token_id=made.pad_token_id,
        bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id, **{**WIDTHS, **more},
    )  # fmt: skip


def paligemma():
    words = tokenizer()
    vision = SiglipVisionConfig(**VISION, vision_use_head=False)
    processor = PaliGemmaProcessor(SiglipImageProcessor(size=SQUARE, image_seq_length=64), words)
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text(words, GemmaConfig), projection_dim=32, hidden_size=32,
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    config.text_config.vocab_size = len(words)
    return PaliGemmaForConditionalGeneration(config), processor


def gemma3():
    words = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    images = Gemma3ImageProcessor(
        size=SQUARE, do_pan_and_scan=True, pan_and_scan_min_crop_size=8, pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )  # fmt: skip
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=text(words, Gemma3TextConfig, sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
        mm_tokens_per_image=16, image_token_index=words.image_token_id, boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # zeros otherwise
    return model, Gemma3Processor(images, words, image_seq_length=16)


def internvl(side: int = SIDE):
    count, square = (side // PATCH // 2) ** 2, {"height": side, "width": side}
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    vision = InternVLVisionConfig(**{**VISION, "image_size": [side, side], "patch_size": [PATCH, PATCH]})
    config = InternVLConfig(
        vision_config=vision, text_config=text(words, Qwen2Config), image_token_id=words.context_image_token_id,
        image_seq_length=count,
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size=square, crop_to_patches=True, min_patches=1, max_patches=4)
    videos = InternVLVideoProcessor(size=square)
    return InternVLForConditionalGeneration(config), InternVLProcessor(images, words, videos, image_seq_length=count)


def llava_onevision():
    words = tokenizer(image_token="<image>", video_token="<video>")
    shapes = [[SIDE * h, SIDE * w] for h, w in ((1, 1), (1, 2), (2, 1), (2, 2))]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False), text_config=text(words, Qwen2Config),
        image_token_index=words.image_token_id, video_token_index=words.video_token_id, image_grid_pinpoints=shapes,
    )  # fmt: skip
    images = LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=shapes)
    videos = LlavaOnevisionVideoProcessor(size=SQUARE)
    processor = LlavaOnevisionProcessor(
        images, words, videos, num_image_tokens=64, vision_feature_select_strategy="full"
    )  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(config), processor


def tiled(config_class: type, model_class: type, **tower: Any):
    tags = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    words = tokenizer(fake_image_token="<fake_token_around_image>", global_image_token="<global-img>")
    words.add_tokens(["<end_of_utterance>", *tags], special_tokens=True)
    config = config_class(
        vision_config={**VISION, **tower}, text_config=text(words), scale_factor=2, pad_token_id=words.pad_token_id,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return model_class(config), words


TILES: dict[str, Any] = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def idefics3():
    model, words = tiled(Idefics3Config, Idefics3ForConditionalGeneration)
    return model, Idefics3Processor(Idefics3ImageProcessor(**TILES), words, image_seq_len=16)


def smolvlm():
    model, words = tiled(SmolVLMConfig, SmolVLMForConditionalGeneration)
    images, videos = SmolVLMImageProcessor(**TILES), SmolVLMVideoProcessor(**TILES)
    return model, SmolVLMProcessor(images, words, videos, image_seq_len=16)


def qwen(config_class: type, model_class: type, processor_class: type, video_class: type, sections: list, **tower: Any):
    words = tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    language = {
        "vocab_size": len(words), "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": words.pad_token_id,
        "rope_parameters": rope, **WIDTHS,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH,
        "out_hidden_size": 32, **tower,
    }  # fmt: skip
    config = config_class(
        text_config=language, vision_config=vision, image_token_id=words.image_token_id,
        video_token_id=words.video_token_id, vision_start_token_id=words.vision_start_token_id,
        vision_end_token_id=words.vision_end_token_id,
    )  # fmt: skip
    # grids of 5 x 5 and 3 x 8 tokens for the two images of the tests
    images = Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}
    )  # fmt: skip
    return model_class(config), processor_class(images, words, video_class(patch_size=PATCH, merge_size=2))


def qwen2_5_vl():
    return qwen(
        Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, [2, 3, 3],
        window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip


def qwen3_vl():
    return qwen(
        Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor, [4, 2, 2],
        deepstack_visual_indexes=[0], num_position_embeddings=64,
    )  # fmt: skip


FAMILIES = {
    f.__name__: f for f in (paligemma, gemma3, internvl, idefics3, smolvlm, llava_onevision, qwen2_5_vl, qwen3_vl)
}
QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
PLACEHOLDER = {"gemma3": "<boi>", "internvl": "<IMG_CONTEXT>", "qwen2_5_vl": QWEN, "qwen3_vl": QWEN}
OWN_TOKENS = {"paligemma": 64}  # L of a tile; 16 elsewhere


def stock(name: str):
    """(model in eval mode, processor) of a family, the same at each call."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    return model.eval(), processor
