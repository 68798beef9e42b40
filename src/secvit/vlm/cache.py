"""What the connector is given of each image, in files: a frozen tower runs once, whatever is trained after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from secvit.files import write_atomically
from secvit.images import read_image
from secvit.processes import is_first, share

REMEDY = "delete it and start again: it is made anew"


class Cache:
    """Tokens, [cls] and its attention as the tower gave them, a file for each image.

    Another tower, image processor or precision has a folder of its own below `folder`, and so has what one connector
    needs and another does not; connectors of equal needs share one.  An image's file goes by its path, size and date.
    """

    def __init__(self, folder: str | Path, llava: Any, processor: ProcessorMixin, precision: str) -> None:
        self.llava, self.processor, self.precision = llava, processor, precision
        self.folder = Path(folder) / fingerprint(llava, processor, precision)

    def file(self, image: str) -> Path:
        """Where an image's tokens are kept."""
        status = Path(image).stat()
        name = hashlib.sha1(f"{image} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def fill(self, images: Sequence[str], device: torch.device, batch_size: int = 16) -> int:
        """Look at the images that have no file yet -> how many there were.  Of many processes, each takes a share."""
        unseen = [images[i] for i in share(len(images)) if not self.file(images[i]).is_file()]
        inner = self.llava.to(device).model
        half = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")
        silent = not is_first() or None
        for at in tqdm(range(0, len(unseen), batch_size), "looking at images", disable=silent, leave=False):
            part = unseen[at : at + batch_size]
            made = self.processor.image_processor([read_image(path) for path in part], return_tensors="pt")
            with torch.no_grad(), half:
                _, features = inner.connector_inputs(made["pixel_values"].to(device))
            grid = torch.tensor(features.pop("grid"))
            for i, path in enumerate(part):
                row = {name: value[i].cpu().contiguous() for name, value in features.items()}
                file = self.file(path)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, save({**row, "grid": grid}))
        return len(unseen)

    def __call__(self, images: Sequence[str]) -> dict[str, Any]:
        """{"connector_inputs": those of some images}, in a batch.  ValueError for a broken file."""
        rows: list[dict[str, Tensor]] = [_read(self.file(path)) for path in images]
        kinds = {name: value.shape for name, value in rows[0].items()}
        for path, row in zip(images, rows, strict=True):
            if {name: value.shape for name, value in row.items()} != kinds:
                raise ValueError(f"{self.file(path)}: other tokens than of {self.file(images[0])}; {REMEDY}")
        grid = tuple(rows[0].pop("grid").tolist())
        return {
            "connector_inputs": {**{name: torch.stack([row[name] for row in rows]) for name in rows[0]}, "grid": grid}
        }


def _read(file: Path) -> dict[str, Tensor]:
    """What is kept of one image."""
    try:
        row = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: kept features that cannot be read ({error}); {REMEDY}") from None
    if not {"grid", "tokens"} <= row.keys() or row["grid"].shape != (2,) or row["grid"].is_floating_point():
        raise ValueError(f"{file}: no features of an image; {REMEDY}")
    if wrong := [name for name, value in row.items() if not value.isfinite().all()]:
        raise ValueError(f"{file}: {wrong[0]} has values that are not finite; {REMEDY}")
    return row


def fingerprint(llava: PreTrainedModel, processor: ProcessorMixin, precision: str) -> str:
    """What is equal for models whose connectors are given the same."""
    inner, digest = llava.model, hashlib.sha1()
    for name, value in inner.vision_tower.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    connector = inner.multi_modal_projector
    about = {
        "layer": llava.config.vision_feature_layer,
        "cls": connector.needs_cls,
        "cls_attention": connector.needs_cls_attention,
        "precision": precision,
        "images": processor.image_processor.to_dict(),
    }
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
