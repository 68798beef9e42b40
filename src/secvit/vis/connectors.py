"""Which parts of a photo each output token of a connector is made of, laid over the photo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from secvit import connectors
from secvit.connectors import Merged
from secvit.connectors.positions import Grid, grid_of
from secvit.draw.picture import FAINT, INK, check_output, new_figure, save
from secvit.images import read_image, to_rgb
from secvit.models.saved import load_model
from secvit.vis.clusters import normalised, weights_note

DPI = 150
PANEL = 340  # px, the long side
CORNERS = ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7))
SHOWN = ("sec", "random", "window", "tome")
MARK = "#e8401c"

Output = int | tuple[float, float]


def draw_merged(
    image: Image.Image,
    merged: Mapping[str, Merged],
    grid: Grid | None = None,
    outputs: Sequence[Output] = CORNERS,
    title: str = "",
    note: str = "",
) -> Figure:
    """A row per connector: where all its output tokens lie, then what some of them are made of.

    image: as the tower saw it.  merged: a name and what `Connector.merged` says of this one image (B = 1).
    grid (H, W): of the tower's tokens; a square if None.
    outputs: numbers of output tokens, or places (x, y), 0..1, for the output that took most of the patch there.
    Patches that an output holds keep their colours, the more the heavier they weigh in it; the cross is its weighted
    mean place.
    """
    merged = {name: _of_one_image(name, one) for name, one in merged.items()}
    factor = PANEL / max(image.size)
    width, height = (max(60, round(side * factor)) for side in image.size)
    photo = image.resize((width, height), Image.Resampling.LANCZOS)
    gap, line, margin = 14, 22, 30
    head = margin + (36 if title else 0) + (30 if note else 0)
    row_height = 2 * line + height + 26
    columns = 1 + len(outputs)
    page = (2 * margin + columns * width + (columns - 1) * gap, head + len(merged) * row_height)
    figure = new_figure(page[0] / DPI, page[1] / DPI)
    figure.text(margin / page[0], 1 - 18 / page[1], title, size=12, color=INK, weight="bold", va="top")
    figure.text(margin / page[0], 1 - (head - 32) / page[1], note, size=8, color=FAINT, va="top")

    def panel(row: int, column: int, pixels: np.ndarray, words: str):
        x, y = margin + column * (width + gap), head + row * row_height
        first, _, second = words.partition("\n")
        figure.text(x / page[0], 1 - y / page[1], first, size=8.5, color=INK, weight="bold", va="top")
        figure.text(x / page[0], 1 - (y + line) / page[1], second, size=7.5, color=FAINT, va="top")
        bottom = 1 - (y + 2 * line + height) / page[1]
        axes = figure.add_axes((x / page[0], bottom, width / page[0], height / page[1]))
        axes.imshow(pixels, extent=(0, 1, 1, 0), aspect="auto", interpolation="nearest")
        axes.set(xlim=(0, 1), ylim=(1, 0))
        axes.set_axis_off()
        return axes

    for row, (name, one) in enumerate(merged.items()):
        shape = grid_of(one.weights.shape[-1], grid)
        x, y = one.coordinates.T.numpy()
        spread = float(one.spread.mean())
        words = f"{name}\nall {len(x)} outputs, each spread ±{spread:.2f}"
        axes = panel(row, 0, _faded(photo), words)
        axes.scatter(x, y, c=np.arange(len(x)), cmap=matplotlib.colormaps["viridis"], s=7, linewidths=0)
        for column, output in enumerate(outputs, 1):
            n = _number(output, one, shape)
            held = int((one.weights[n] > 0.01 * one.weights[n].max()).sum())
            words = f"output {n}\nmade of {held} patch{'es' if held > 1 else ''}"
            axes = panel(row, column, lit(photo, one.weights[n].view(shape)), words)
            axes.plot(x[n], y[n], "+", color=MARK, markersize=7, markeredgewidth=1.3)
            if not isinstance(output, int):
                axes.plot(*output, "o", color=MARK, markersize=11, markerfacecolor="none", markeredgewidth=0.9)
    return figure


def lit(photo: Image.Image, weights: Tensor) -> np.ndarray:
    """The photo in its colours where patches weigh (H, W), faded elsewhere, with outlines.  -> (h, w, 3) in 0..1"""
    pixels = np.asarray(to_rgb(photo), dtype=np.float64) / 255
    rows = np.arange(photo.height) * weights.shape[0] // photo.height
    columns = np.arange(photo.width) * weights.shape[1] // photo.width
    share = (weights / weights.max()).sqrt().numpy()[rows[:, None], columns][..., None]  # a light one is still seen
    out = share * pixels + (1 - share) * _faded(photo)
    held = share[..., 0] > 0.1
    edge = np.zeros(held.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(held, axis=axis)
        lead, tail = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        lead[axis], tail[axis] = (1, 0), (0, 1)
        edge |= np.pad(change, lead) | np.pad(change, tail)
    return np.where(edge[..., None], 0.1, out)


def picture_of(pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A tower's input as a PIL image, resized and cropped as the tower sees it: pixel_values (3, H, W)."""
    shift, scale = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))
    pixels = (pixel_values.detach().float().cpu() * scale + shift).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())


