"""What a file computes, held against PyTorch."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from secvit.export.exported import Exported, first_line
from secvit.export.tracing import random_images

logger = logging.getLogger(__name__)


@torch.no_grad()
def compare(
    network: nn.Module,
    made: Exported,
    sides: tuple[int, int],
    step: int | None,
    images: Tensor | None,
    tolerance: float,
) -> dict[str, Any]:
    """Differences to PyTorch at several shapes; a ValueError for one above the tolerance.

    `smallest` is the smallest square that the file takes, where it takes any size.
    """
    height, width = sides
    shapes = [(1, height, width), (3, height, width)]
    if step is not None:
        shapes += [(1, height + step, width + 2 * step), (2, height + height // 2 // step * step, width)]
    samples = [random_images(*_shape(shape)) for shape in shapes]
    samples += [] if images is None else list(images.float().cpu().split(4))
    differences = []
    for sample in samples:
        try:
            difference = _difference(made.run(sample), network(sample))
        except Exception as error:  # guards of torch.export, shapes that a runtime does not take
            raise ValueError(_failed(made, sample, first_line(error), step)) from error
        if not difference <= tolerance:
            text = f"logits differ from PyTorch's by {difference:.1e} of the largest; {tolerance:.1e} is let pass"
            raise ValueError(_failed(made, sample, text, step))
        differences.append(difference)
    measured = {
        "largest_difference": max(differences), "tolerance": tolerance, "shapes": [list(x.shape) for x in samples],
        "unit": "largest |runtime - PyTorch| / largest |PyTorch|, float32 on a CPU",
    }  # fmt: skip
    return {**measured, "smallest": None if step is None else _smallest(network, made, min(sides), step, tolerance)}


def _smallest(network: nn.Module, made: Exported, side: int, step: int, tolerance: float) -> int:
    """The first of step, 2 step, 4 step ... px, up from 8 px, at which the file computes what PyTorch does."""
    smaller = step * math.ceil(8 / step)
    while smaller < side:
        with contextlib.suppress(Exception):  # too small for the network, or for what was traced
            sample = random_images(1, (smaller, smaller))
            if _difference(made.run(sample), network(sample)) <= tolerance:
                return smaller
        smaller *= 2
    return side


def _failed(made: Exported, sample: Tensor, reason: str, step: int | None) -> str:
    remedy = "export without dynamic, or in another format" if step else "another format, or a larger tolerance"
    return f"{made.runtime}, images {tuple(sample.shape)}: {reason}; nothing was written.  Remedy: {remedy}"


def at_own_precision(
    network: nn.Module, made: Exported, images: Tensor | None, sides: tuple[int, int]
) -> dict[str, Any]:
    """How far the precision that a runtime chooses itself is from PyTorch's float32."""
    assert made.own_precision is not None
    precision, run = made.own_precision
    sample = random_images(8, sides) if images is None else images.float().cpu()
    with torch.no_grad():
        expected = network(sample)
    logits = run(sample)
    difference = _difference(logits, expected)
    logger.info("export: %s computes in %s here: %.1e from PyTorch", made.runtime, precision, difference)
    return {"precision": precision, "largest_difference": difference, "same_class": same_class(logits, expected)}


def _difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest logit; NaN if any logit is."""
    if logits.shape != expected.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)}, and PyTorch gives {tuple(expected.shape)}")
    return ((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()  # all may be 0


def same_class(logits: Tensor, expected: Tensor) -> float:
    """The share of images, or of pixels, whose largest logit is the same."""
    return (logits.argmax(1) == expected.argmax(1)).double().mean().item()


def _shape(shape: tuple[int, int, int]) -> tuple[int, tuple[int, int]]:
    return shape[0], shape[1:]
