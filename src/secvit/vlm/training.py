"""From a recipe and a JSON of conversations to a LLaVA that transformers loads, or to a connector (stage 1)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

from secvit.files import check_writable, write_atomically
from secvit.images.names import Names
from secvit.processes import join, share, sum_over_processes, wait
from secvit.train.batches import to_device
from secvit.train.job import Job
from secvit.train.result import Result
from secvit.vlm.adapt import save_connector, unwrapped
from secvit.vlm.cache import Cache
from secvit.vlm.chat import Chat
from secvit.vlm.chat import prepare as for_training
from secvit.vlm.config import Optim, Recipe, Samples
from secvit.vlm.data import IGNORED, Conversations, files, load, read_samples, texts
from secvit.vlm.initial import initial_llava, set_trained
from secvit.vlm.task import Trained, VlmTask, answers
from secvit.weights import weight_bytes

logger = logging.getLogger(__name__)

SCORED = 64  # samples of train that are scored where there are no held-out ones


def train(recipe: Recipe, data: str | Path, output: str | Path = "runs/vlm", resume: str = "auto") -> dict[str, Any]:
    """Train by a recipe, score on held-out conversations if there are any, and return what result.json says.

    data: a JSON file of LLaVA's conversations, or a folder with train.json and maybe val.json (docs/vlm_training.md).
    `output` then holds a model and processor for from_pretrained, with `adapter` beside it for LoRA; or, where the
    connector alone was trained, what `load_connector` reads.  And result.json, config.yaml, log.csv, eval.csv,
    checkpoints/.
    """
    output = Path(output)
    return prepare(recipe, data, output).run(output, resume)


def prepare(recipe: Recipe, data: str | Path, output: Path, resume: str = "auto") -> Job:
    """What a recipe and conversations make of the loop."""
    check_writable(output)
    device = join(cpu=recipe.loop.device == "cpu")  # of many processes, each checks a share of the data
    recipe = replace(recipe, samples=from_anywhere(recipe.samples))
    train_file, val_file = files(data, recipe.samples)
    llava, processor = initial_llava(
        recipe.model, lambda: texts(read_samples(train_file, recipe.samples.images)[0]), recipe.loop.seed
    )
    chat = Chat(for_training(processor, recipe.samples.template, recipe.samples.pad))
    samples, lengths = load(train_file, recipe.samples, chat)
    held_out, held_lengths = load(val_file, recipe.samples, chat) if val_file else (evenly(samples), evenly(lengths))
    half = recipe.loop.precision == "bf16" and recipe.loop.sharding == "ddp"  # sharding wants one dtype in a block
    wrapped = set_trained(llava, recipe.model, recipe.loop.seed, half)
    cached = None
    if recipe.samples.cache:
        cached = Cache(recipe.samples.cache, llava, processor, recipe.loop.precision)
        images = sorted({path for one in [*samples, *held_out] for path in one.images})
        logger.info("%s: looked at %d images", cached.folder, cached.fill(images, device))
        wait()
    group = recipe.loop.batch_size if recipe.samples.group else 0
    dataset = Conversations(samples, chat, lengths, group, cached)
    view = Conversations(held_out, chat, held_lengths, cached=cached)
    split = "val" if val_file else "train"
    if recipe.loop.workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers complain of each loading process

    def score(trained: nn.Module) -> dict[str, float]:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.loop.precision == "bf16"):
            return evaluate(trained.llava, view)  # type: ignore[arg-type]

    def report(done: Result) -> dict[str, Any]:
        return {
            "summary": summary(done.metrics, split, len(view)),
            "data": os.path.abspath(data),
            "split": split,
            **done.metrics,
            "samples": {"train": len(dataset), split: len(view)},
            "tokens_of_a_picture": chat.image_tokens,
            "parameters": sum(p.numel() for p in llava.parameters()),
            "trained_parameters": sum(p.numel() for p in task.parameters() if p.requires_grad),
            "skipped": sorted({*dataset.skipped, *view.skipped}),
        }

    task = VlmTask(wrapped)
    return Job(
        task=task,
        optimizer=create_optimizer(task, recipe.optim),
        dataset=dataset,
        recipe=recipe,
        about={"task": "vlm", "data": os.path.abspath(data)},
        report=report,
        evaluate=score,
        names=Names.of(" ".join([*one.images, one.id]) for one in samples),
        save=lambda done, output: save(done, output, recipe, processor),
    )


def from_anywhere(samples: Samples) -> Samples:
    """With absolute paths, so that a run can be scored from every folder."""
    paths = {name: getattr(samples, name) for name in ("images", "val", "cache")}
    return replace(samples, **{name: os.path.abspath(path) for name, path in paths.items() if path})


def save(done: Result, output: Path, recipe: Recipe, processor: Any) -> None:
    """Write what the run made, for from_pretrained or `load_connector`."""
    assert isinstance(done.model, Trained)
    wrapped: Any = done.model.llava
    llava = unwrapped(wrapped)
    processor.save_pretrained(output)
    if recipe.model.lora:
        wrapped.save_pretrained(output / "adapter")
        llava = wrapped.merge_and_unload()
    if recipe.model.lora or "language" in recipe.model.trained:
        llava.save_pretrained(output)
    else:
        save_connector(llava, output)
        write_atomically(output / "model.safetensors", weight_bytes(llava.model.multi_modal_projector.state_dict()))


def create_optimizer(task: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The optimizer over what learns, with the connector's own learning rate."""
    named = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
    connector = [p for name, p in named if "multi_modal_projector" in name]
    others = [p for name, p in named if "multi_modal_projector" not in name]
    rate = optim.lr if optim.connector_lr is None else optim.connector_lr
    groups = [{"params": ps, "lr": lr} for ps, lr in ((connector, rate), (others, optim.lr)) if ps]
    if not groups:
        raise ValueError("every parameter is frozen; name parts in --model.trained, or give --model.lora")
    return create_optimizer_v2(groups, opt=optim.name, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas)


