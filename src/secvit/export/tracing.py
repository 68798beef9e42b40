"""The network as a graph of torch.export, for one size of images or for many."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from secvit.export.exported import first_line, quiet

STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 64)  # what networks want heights and widths to be multiples of


@torch.no_grad()
def size_step(network: nn.Module, sides: tuple[int, int]) -> int:
    """What other heights and widths have to be multiples of, 1 for none; a ValueError for a network of one size."""
    height, width = sides
    for step in STEPS:
        if height % step or width % step:
            continue
        with contextlib.suppress(Exception):  # networks refuse sizes in many ways
            network(random_images(1, (height + step, width + 2 * step)))
            return step
    raise ValueError(
        f"{type(network).__name__} takes images of {height} x {width} px alone, as a ViT with a table of positions "
        "does; export without dynamic, a file for each size, or make the network with dynamic_img_size=True, which "
        "timm's ViTs have"
    )


def trace(network: nn.Module, sides: tuple[int, int], step: int | None) -> ExportedProgram:
    """The network as a graph, for any batch, and for any size where there is a `step`."""
    shape = {0: Dim.DYNAMIC}
    height, width = sides
    if step is not None:
        shape |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
        # twice as large, so that a size with one cluster alone is not taken for the rule, and not a square
        height, width = (side + math.ceil(side / step) * step for side in sides)
        width += step * (1 + (width + step == height))
    try:
        with quiet():  # a batch of two: one would be taken for "always one"
            sample = (random_images(2, (height, width)),)
            return torch.export.export(network, sample, dynamic_shapes=(shape,), strict=False)
    except Exception as error:  # the tracer raises whatever the network's code does not survive
        other = " of any size; export without dynamic" if step is not None else ""
        raise ValueError(
            f"{type(network).__name__} cannot be exported{other}: torch.export: {first_line(error)}"
        ) from error


def random_images(count: int, sides: tuple[int, int]) -> Tensor:
    """Random normalised images, always the same: blobs of colour with some noise.  (count, 3, H, W)"""
    random = torch.Generator().manual_seed(0)
    blobs = F.interpolate(torch.randn(count, 3, 5, 5, generator=random), sides, mode="bilinear")
    return 1.5 * blobs + 0.3 * torch.randn(count, 3, *sides, generator=random)
