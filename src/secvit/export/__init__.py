"""A trained network as a file for another runtime, compared with PyTorch in that runtime before it is kept.

torch.export traces the network once.  A .pt2 file is that program, ONNX is made of it, and OpenVINO of the ONNX file.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from secvit.export.comparison import at_own_precision, compare
from secvit.export.exported import Exported
from secvit.export.files import described, described_input, put
from secvit.export.int8 import quantise
from secvit.export.onnx import write_onnx
from secvit.export.openvino import write_openvino
from secvit.export.pt2 import write_pt2
from secvit.export.request import ENDINGS, LAYOUTS, NO_DETECTOR, Format, Request, Task, check_logits, pair
from secvit.export.tracing import size_step, trace

__all__ = ["ENDINGS", "NO_DETECTOR", "WRITERS", "Exported", "export"]

logger = logging.getLogger(__name__)

WRITERS: dict[str, Callable[[ExportedProgram, Path, int | None], Exported]] = {
    "onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2,
}  # fmt: skip


def export(
    model: nn.Module,
    output: str | os.PathLike[str],
    format: Format = "onnx",
    *,
    size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] = (),
    task: Task = "classification",
    crop_pct: float | None = 1.0,
    interpolation: str = "bicubic",
    images: Tensor | None = None,
    dynamic: bool = False,
    int8: bool = False,
    opset: int | None = None,
    tolerance: float = 1e-3,
) -> dict[str, Any]:
    """Write a network for another runtime, compared with PyTorch there, and a JSON file that says how to feed it.

    The file takes normalised images (B, 3, H, W), float32, in batches of any size, and gives logits: (B, classes) of
    a classifier, (B, classes, H, W) of a segmenter.  The model itself is left as it is.
    Returns what the JSON file holds.  A ValueError says why a network cannot be exported, or where the runtime computes
    something else than PyTorch; then nothing is written.

    model: a classifier or a segmenter, on any device; it is exported in float32.
    output: the file: .onnx, .xml for OpenVINO (with a .bin beside it) or .pt2.  The JSON file has .json after that.
    format: onnx for ONNX Runtime and others, openvino, or pt2 for `torch.export.load`.
    size: height and width of the images in px; one number for squares.
    mean: of the pixels, 0 to 1, for each channel; images are normalised by it.
    std: of the pixels, 0 to 1, for each channel.
    classes: their names, in the order of the logits.
    task: classification or segmentation.
    crop_pct: the part of a photo's short side that an image shows, for the JSON file; None where the whole photo
        is resized.
    interpolation: how photos are resized, for the JSON file.
    images: normalised images (N, 3, H, W) to compare on besides random ones; int8 needs real ones to be judged by.
    dynamic: take images of any height and width, not of `size` alone.
    int8: weights of linear layers in 8 bits (ONNX Runtime's dynamic quantisation), refused where that is no use.
    opset: version of ONNX's operators; the exporter's own choice if None.
    tolerance: largest difference to PyTorch that is let pass, as a part of the largest logit.
    """
    request = Request(
        Path(output), format, task, pair(size), mean, std, classes, crop_pct, interpolation, images, int8, opset,
        tolerance,
    )  # fmt: skip
    request.check(model)
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    check_logits(network, request.sides, task, classes)
    return _write(network, request, size_step(network, request.sides) if dynamic else None)


def _write(network: nn.Module, request: Request, step: int | None) -> dict[str, Any]:
    """The files, once they are compared with PyTorch.  step: of heights and widths; None for one size of images."""
    path, sides, images = request.path, request.sides, request.images
    logger.info("export: tracing the network")
    program = trace(network, sides, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as name:
        folder = Path(name)
        logger.info("export: writing %s", path.name)
        made = WRITERS[request.format](program, folder / path.name, request.opset)
        logger.info("export: comparing with PyTorch in %s", made.runtime)
        report = compare(network, made, sides, step, images, request.tolerance)
        if made.own_precision:
            report["at_own_precision"] = at_own_precision(network, made, images, sides)
        facts = {
            "task": request.task,
            "format": request.format,
            "runtime": made.runtime,
            "input": described_input(request, step, report.pop("smallest")),
            "output": {
                "name": "logits", "layout": LAYOUTS[request.task], "dtype": "float32",
                "classes": list(request.classes),
            },
            "compared_with_pytorch": report,
            **({"int8": quantise(folder / path.name, network, made, images, sides)} if request.int8 else {}),
            "made_with": {"torch": torch.__version__, **made.versions},
            "files": {file.name: described(file) for file in sorted(folder.iterdir())},
        }  # fmt: skip
        put(folder, path, facts)
    return facts
