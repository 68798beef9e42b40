"""npz files of encoded images: jpeg (all bytes), offset (n + 1), label, classes, and name if wanted."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from secvit.images.labelled import Images, check_skipped
from secvit.images.read import read_image

logger = logging.getLogger(__name__)

KEYS = ("jpeg", "offset", "label", "classes")


def read_npz(path: Path, name: str) -> Images:
    """All images of an npz, decoded into memory; they share one size."""
    found = _open(path)
    data, offset, label = found["jpeg"], found["offset"], found["label"]
    classes, entries = [str(c) for c in found["classes"]], found.get("name")
    if len(label) == 0 or len(offset) != len(label) + 1:
        raise ValueError(f"{path}: {len(label)} labels and {len(offset)} offsets; expected n and n + 1")
    if offset[0] != 0 or offset[-1] != len(data) or bool((np.diff(offset) < 0).any()):
        raise ValueError(f"{path}: offsets do not rise from 0 to the {len(data)} bytes of `jpeg`")
    outside = np.flatnonzero((label < 0) | (label >= len(classes)))
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"{path}: entry {i} has label {label[i]}, outside 0..{len(classes) - 1} ({len(outside)} such entries)"
        )
    empty = sorted(set(range(len(classes))) - set(label.tolist()))
    if empty:
        raise ValueError(f"{path}: no image of class {classes[empty[0]]!r}; remove it from `classes`")
    raw, kept, skipped = data.tobytes(), [], []
    pixels: list[Tensor] = []
    for i in tqdm(range(len(label)), desc=f"decoding {path.name}", disable=None, leave=False):
        entry = f"{path}[{i}]" + (f" ({entries[i]})" if entries is not None else "")
        try:
            image = read_image(raw[int(offset[i]) : int(offset[i + 1])], entry)
        except ValueError as error:
            skipped.append(entry)
            logger.warning("skipped: %s", error)
            check_skipped(skipped, len(label))
            continue
        if pixels and image.size != (pixels[0].shape[2], pixels[0].shape[1]):
            raise ValueError(
                f"{entry}: {image.width}x{image.height} px, but the first is "
                f"{pixels[0].shape[2]}x{pixels[0].shape[1]}; use an image folder for mixed sizes"
            )
        pixels.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous())
        kept.append(i)
    names = tuple(str(entries[i]) if entries is not None else str(i) for i in kept)
    labels = torch.from_numpy(label[kept].astype(np.int64))
    return Images(name, tuple(classes), labels, torch.stack(pixels), names, tuple(skipped))


def _open(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [k for k in KEYS if k not in file]
            if missing:
                raise ValueError(f"lacks {', '.join(missing)}; it needs {', '.join(KEYS)}")
            return {k: file[k] for k in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, TypeError) as error:
        raise ValueError(f"{path}: not an npz of encoded images ({error})") from None


def npz_classes(path: Path) -> tuple[str, ...]:
    return tuple(str(c) for c in _open(path)["classes"])
