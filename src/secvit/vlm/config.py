"""What a recipe of vision-language training says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from secvit.fields import within
from secvit.train.config import Loop, Schedule
from secvit.train.optim import check_rates


@dataclass(frozen=True)
class Model:
    """The LLaVA: where it comes from, its connector, and which of its parts are trained.

    Args:
        base: a LLaVA-1.5 that exists, with or without our connectors, as transformers loads it (a folder or a name
            of the hub); "parts" puts one together of `language` and `vision`; "small" makes a random one of a few
            hundred thousand weights.
        language: a Llama-like language model for "parts".
        vision: a tower for "parts": CLIP's, SigLIP's, DINOv2's, or another that transformers' LLaVA takes.
        image_size: px of an image's side in the tower of "parts", whose positions are resized to it; null for that of
            the tower's own image processor.
        connector: name in secvit.connectors; null leaves that of `base`.
        num_tokens: tokens of an image, without the extra one.
        extra_token: what comes before them, CLIP's own "cls", the "mean" of all, or null.
        connector_args: further arguments of the connector, {"arrangement": "sequential"}.
        init: folder of a run of stage 1 whose connector to begin with.
        trained: parts that learn, next to LoRA; the rest is frozen, the tower always.
        lora: rank of LoRA in the language model's linear layers, which are frozen then; 0 for none.
        lora_alpha: scale of LoRA; its updates count alpha / rank.
        lora_dropout: probability of dropout before LoRA.
        checkpointing: compute activations again in the backward pass, for memory.
    """

    base: str = "parts"
    language: str = "lmsys/vicuna-7b-v1.5"
    vision: str = "openai/clip-vit-large-patch14-336"
    image_size: int | None = None
    connector: str | None = "sec"
    num_tokens: int = 144
    extra_token: Literal["cls", "mean"] | None = "cls"
    connector_args: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    trained: tuple[Literal["connector", "language"], ...] = ("connector", "language")
    lora: int = 0
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    checkpointing: bool = True

    def __post_init__(self) -> None:
        if not self.trained and not self.lora:
            raise ValueError('trained=[] and lora=0; name the parts that learn, like ["connector"]')
        if self.lora and "language" in self.trained:
            raise ValueError(f'lora={self.lora} freezes the language model; leave "language" out of trained')
        within(self, 1, math.inf, "num_tokens", "lora_alpha")
        if self.image_size is not None:
            within(self, 1, math.inf, "image_size")
        within(self, 0, 1, "lora_dropout")
        if self.lora < 0:
            raise ValueError(f"lora={self.lora}; give a rank above 0, like 128, or 0 for none")


@dataclass(frozen=True)
class Samples:
    """How conversations and their images are read.

    Args:
        images: folder that the images' paths begin in, or the one above its `images`; null for the JSON file's own,
            or `images` beside it.
        val: JSON file of held-out conversations; null for val.json of a folder, else none.
        template: how a conversation is written down. "v1" is Vicuna's (stage 2), "plain" the caption alone after
            the image (stage 1); null keeps the processor's own.
        pad: make images square by a border of the mean colour, as LLaVA-1.5 does, instead of cutting the middle.
        max_length: most tokens of a sample, those of images included.
        too_long: what to do with longer ones, an error or leave them out; they are never cut off.
        drop_broken: leave samples out that are broken, and take small faults as LLaVA's loader takes them (a stray
            <image>, a last question without answer), instead of an error. A line in the log counts and names them.
        check: before the first step read every image as a "whole", or only its "header" (hundreds of thousands).
        group: batches of similar length, with images or all without, as LLaVA-1.5 forms them.
        cache: folder for what the connector is given of each image, so that a frozen tower runs once; null for
            none. An image of CLIP-L/336 is 2.4 MB.
    """

    images: str | None = None
    val: str | None = None
    template: Literal["v1", "plain"] | None = "v1"
    pad: bool = True
    max_length: int = 2048
    too_long: Literal["error", "drop"] = "error"
    drop_broken: bool = False
    check: Literal["whole", "header"] = "whole"
    group: bool = True
    cache: str | None = None


@dataclass(frozen=True)
class Optim:
    """The optimizer, by timm.optim.create_optimizer_v2.

    Args:
        name: timm's name of the optimizer, "adamw", "muon", ...
        lr: peak learning rate.
        connector_lr: that of the connector; null for the same.
        weight_decay: of all weights that learn.
        betas: of Adam and its kin.
    """

    name: str = "adamw"
    lr: float = 2e-5
    connector_lr: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        check_rates(self, "lr", "connector_lr", "weight_decay")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run of vision-language training, except where data and output lie.

    Args:
        model: the LLaVA.
        samples: how conversations and images are read.
        optim: the optimizer.
        schedule: the learning rate over time.
        loop: length, batch, precision, sharding, logging, saving.
    """

    model: Model
    samples: Samples
    optim: Optim
    schedule: Schedule
    loop: Loop
