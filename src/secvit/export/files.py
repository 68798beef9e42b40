"""The JSON file beside an export, and whole files put in their place."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from secvit.export.request import Request
from secvit.files import fsync, write_atomically


def described_input(request: Request, step: int | None, smallest: int | None) -> dict[str, Any]:
    """What the file expects, for whoever prepares images.  step, smallest: of any size, multiples and least side."""
    height, width = request.sides
    crop_pct, interpolation = request.crop_pct, request.interpolation
    if crop_pct is None:
        view = f"resize the image to {height} x {width} px ({interpolation}, antialiased)"
    else:
        view = (
            f"resize the image's short side to {math.floor(min(height, width) / crop_pct)} px "
            f"({interpolation}, antialiased) and take the middle {height} x {width} px"
        )
    sizes = {} if step is None else {"smallest": smallest, "multiple_of": step}
    return {
        "name": "images", "layout": ["batch", "channel", "height", "width"], "dtype": "float32", "channels": "RGB",
        "height": height, "width": width, "any_size": step is not None, **sizes,
        "values": "normalised: (pixel / 255 - mean) / std", "mean": list(request.mean), "std": list(request.std),
        "crop_pct": crop_pct, "interpolation": interpolation, "view": view,
    }  # fmt: skip


def described(file: Path) -> dict[str, Any]:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def put(folder: Path, path: Path, facts: dict[str, Any]) -> None:
    """Move whole files to their place, and write the JSON file last: where it lies, the others are complete."""
    beside = path.with_name(path.name + ".json")
    beside.unlink(missing_ok=True)
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):  # weights before what names them
        with open(file, "rb+") as content:
            os.fsync(content.fileno())
        os.replace(file, path.parent / file.name)
    fsync(path.parent)
    write_atomically(beside, json.dumps(facts, indent=2).encode())
