"""Figure 4: the clusters of a network's stages, laid over the photo they were made of."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import secvit.models
from secvit.images import read_image
from secvit.models.saved import has_weights, load_model
from secvit.models.secvit import SECAttention
from secvit.vis.picture import FAINT, INK, check_output, new_figure, save

LONG_SIDE = 640  # px a network sees unless told otherwise
PANEL_AREA = 620 * 465  # px of a panel, whatever the photo's proportions
DPI = 150
OPACITY = 0.68


@dataclass(frozen=True)
class ClusterMap:
    """The partition that one head of one block makes of its grid of tokens.

    labels (H, W): cluster of each token, 0 = least like the mean key, M - 1 = most.
    stage, block, head: where, counted from 0; `heads` is how many there are.
    partition: "sec", or the rival that the model uses instead; a rival's labels are no ranks.
    """

    labels: Tensor
    num_clusters: int
    stage: int
    block: int
    head: int
    heads: int
    partition: str = "sec"

    @property
    def sizes(self) -> Tensor:
        """Tokens in each cluster.  (M,)"""
        return self.labels.flatten().bincount(minlength=self.num_clusters)

    def __str__(self) -> str:
        height, width = self.labels.shape
        if self.num_clusters == 1:
            where = f"stage {self.stage + 1}, all {self.heads} heads"
            return f"{where}\nfull attention: 1 × {height * width} tokens, grid {width}×{height}"
        where = f"stage {self.stage + 1}, head {self.head + 1} of {self.heads}"
        low, high = int(self.sizes.min()), int(self.sizes.max())
        size = f"{low}" if low == high else f"{low}–{high}"
        return f"{where}\n{self.num_clusters} clusters × {size} tokens, grid {width}×{height}"


# -- recording ---------------------------------------------------------------------------------


def cluster_maps(
    model: nn.Module,
    image: Tensor,
    stages: Sequence[int] | None = None,
    head: int | str = 0,
    block: int = -1,
) -> list[ClusterMap]:
    """The partitions that a SECViT makes of one normalised image (3, H, W), a map per stage and head.

    stages: counted from 0; all of them if None.  head: one, or "all".  block: -1 is a stage's last.
    The model is left as it was, modes included.
    """
    image = image[0] if image.dim() == 4 and image.shape[0] == 1 else image
    if image.dim() != 3:
        raise ValueError(f"image of shape {tuple(image.shape)}; give one image (3, H, W)")
    layers = _layers(model, stages, head, block)
    maps: list[ClusterMap] = []

    def record(stage: int, block: int) -> Callable[[nn.Module, tuple[Tensor, Tensor]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            x, table = inputs
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                plan = layer.plan(x, table)  # forked: a random partition is drawn again by the layer itself
            labels = plan.labels[0].unflatten(-1, x.shape[1:3]).cpu()
            for i in range(len(labels)) if head == "all" else [int(head)]:
                where = (stage, block, i, len(labels), layer.partition)
                maps.append(ClusterMap(labels[i], plan.num_clusters, *where))

        return hook

    hooks = [layer.register_forward_pre_hook(record(stage, block)) for stage, (block, layer) in layers.items()]
    like = next(model.parameters())
    try:
        with _evaluating(model), torch.inference_mode():
            model.forward_features(image[None].to(like))
    finally:
        for handle in hooks:
            handle.remove()
    return maps


def _layers(
    model: nn.Module, stages: Sequence[int] | None, head: int | str, block: int
) -> dict[int, tuple[int, SECAttention]]:
    """Block number and attention of each chosen stage."""
    if not isinstance(model, secvit.models.SECViT):
        raise ValueError(
            f"{type(model).__name__} is not a SECViT; choose from {', '.join(timm.list_models('secvit_*'))}"
        )
    found = {}
    for stage in sorted(set(range(len(model.stages)) if stages is None else stages)):
        if not 0 <= stage < len(model.stages):
            raise ValueError(f"stage {stage}; this model has stages 0 to {len(model.stages) - 1}")
        blocks = model.stages[stage].blocks
        if not -len(blocks) <= block < len(blocks):
            raise ValueError(f"block {block}; stage {stage} has blocks 0 to {len(blocks) - 1}, or -1 for the last")
        layer = blocks[block].attn
        if head != "all" and not (isinstance(head, int) and 0 <= head < layer.num_heads):
            raise ValueError(f'head {head!r}; stage {stage} has heads 0 to {layer.num_heads - 1}, or "all" of them')
        found[stage] = (block % len(blocks), layer)
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# -- drawing -----------------------------------------------------------------------------------


def draw_clusters(
    image: Image.Image,
    maps: Sequence[ClusterMap],
    title: str = "",
    note: str = "",
    opacity: float = OPACITY,
) -> Figure:
    """Figure 4 (left), supplement figure 1: the photo, then a panel per map, clusters coloured by rank and outlined.

    Colours mean the same in all panels: dark = least like the mean key, bright = most like it.
    """
    width, height = _panel_size(image)
    columns = _columns(len(maps) + 2, width / height)
    rows = math.ceil((len(maps) + 2) / columns)
    gap, line, margin = 26, 24, 40
    head = 30 + (44 if title else 0) + (34 if note else 0)
    total_w = 2 * margin + columns * width + (columns - 1) * gap
    total_h = head + rows * (height + 2 * line + gap) + margin // 2
    figure = new_figure(total_w / DPI, total_h / DPI)

    def text(x: float, y: float, words: str, size: float, colour: str, **more: Any) -> None:
        figure.text(x / total_w, 1 - y / total_h, words, size=size, color=colour, va="top", **more)

    def panel(i: int, pixels: np.ndarray, words: str) -> None:
        x = margin + i % columns * (width + gap)
        y = head + i // columns * (height + 2 * line + gap)
        first, _, second = words.partition("\n")
        text(x, y, first, 9.5, INK, weight="bold")
        text(x, y + line, second, 8.5, FAINT)
        bottom = 1 - (y + 2 * line + 6 + height) / total_h
        axes = figure.add_axes((x / total_w, bottom, width / total_w, height / total_h))
        axes.imshow(pixels, interpolation="nearest", aspect="auto")
        axes.set_axis_off()

    text(margin, 24, title, 13, INK, weight="bold")
    text(margin, 24 + (40 if title else 0), note, 9, FAINT)
    photo = image.resize((width, height), Image.Resampling.LANCZOS)
    panel(0, np.asarray(photo), f"image\n{image.width}×{image.height} px, as the network sees it")
    for i, found in enumerate(maps):
        panel(i + 1, overlay(photo, found, opacity), str(found))
    x = margin + (len(maps) + 1) % columns * (width + gap)
    y = head + (len(maps) + 1) // columns * (height + 2 * line + gap)
    rival = next((found.partition for found in maps if found.partition != "sec"), None)
    if rival:
        text(x, y + 2 * line + 6, f"Partition: {rival.replace('_', ' ')}. {RIVAL}", 8.5, FAINT, linespacing=1.45)
    else:
        scale = (x / total_w, 1 - (y + 2 * line + 28) / total_h, width / total_w, 22 / total_h)
        axes = figure.add_axes(scale)
        axes.imshow(rank_colours(256)[None], aspect="auto", alpha=0.85)
        axes.set_axis_off()
        text(x, y + 2 * line + 36, "least like the mean key", 8.5, INK)
        text(x + width, y + 2 * line + 36, "most like it", 8.5, INK, ha="right")
        text(x, y + 2 * line + 84, LEGEND, 8.5, FAINT, linespacing=1.45)
    return figure


LEGEND = """\
Each head ranks its tokens by the cosine of their
keys to the mean key, and cuts the ranking into
clusters of equal size. Tokens of one colour
attend to each other."""
RIVAL = "Tokens of one\ncolour attend to each other."


def overlay(photo: Image.Image, found: ClusterMap, opacity: float = OPACITY) -> np.ndarray:
    """Clusters in the colours of their ranks over the greyed photo, with thin outlines.  -> (H, W, 3) in 0..1"""
    grey = np.asarray(photo.convert("L"), dtype=np.float64)[..., None] / 255
    if found.num_clusters == 1:
        return np.broadcast_to(0.25 + 0.6 * grey, (*grey.shape[:2], 3))
    labels = _enlarged(found.labels, photo.height, photo.width)
    colours = rank_colours(found.num_clusters)[labels]
    blended = opacity * colours + (1 - opacity) * grey
    cell = min(photo.height / found.labels.shape[0], photo.width / found.labels.shape[1])
    strength = min(max(cell / 14 - 0.3, 0.0), 0.75)  # outlines of tiny tokens would be all one sees
    edge = np.zeros(labels.shape, dtype=bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return np.where(edge[..., None], (1 - strength) * blended + strength * 0.05, blended)


def rank_colours(num_clusters: int) -> np.ndarray:
    """A colour per cluster by its rank, from a scale of even perceptual steps.  -> (M, 3)"""
    places = np.linspace(0, 1, num_clusters) if num_clusters > 2 else np.array([0.2, 0.85])
    return matplotlib.colormaps["viridis"](places)[:num_clusters, :3]


def _enlarged(labels: Tensor, height: int, width: int) -> np.ndarray:
    rows = np.arange(height) * labels.shape[0] // height
    columns = np.arange(width) * labels.shape[1] // width
    return labels.numpy()[rows[:, None], columns]


def _panel_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in px for the photo's proportions, kept between 1 : 2.5 and 2.5 : 1."""
    ratio = min(max(image.width / image.height, 0.4), 2.5)
    return round(math.sqrt(PANEL_AREA * ratio)), round(math.sqrt(PANEL_AREA / ratio))


