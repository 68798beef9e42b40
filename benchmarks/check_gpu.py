"""Training steps of each family at real sizes: does it run on this GPU, in how much memory, how many images a second.

PYTHONPATH=src python benchmarks/check_gpu.py                  # needs torch, torchvision, timm, transformers
PYTHONPATH=src python benchmarks/check_gpu.py --tiny --device cpu   # the same path at small sizes

Networks, losses, optimizers, precision and clipping are those of the recipes, by the training loop's own step; images,
boxes, masks and words are random, and so are the weights.  A family that fails does not stop the others.  Writes
JSON to --output, else to $OUT, else to benchmarks/results, after every family; 1 where one failed or gave no number.
"""

import argparse
import gc
import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secvit import recipes
from secvit.files import write_atomically
from secvit.provenance import provenance
from secvit.train.batches import to_device
from secvit.train.step import Step

RESULTS = Path(__file__).parent / "results"
STEPS = 3  # timed, after one that is not


@dataclass(frozen=True)
class Case:
    """A family: its recipe's name, images a step, their height and width, and what makes task, optimizer and batch."""

    recipe: str
    batch: int
    size: tuple[int, int]
    build: Callable[[Any, "Case"], tuple[nn.Module, torch.optim.Optimizer, Any]]


def classifier(recipe: Any, case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    from secvit.classification.task import ClassificationTask
    from secvit.models.saved import create
    from secvit.train.optim import create_optimizer

    model = create(recipe.model.name, 1000, recipe.model.args)
    shares = torch.rand(case.batch, 1000).softmax(dim=-1)  # targets are mixed
    batch = {"image": torch.randn(case.batch, 3, *case.size), "target": shares}
    return ClassificationTask(model, recipe.label_smoothing), create_optimizer(model, recipe.optim), batch


def detector(recipe: Any, case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    from secvit.detection.saved import create
    from secvit.detection.task import DetectionTask
    from secvit.train.optim import create_optimizer

    task = DetectionTask(create(recipe.model, 80), recipe.model.norm_eval)
    height, width = case.size
    corners = torch.rand(case.batch, 8, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corners, corners + torch.rand(case.batch, 8, 2) * torch.tensor([width, height]) / 3 + 8], dim=-1)
    targets = []
    for own in boxes:
        masks = torch.zeros(len(own), height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, own.long().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        targets.append({"boxes": own, "labels": torch.randint(1, 81, (len(own),)), "masks": masks})
    images = list(torch.rand(case.batch, 3, *case.size))
    return task, create_optimizer(task, recipe.optim), {"images": images, "targets": targets}


def segmenter(recipe: Any, case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    from secvit.segmentation.prediction import create
    from secvit.segmentation.task import SegmentationTask
    from secvit.train.optim import create_optimizer

    model = create(recipe.model, 150)
    target = torch.randint(0, 150, (case.batch, *case.size), dtype=torch.uint8)
    batch = {"image": torch.randn(case.batch, 3, *case.size), "target": target}
    return SegmentationTask(model, recipe.auxiliary), create_optimizer(model, recipe.optim), batch


def masked_images(recipe: Any, case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    from secvit.simmim.training import create_seeded
    from secvit.train.optim import create_optimizer

    task = create_seeded(recipe)
    rows, columns = (side // recipe.masking.patch for side in case.size)
    hidden = math.ceil(recipe.masking.ratio * rows * columns)
    mask = torch.rand(case.batch, rows * columns).argsort(dim=-1) < hidden
    batch = {"image": torch.randn(case.batch, 3, *case.size), "mask": mask.view(-1, rows, columns)}
    return task, create_optimizer(task, recipe.optim), batch


def language_model(recipe: Any, case: Case) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """LLaVA's stage 1 on CLIP-L/14 and a Llama of 1.2 B weights, or small ones: the connector learns, 144 tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig

    from secvit.vlm.initial import set_trained
    from secvit.vlm.llava import SecLlavaConfig, SecLlavaForConditionalGeneration
    from secvit.vlm.task import VlmTask
    from secvit.vlm.training import create_optimizer

    large = case.size[0] >= 336
    width = 2048 if large else 64
    vision = CLIPVisionConfig(
        hidden_size=1024 if large else 64, intermediate_size=4096 if large else 128, image_size=case.size[0],
        num_hidden_layers=24 if large else 2, num_attention_heads=16 if large else 4, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=16 if large else 2,
        num_attention_heads=width // 64, vocab_size=32064 if large else 512, pad_token_id=0,
    )  # fmt: skip
    patches = (case.size[0] // 14) ** 2
    config = SecLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, image_seq_length=patches,
        connector={"name": "sec", "num_tokens": patches // 4, "extra_token": None},
    )  # fmt: skip
    llava = SecLlavaForConditionalGeneration(config)
    count = llava.config.image_seq_length
    task = VlmTask(set_trained(llava, recipe.model, half=recipe.loop.precision == "bf16"))
    words = torch.randint(4, text.vocab_size, (case.batch, 64))
    ids = torch.cat([torch.full((case.batch, count), 3), words], dim=1)
    labels = ids.masked_fill(ids == 3, -100)
    pixels = torch.randn(case.batch, 3, *case.size)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    return task, create_optimizer(task, recipe.optim), batch


FULL = [
    Case("classification.imagenet_secvit_tiny", 256, (224, 224), classifier),
    Case("classification.imagenet_secvit_small", 128, (224, 224), classifier),
    Case("classification.imagenet_secvit_base", 128, (224, 224), classifier),
    Case("classification.imagenet_sec_deit_small", 256, (224, 224), classifier),
    Case("classification.imagenet_sec_swin_tiny", 128, (224, 224), classifier),
    Case("simmim.imagenet_sec_swin_base", 64, (192, 192), masked_images),
    Case("segmentation.ade20k_upernet_secvit_small", 4, (512, 512), segmenter),
    Case("detection.mask_rcnn_1x_secvit_small", 2, (800, 1280), detector),
    Case("detection.cascade_mask_rcnn_3x_secvit_small", 2, (800, 1280), detector),
    Case("detection.retinanet_1x_secvit_small", 2, (800, 1280), detector),
    Case("vlm.llava_pretrain_7b", 16, (336, 336), language_model),
]
SIDES = {
    classifier: (32, 32),
    masked_images: (64, 64),
    segmenter: (64, 64),
    detector: (96, 128),
    language_model: (56, 56),
}
TINY = [
    replace(next(case for case in FULL if case.build is build), batch=2, size=size) for build, size in SIDES.items()
]


def measure(case: Case, device: torch.device, tiny: bool) -> dict[str, Any]:
    """What a step takes.  Raises what the step raises."""
    torch.manual_seed(0)
    recipe = recipes.find(case.recipe)()
    if tiny:
        recipe = importlib.import_module(f"secvit.{recipes.task_of(recipe)}.recipes").tiny(recipe)
    task, optimizer, batch = case.build(recipe, case)
    task.to(device).train()
    batch = to_device(batch, device)
    step = Step(task, optimizer, replace(recipe.loop, batch_size=case.batch, parts=1, compile=False), device)
    step.prepare()
    if on_gpu := device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    outcomes, seconds = [], []
    for i in range(1 + STEPS):
        started = time.perf_counter()
        outcomes.append(step([batch], seed=i, stopping=False))  # reads its numbers back, so it waits for the device
        seconds.append(time.perf_counter() - started)
    numbers = outcomes[-1].numbers
    return {
        "loss": [outcome.numbers["loss"] for outcome in outcomes],
        "grad_norm": numbers["grad_norm"],
        "finite": all(outcome.finite for outcome in outcomes) and all(map(math.isfinite, numbers.values())),
        "parameters": sum(p.numel() for p in task.parameters()),
        "precision": recipe.loop.precision,
        "seconds": {"first": seconds[0], "later": seconds[1:]},
        "images_per_second": case.batch * STEPS / sum(seconds[1:]),
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
    }


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny recipes at small sizes, one of each task")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu only with --tiny")
    parser.add_argument("--minutes", type=float, default=4.5, help="begin no family after this time")
    parser.add_argument("--output", help="folder for the JSON (default: $OUT, else benchmarks/results)")
    asked = parser.parse_args(words)
    if asked.device == "cpu" and not asked.tiny:
        parser.error("real sizes need a GPU; add --tiny for a CPU")
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks/check_gpu.py: torch finds no GPU here; --tiny --device cpu runs the same path", file=sys.stderr
        )
        return 2
    device = torch.device(asked.device)
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    version, today = torch.__version__.split("+")[0], datetime.now(UTC).date()
    kind = "check-gpu-tiny" if asked.tiny else "check-gpu"
    hardware = re.sub(r"[^a-z0-9]+", "-", name.lower())
    target = Path(asked.output or os.environ.get("OUT") or RESULTS) / f"{kind}_{hardware}_torch{version}_{today}.json"
    result: dict[str, Any] = {
        "kind": "secvit check-gpu", "recipe": {"steps": STEPS, "tiny": asked.tiny}, **provenance(), "gpu": name,
        "seed": 0, "date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": [],
    }  # fmt: skip
    ends = time.monotonic() + 60 * asked.minutes
    for case in TINY if asked.tiny else FULL:
        about = {"recipe": case.recipe, "batch": case.batch, "size": list(case.size)}
        if time.monotonic() > ends:
            result["rows"].append({**about, "error": "not run: no time left"})
        else:
            try:
                result["rows"].append({**about, **measure(case, device, asked.tiny)})
            except Exception as error:  # a missing package, memory, a kernel: the others are to be seen all the same
                result["rows"].append({**about, "error": f"{type(error).__name__}: {str(error)[:500]}"})
            gc.collect()
            torch.cuda.empty_cache()
        print(line(result["rows"][-1]), flush=True)
        write_atomically(target, (json.dumps(result, indent=1) + "\n").encode())
    print(target)
    return 0 if all(row.get("finite") for row in result["rows"]) else 1


def line(row: dict[str, Any]) -> str:
    height, width = row["size"]
    about = f"{row['recipe']:45} {row['batch']:4} x {height}x{width}"
    if "error" in row:
        return f"{about}  {row['error']}"
    memory = "" if row["peak_mib"] is None else f", {row['peak_mib'] / 1024:.1f} GiB"
    numbers = f"loss {row['loss'][0]:.3f} -> {row['loss'][-1]:.3f}, {row['images_per_second']:.1f} images/s{memory}"
    return f"{about}  {numbers}" + ("" if row["finite"] else "  NOT FINITE")


if __name__ == "__main__":
    sys.exit(main())
