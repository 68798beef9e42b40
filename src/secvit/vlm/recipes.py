"""Recipes of vision-language training: a function each, returning one complete frozen dataclass.

A recipe's name on the command line is its import path below `secvit`: `vlm.llava_finetune_7b`.
Variants are made with `dataclasses.replace`; `tiny` makes any recipe run in seconds on a CPU.
"""

from __future__ import annotations

from dataclasses import replace

from secvit.train.config import Loop, Schedule
from secvit.vlm.config import Model, Optim, Recipe, Samples


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe for a few small steps of a small random LLaVA: to see that it runs, not what it reaches."""
    model = replace(recipe.model, base="small", num_tokens=16, init=None, lora=min(recipe.model.lora, 4))
    return replace(
        recipe,
        model=model,
        schedule=recipe.schedule.tiny(),
        loop=replace(recipe.loop.tiny(), batch_size=4, sharding="ddp"),
    )


VICUNA_13B = "lmsys/vicuna-13b-v1.5"

# -- small enough for a CPU --------------------------------------------------------------------


def small() -> Recipe:
    """A small LLaVA from random weights, 576 -> 144 + 1 tokens, on a CPU: it learns a few photos by heart.

    secvit train vlm.small --data DIR --output runs/small
    secvit ask runs/small photo.jpg "How many people are there?"

    DIR holds train.json and its images (docs/vlm_training.md).  A tower of random weights sees colours and edges
    of the photos it was trained on, enough to tell them apart and for no more: to try data and code.
    """
    return Recipe(
        model=Model(base="small", checkpointing=False),
        samples=Samples(),
        optim=Optim(lr=2e-3),
        schedule=Schedule("cosine", warmup_steps=10),
        loop=Loop(batch_size=8, steps=150, clip_grad=1.0, log_every=10, evaluate_every=50, save_every=50),
    )


SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def smol_pretrain() -> Recipe:
    """Stage 1 of a LLaVA of 157 M weights that a CPU can train: DINOv2-S at 336 px (576 tokens), SmolLM2-135M.

    secvit train vlm.smol_pretrain --data captions.json --samples.images DIR --samples.cache features \
        --output runs/smol1

    The connector learns from captions; the tower runs once for each image where there is a cache.  Other towers and
    language models by --model.vision and --model.language, names of the hub or folders.
    """
    return Recipe(
        model=Model(
            language=SMOL, vision="facebook/dinov2-small", image_size=336, extra_token=None, trained=("connector",),
            checkpointing=False,
        ),
        samples=Samples(template="plain", group=False, pad=False, too_long="drop", drop_broken=True),
        optim=Optim(lr=1e-3),
        schedule=Schedule("cosine", warmup_steps=10),
        loop=Loop(batch_size=8, epochs=4, clip_grad=1.0, log_every=5),
    )  # fmt: skip


def smol_finetune() -> Recipe:
    """Stage 2 of vlm.smol_pretrain's LLaVA: connector and LoRA of rank 32, on conversations.

    secvit train vlm.smol_finetune --data conversations.json --samples.images DIR --samples.cache features \
        --model.init runs/smol1 --output runs/smol2
    """
    base = smol_pretrain()
    return replace(
        base,
        model=replace(base.model, lora=32, lora_alpha=64),
        samples=Samples(group=False, pad=False),
        optim=Optim(lr=3e-4, connector_lr=1e-4),
        loop=replace(base.loop, epochs=2),
    )


# -- LLaVA-1.5's two stages --------------------------------------------------------------------


def pretrain(language: str = Model.language) -> Recipe:
    """Stage 1 as LLaVA-1.5 has it: an epoch of 558k captions, the connector alone, 1e-3, batch 256, warm-up 0.03.

    Images are cut to their middle and batches are not grouped, as its pretrain.sh has it.
    """
    return Recipe(
        model=Model(language=language, trained=("connector",)),
        samples=Samples(
            template="plain", pad=False, group=False, check="header", too_long="drop", drop_broken=True
        ),
        optim=Optim(lr=1e-3),
        schedule=Schedule("cosine", warmup_epochs=0.03),
        loop=Loop(
            batch_size=256, parts=8, epochs=1, precision="bf16", clip_grad=1.0, workers=4, log_every=20,
            evaluate_every=1000, save_every=500,
        ),
    )  # fmt: skip


def finetune(language: str = Model.language) -> Recipe:
    """Stage 2 as LLaVA-1.5 has it: one epoch of the 665k mix, connector and language model, 2e-5, batch 128."""
    return Recipe(
        model=Model(language=language),
        samples=Samples(check="header", too_long="drop", drop_broken=True),
        optim=Optim(lr=2e-5),
        schedule=Schedule("cosine", warmup_epochs=0.03),
        loop=Loop(
            batch_size=128, parts=8, epochs=1, precision="bf16", sharding="fsdp", clip_grad=1.0, workers=4,
            log_every=20, evaluate_every=1000, save_every=1000, keep_last=1,
        ),
    )  # fmt: skip


def llava_pretrain_7b() -> Recipe:
    """Stage 1 of LLaVA-1.5 with SEC, 7B (tables 7 to 9): the connector on 558k captions.  Not run.

    torchrun --nproc-per-node 8 -m secvit.cli train vlm.llava_pretrain_7b --data blip_laion_cc_sbu_558k.json \
        --samples.images LLaVA-Pretrain --output runs/stage1

    --model.connector and --model.num_tokens choose another connector; then stage 2: vlm.llava_finetune_7b.
    """
    return pretrain()


def llava_finetune_7b() -> Recipe:
    """Stage 2 of LLaVA-1.5 with SEC, 7B (tables 7 to 9: TextVQA 56.8, GQA 62.0 at 144 + 1 in the paper).  Not run.

    torchrun --nproc-per-node 8 -m secvit.cli train vlm.llava_finetune_7b --data llava_v1_5_mix665k.json \
        --samples.images DIR --model.init runs/stage1 --output runs/stage2
    """
    return finetune()


def llava_pretrain_13b() -> Recipe:
    """Stage 1 of LLaVA-1.5 with SEC, 13B; otherwise as llava_pretrain_7b.  Not run."""
    return pretrain(VICUNA_13B)


def llava_finetune_13b() -> Recipe:
    """Stage 2 of LLaVA-1.5 with SEC, 13B; otherwise as llava_finetune_7b.  Not run."""
    return finetune(VICUNA_13B)


# -- less than the whole -----------------------------------------------------------------------


def llava_finetune_lora_7b() -> Recipe:
    """Stage 2 of LLaVA-1.5 by LoRA of rank 128: 2e-4, the connector at 2e-5, as LLaVA-1.5 has it.  Not run.

    secvit train vlm.llava_finetune_lora_7b --data llava_v1_5_mix665k.json --samples.images DIR \
        --model.init runs/stage1 --output runs/lora
    """
    base = finetune()
    return replace(
        base,
        model=replace(base.model, trained=("connector",), lora=128, lora_alpha=256),
        optim=Optim(lr=2e-4, connector_lr=2e-5),
        loop=replace(base.loop, sharding="ddp"),
    )


def llava_adapt_7b() -> Recipe:
    """SEC in a LLaVA-1.5 that is trained already, which then learns to read its tokens, by LoRA.  Not run.

    secvit train vlm.llava_adapt_7b --data CONVERSATIONS.json --samples.images DIR --output runs/adapted

    Begins as mean tokens of the released weights, without [cls], which their MLP never saw.
    """
    base = llava_finetune_lora_7b()
    return replace(base, model=replace(base.model, base="llava-hf/llava-1.5-7b-hf", extra_token=None))
