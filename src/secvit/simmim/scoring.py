"""How well hidden pixels of held-out images are predicted, in a number and in a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from secvit.files import write_atomically
from secvit.precision import on_gpu_autocast
from secvit.processes import sum_over_processes
from secvit.simmim.data import EvalView
from secvit.simmim.task import MaskedImageTask, stretch

AT_ONCE = 256  # images that a process measures at once, whatever the batch of a training step is


@torch.no_grad()
def evaluate(
    task: MaskedImageTask,
    dataset: EvalView,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    precision: str = "no",
) -> dict[str, float]:
    """Mean over images of the loss and of `mean_baseline`, each image with its own fixed mask.

    precision: on a GPU, "bf16" and "fp16" look under autocast, as `Loop.precision` trains.
    Of many processes each measures a share of the images, and all return the numbers of all of them.
    """
    task.to(device).eval()
    sums = torch.zeros(3, dtype=torch.float64)  # loss, mean_baseline, images
    for batch in dataset.batches(batch_size, workers):
        count = len(batch["image"])
        # .forward: a task compiled for training would be compiled once more for evaluation
        with on_gpu_autocast(device, precision):
            outputs = task.forward({name: value.to(device) for name, value in batch.items()})
        sums += torch.tensor([count * float(outputs["loss"]), count * float(outputs["mean_baseline"]), count])
    loss, baseline, images = sum_over_processes(sums).tolist()
    if not images:
        raise ValueError(f"{dataset.images.name}: no readable image to evaluate on; repair the data")
    return {
        "loss": loss / images,
        "mean_baseline": baseline / images,
        "images": int(images),
        "skipped": len(dataset.skipped),
    }


@torch.no_grad()
def draw_reconstructions(task: MaskedImageTask, dataset: EvalView, path: Path, count: int = 6) -> None:
    """A PNG with a row for each of some images: the image, what is visible of it, the hidden patches filled in."""
    task.eval()
    count = min(count, len(dataset))
    batch = dataset.__getitems__([i * len(dataset) // count for i in range(count)])
    if not len(batch["image"]):
        return
    pictures = reconstructions(task, batch, dataset.mean, dataset.std)
    file = io.BytesIO()
    _table(pictures).save(file, "png")
    write_atomically(path, file.getvalue())


@torch.no_grad()
def reconstructions(
    task: MaskedImageTask, batch: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> dict[str, list[Image.Image]]:
    """Images of a batch (normalised by mean and std), what is visible of them, and with hidden patches filled in."""
    device = task.mask_token.device
    image, mask = batch["image"].to(device), batch["mask"].to(device)
    hidden = stretch(mask, *image.shape[2:])
    filled = torch.where(hidden, task.reconstruct(image, mask), image)
    columns = {"image": image, "visible": image.masked_fill(hidden, 0), "hidden part predicted": filled}
    return {name: _pixels(x, mean, std) for name, x in columns.items()}


def _pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[Image.Image]:
    """Normalised (B, 3, H, W) as pictures of at least 128 px."""
    shift, scale = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (mean, std))
    bytes_ = (255 * (x * scale + shift)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()
    pictures = [Image.fromarray(row.contiguous().numpy()) for row in bytes_]
    times = -(-128 // pictures[0].width)
    return [p.resize((p.width * times, p.height * times), Image.Resampling.NEAREST) for p in pictures]


def _table(columns: dict[str, list[Image.Image]], gap: int = 4, caption: int = 16) -> Image.Image:
    """Columns of pictures of one size under their names."""
    width, height = next(iter(columns.values()))[0].size
    rows = len(next(iter(columns.values())))
    table = Image.new("RGB", (len(columns) * (width + gap) + gap, caption + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(table)
    for c, (name, pictures) in enumerate(columns.items()):
        draw.text((gap + c * (width + gap), 2), name, fill="black")
        for r, picture in enumerate(pictures):
            table.paste(picture, (gap + c * (width + gap), caption + r * (height + gap)))
    return table