def evenly(items: Sequence[Any]) -> list[Any]:
    return [items[i * len(items) // min(SCORED, len(items))] for i in range(min(SCORED, len(items)))]


@torch.no_grad()
def evaluate(llava: nn.Module, view: Conversations, batch_size: int = 8) -> dict[str, float]:
    """Loss of an answer's token, share of tokens that are the likeliest, and share of samples where all are.

    In the last, greedy decoding would give each answer word for word, after the true ones before it.
    Of many processes each scores a share, and each has to ask.
    """
    device, sums = next(llava.parameters()).device, torch.zeros(5, dtype=torch.float64)
    indices = share(len(view))
    for at in range(0, len(indices), batch_size):
        batch = to_device(view.__getitems__(indices[at : at + batch_size]), device)
        logits, target = answers(llava, batch)
        rows = (batch["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
        hit = logits.argmax(-1) == target
        missed = torch.zeros(len(batch["labels"]), device=device).index_add_(0, rows, (~hit).float())
        loss = F.cross_entropy(logits.float(), target, reduction="sum")
        counts = (loss, hit.sum(), hit.numel(), (missed == 0).sum(), len(missed))
        sums += torch.tensor([float(value) for value in counts], dtype=torch.float64)
    loss, right, tokens, exact, samples = sum_over_processes(sums).tolist()
    return {"loss": loss / tokens, "token_accuracy": right / tokens, "exact": exact / samples}


def summary(metrics: Mapping[str, float], split: str, samples: int) -> str:
    """One line about an evaluation; "" if there was none."""
    if not metrics:
        return ""
    exact = f"{100 * metrics['exact']:.1f} % of {samples} samples word for word"
    return f"{split} loss {metrics['loss']:.3f}, {100 * metrics['token_accuracy']:.1f} % of answer tokens, {exact}"