def merge_photo(
    photo: str | os.PathLike[str],
    output: str | os.PathLike[str],
    names: Sequence[str] = SHOWN,
    num_tokens: int = 144,
    model: str = "secvit_nano.clothing10",
    size: int = 384,
    outputs: Sequence[Output] = CORNERS,
) -> Path:
    """Draw what untrained connectors do to a photo's tokens; returns the picture's path.

    names: of `secvit.connectors`, those that need no [cls] attention.
    model: any name of timm's whose maps have more than `num_tokens` tokens; the deepest such map is taken.
    size: long side in px that the model sees.
    For a LLaVA: `draw_merged(picture_of(...), {"sec": model.model.merged(pixel_values)})`.
    """
    output = check_output(output)
    image = read_image(photo)
    factor = size / max(image.size)
    width, height = (max(1, round(side * factor / 32)) * 32 for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    network = load_model(model)
    tokens, grid = deepest_tokens(network, normalised(image, network), num_tokens)
    merged = {}
    for name in names:
        connector = connectors.create(
            name, tokens.shape[-1], 1, num_tokens, extra_token=None, num_patches=tokens.shape[1]
        )
        if connector.needs_cls_attention:
            raise ValueError(f"{name} needs a tower's [cls] attention; draw it in a LLaVA, by draw_merged")
        merged[name] = connector.eval().merged(tokens, grid=grid)
    title = f"{Path(photo).name}: {tokens.shape[1]} tokens become {num_tokens}"
    warning = "connectors not trained" + (f"; {warning}" if (warning := weights_note(model)) else "")
    note = f"{warning}.  Ring: the patch asked about; cross: mean place of the output that holds it"
    return save(draw_merged(image, merged, grid, outputs, title, note), output)


@torch.inference_mode()
def deepest_tokens(network: Any, image: Tensor, num_tokens: int) -> tuple[Tensor, Grid]:
    """The deepest map of a timm model that has more tokens.  image (3, H, W) -> tokens (1, L, C) and (H, W)"""
    maps = network.forward_intermediates(image.unsqueeze(0), intermediates_only=True)
    for feature_map in reversed(maps):
        grid = (feature_map.shape[-2], feature_map.shape[-1])
        if grid[0] * grid[1] > num_tokens:
            return feature_map.flatten(2).transpose(1, 2), grid
    raise ValueError(f"no map of more than {num_tokens} tokens; choose a larger size or fewer tokens")


def _of_one_image(name: str, merged: Merged) -> Merged:
    if merged.weights.shape[0] != 1:
        raise ValueError(f"{name}: what was merged in {merged.weights.shape[0]} images; give one, Merged(*(x[:1] ...))")
    return Merged(*(x[0].detach().float().cpu() for x in merged))


def _number(output: Output, merged: Merged, grid: Grid) -> int:
    """Number of an output token, of the one that took most of the patch at a place if that is given."""
    count = merged.weights.shape[0]
    if isinstance(output, int):
        if not -count <= output < count:
            raise ValueError(f"output {output}; there are 0 to {count - 1}")
        return output % count
    x, y = output
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(f"output at {output}; places (x, y) go from 0 to 1, from the left and from the top")
    height, width = grid
    patch = min(int(y * height), height - 1) * width + min(int(x * width), width - 1)
    return int(merged.weights[:, patch].argmax())


def _faded(photo: Image.Image) -> np.ndarray:
    grey = np.asarray(to_rgb(photo).convert("L"), dtype=np.float64)[..., None] / 255
    return np.broadcast_to(0.62 + 0.3 * grey, (*grey.shape[:2], 3))
