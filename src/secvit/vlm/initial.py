"""The LLaVA at step 0: from a hub or a folder, put together of two towers, or small; what learns, and LoRA."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    SiglipVisionModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from secvit.extras import needs
from secvit.hub import hub
from secvit.vlm.adapt import load_connector, use_connector
from secvit.vlm.chat import IMAGE
from secvit.vlm.config import Model
from secvit.vlm.small import small_llava, small_tokenizer

logger = logging.getLogger(__name__)

SMALL = "small"
PARTS = "parts"
# what LoRA goes beside: the linear layers of a Llama's blocks
LORA = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


def initial_llava(
    chosen: Model, texts: Callable[[], Iterable[str]] = tuple, seed: int = 0, tokenizer: Any = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The LLaVA with its connector, in float32 and without gradients decided -> (model, processor).

    texts: what a small tokenizer learns from, if it is asked for; `tokenizer`, if it is known already.
    """
    options = {"num_tokens": chosen.num_tokens, "extra_token": chosen.extra_token, **chosen.connector_args}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if chosen.base == SMALL:
            tokenizer = tokenizer or small_tokenizer(texts(), vocab_size=1024)
            llava, processor = small_llava(tokenizer, chosen.connector or "mlp", **options)
        else:
            parts = chosen.base == PARTS
            llava, processor = (
                from_parts(chosen.language, chosen.vision, chosen.image_size)
                if parts
                else from_transformers(chosen.base)
            )
            processor = connected(llava, processor, chosen, options)
    if chosen.init:
        processor = load_connector(llava, processor, chosen.init) or processor
        logger.info("the connector begins as in %s", chosen.init)
    return llava, processor


def from_transformers(base: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A LLaVA as it was saved, in float32."""
    try:
        with hub(base, "--model.base"):
            return (
                AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32),
                AutoProcessor.from_pretrained(base),
            )
    except OSError as error:
        raise ValueError(f"--model.base {base}: {str(error).splitlines()[0]}") from None


def connected(
    llava: PreTrainedModel, processor: ProcessorMixin, chosen: Model, options: dict[str, Any]
) -> ProcessorMixin:
    """The processor of a LLaVA that has the connector asked for; one that it has already stays, if it is the same."""
    existing = getattr(llava.config, "connector", None)
    if existing is None:
        return use_connector(llava, processor, chosen.connector or "mlp", **options) or processor
    if chosen.connector is not None:
        requested = {"name": chosen.connector, **options}
        if differing := {k: (existing.get(k), v) for k, v in requested.items() if existing.get(k) != v}:
            differences = ", ".join(f"{key} {old!r}, not {new!r}" for key, (old, new) in differing.items())
            raise ValueError(
                f"{chosen.base} has a connector already, with {differences}; keep it by --model.connector null, or "
                "begin with the LLaVA it was put in"
            )
    return processor


def from_parts(
    language: str, vision: str, image_size: int | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:  # fmt: skip
    """LLaVA-1.5 before stage 1: a language model, a vision tower, and a projector of new weights.

    image_size: px of an image's side; that of the tower's image processor if None.
    """
    try:
        with hub(language, "--model.language"):
            tokenizer = read_tokenizer(language)
            speaker: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        with hub(vision, "--model.vision"):
            tower = read_tower(vision)
            images = AutoImageProcessor.from_pretrained(vision)
    except OSError as error:
        raise ValueError(
            f"--model.language {language}, --model.vision {vision}: {str(error).splitlines()[0]}"
        ) from None
    fit(tower, images, image_size)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if len(tokenizer) > speaker.get_input_embeddings().num_embeddings:
        speaker.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    speaker.config.pad_token_id = tokenizer.pad_token_id
    patch = tower.config.patch_size
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=speaker.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(tower.config.image_size // patch) ** 2,
        tie_word_embeddings=speaker.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower, llava.model.language_model, llava.lm_head = tower, speaker.model, speaker.lm_head
    llava.model.multi_modal_projector = LlavaMultiModalProjector(config)
    llava.generation_config = speaker.generation_config
    return llava.eval(), LlavaProcessor(
        images, tokenizer, patch_size=patch, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def read_tower(vision: str) -> Any:
    """A vision tower in float32, without the text half that CLIP's and SigLIP's checkpoints have."""
    kind = AutoConfig.from_pretrained(vision).model_type.removesuffix("_vision_model")
    vision_alone: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
    return vision_alone.get(kind, AutoModel).from_pretrained(vision, dtype=torch.float32)


@torch.no_grad()
def fit(tower: Any, images: Any, image_size: int | None) -> None:
    """Bring an image processor to square images of one size, and a tower's positions to that size.

    image_size: px of a side; None for the processor's own.  Raises ValueError for a tower that keeps to another one.
    """
    cut = getattr(images, "crop_size", None) or images.size
    side = image_size or cut.get("height") or cut.get("shortest_edge")
    if image_size is not None:
        images.size = {"height": side, "width": side} if "height" in images.size else {"shortest_edge": side}
        if getattr(images, "crop_size", None):
            images.crop_size = {"height": side, "width": side}
    config = tower.config
    if side == config.image_size:
        return
    embeddings: Any = getattr(tower, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    if side % config.patch_size or not isinstance(positions, nn.Parameter):
        raise ValueError(
            f"images of {side} px in a tower ({config.model_type}) for {config.image_size} px and patches of "
            f"{config.patch_size} px, whose positions are not resized; choose --model.image_size {config.image_size}"
        )
    tokens = positions.new_zeros(1, 1 + (side // config.patch_size) ** 2, positions.shape[-1])
    resized = embeddings.interpolate_pos_encoding(tokens, side, side)
    embeddings.position_embeddings = nn.Parameter(resized.clone())
    config.image_size = side


def read_tokenizer(language: str) -> Any:
    """The tokenizer of a language model.  Vicuna's, a tokenizer.model alone, takes two more packages to read."""
    try:
        return AutoTokenizer.from_pretrained(language)
    except (ValueError, ImportError):
        with needs(f"the tokenizer.model of {language}", "sentencepiece and protobuf", "vlm"):
            import google.protobuf  # noqa: F401
            import sentencepiece  # noqa: F401
        raise


def set_trained(llava: PreTrainedModel, chosen: Model, seed: int = 0, half: bool = False) -> nn.Module:
    """Freeze what the recipe does not train -> the model, inside peft's wrapper for LoRA.

    half: frozen weights become bfloat16, as they are used.
    """
    parts = {
        "connector": [llava.model.multi_modal_projector],
        "language": [llava.model.language_model, llava.lm_head],
    }
    llava.requires_grad_(False)
    if half:
        frozen = [llava.model.vision_tower, *(parts["language"] if "language" not in chosen.trained else ())]
        for module in frozen:
            module.to(torch.bfloat16)
    for name in chosen.trained:
        for module in parts[name]:
            module.requires_grad_(True)
    if chosen.checkpointing:
        # the second is its name before transformers 5.23
        enable = getattr(llava, "activation_checkpointing_enable", None) or llava.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return with_lora(llava, chosen, seed) if chosen.lora else llava


def with_lora(llava: PreTrainedModel, chosen: Model, seed: int = 0) -> nn.Module:
    """LoRA beside the language model's linear layers; the connector is trained whole, if at all."""
    with needs("--model.lora", "peft"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=chosen.lora,
        lora_alpha=chosen.lora_alpha,
        lora_dropout=chosen.lora_dropout,
        target_modules=LORA,
        modules_to_save=["multi_modal_projector"] if "connector" in chosen.trained else None,
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # peft asks transformers by the old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(llava, config)