def _columns(panels: int, ratio: float) -> int:
    """As many columns as make the page nearest to 16 : 9, with few empty places."""

    def badness(columns: int) -> float:
        rows = math.ceil(panels / columns)
        empty = columns * rows - panels
        return abs(math.log(columns * ratio / rows * 9 / 16)) + 0.5 * empty / columns

    return min(range(1, panels + 1), key=badness)


# -- from a photo to a picture -----------------------------------------------------------------


def cluster_photo(
    photo: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    model: str = "secvit_tiny",
    checkpoint: str | os.PathLike[str] | None = None,
    size: int | None = None,
    head: int | str = 0,
) -> Path:
    """Draw the clusters of each stage for a photo of any format and size; returns the picture's path.

    output: a file, replaced if it exists; None takes a free name, PHOTO_clusters.png, in the current
        folder.
    checkpoint: weights; without them those that ship under the model's name, else random ones, and
        the picture says so.
    size: long side in px that the network sees; None keeps the photo's, but at most 640.
    """
    output = check_output(_free_name(Path(photo)) if output is None else output)
    if size is not None and size < 1:
        raise ValueError(f"size={size}; choose the long side in px, for example 448")
    image = _sized(read_image(photo), size)
    network = load_model(model, checkpoint)
    maps = cluster_maps(network, normalised(image, network), head=head)
    maps = [m for m in maps if m.num_clusters > 1 or m.head == 0 or head != "all"]
    note = f"weights: {'/'.join(Path(checkpoint).parts[-2:])}" if checkpoint else weights_note(model)
    return save(draw_clusters(image, maps, f"{Path(photo).name} in {model}", note), output)


UNTRAINED = "random weights, not trained: the clusters follow colour, texture and place, not meaning"


def weights_note(model: str) -> str:
    """What a picture says of the weights behind a name alone."""
    return f"weights: {model}" if has_weights(model) else UNTRAINED


def normalised(image: Image.Image, model: nn.Module) -> Tensor:
    """A photo as the model's input, its own mean and deviation taken out.  -> (3, H, W)"""
    config = timm.data.resolve_data_config(model=model)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    return (pixels - mean) / std


def _sized(image: Image.Image, size: int | None) -> Image.Image:
    long = max(image.size)
    factor = (size or min(long, LONG_SIDE)) / long
    if factor == 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _free_name(photo: Path) -> Path:
    """PHOTO_clusters.png in the current folder, numbered where that exists."""
    path, number = Path(f"{photo.stem}_clusters.png"), 2
    while path.exists():
        path, number = Path(f"{photo.stem}_clusters_{number}.png"), number + 1
    return path
