"""Figure 4 (left): the clusters of a network's stages, laid over the photo they were made of."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from secvit.draw.panels import Legend, Panel, draw_panels, in_rows, panel_size
from secvit.images import to_rgb
from secvit.models.saved import has_weights
from secvit.ops import Partition, shown_name
from secvit.vis.record import LayerKeys, record_keys

LONG_SIDE = 640  # px a network sees unless told otherwise
OPACITY = 0.68
STYLES = ("blended", "outlined", "side_by_side")
UNTRAINED = "random weights, not trained: the clusters follow colour, texture and place, not meaning"


@dataclass(frozen=True)
class ClusterMap:
    """A partition of a grid of tokens, as one head of one block makes it.

    labels (H, W): cluster of each token, 0 = least like the mean key, M - 1 = most.
    stage, block, head: where, counted from 0; `heads`, `blocks` and `stages` are how many there are (0: not told).
    partition: the name of it, "sec", or a rival's; a rival's labels are no ranks, and a tree's are its leaves in order.
    near, far: what tokens of a cluster attend to, as in `secvit.sec_attention`.
    """

    labels: Tensor
    num_clusters: int
    stage: int
    block: int
    head: int
    heads: int
    partition: str = "sec"
    blocks: int = 0
    stages: int = 0
    near: int = 1
    far: bool = False

    @property
    def sizes(self) -> Tensor:
        """Tokens in each cluster.  (M,)"""
        return self.labels.flatten().bincount(minlength=self.num_clusters)

    @property
    def span(self) -> str:
        """The least and the greatest of the sizes, once if they are one."""
        low, high = int(self.sizes.min()), int(self.sizes.max())
        return f"{low}" if low == high else f"{low}–{high}"

    @property
    def counts(self) -> str:
        """Clusters, their sizes, and the grid."""
        height, width = self.labels.shape
        if self.num_clusters == 1:
            return f"full attention: 1 × {height * width} tokens, grid {width}×{height}"
        return f"{self.num_clusters} clusters × {self.span} tokens, grid {width}×{height}"

    def __str__(self) -> str:
        alone = self.num_clusters == 1
        heads = f"all {self.heads} heads" if alone else f"head {self.head + 1} of {self.heads}"
        return f"{place(self)}, {heads}\n{self.counts}"


class Placed(Protocol):
    """Something of a block, counted from 0, of so many blocks and stages."""

    @property
    def stage(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def stages(self) -> int: ...


def place(of: Placed) -> str:
    """Stage and, unless it is the last of those told, block, counted from 1; in a plain ViT the block alone."""
    if of.stages == 1:
        return f"block {of.block + 1} of {of.blocks}"
    return f"stage {of.stage + 1}" + (f", block {of.block + 1} of {of.blocks}" if of.block + 1 < of.blocks else "")


def cluster_maps(
    model: nn.Module,
    image: Tensor,
    stages: Sequence[int] | None = None,
    head: int | str = 0,
    block: int | str | None = None,
    *,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    partition: Partition | None = None,
) -> list[ClusterMap]:
    """The partitions that a network makes of one normalised image (3, H, W), a map per stage, block and head.

    model: SECViT, SEC-Swin, SEC-DeiT, or a vision transformer that `secvit.patch` put clusters into.
    stages: counted from 0; all of them if None.  head: one, or "all".
    block: one of each stage, "all", or None for the last (of a plain ViT, which has no stages, of each quarter).
    num_clusters | cluster_size, partition: cut the same keys in another way than the network does.
    The model is left as it was, modes included.
    """
    recorded = record_keys(model, image, stages, block)
    return [one for keys in recorded for one in maps_of(keys, head, num_clusters, cluster_size, partition)]


def maps_of(
    keys: LayerKeys,
    head: int | str = 0,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    partition: Partition | None = None,
) -> list[ClusterMap]:
    """The clusters of one layer's recorded keys, as the network makes them or cut otherwise; see `cluster_maps`."""
    layer, heads = keys.layer, len(keys.labels)
    if head != "all" and not (isinstance(head, int) and -heads <= head < heads):
        raise ValueError(f'head {head!r}, counted from 0; that stage has {heads} of them; or choose "all"')
    labels, clusters, name = keys.labels, keys.num_clusters, shown_name(partition or keys.partition)
    if (num_clusters, cluster_size, partition) != (None, None, None):
        plan = keys.cut(num_clusters, cluster_size, partition)
        labels, clusters = plan.labels[0].unflatten(-1, keys.grid), plan.num_clusters
    chosen = range(heads) if head == "all" else [int(head) % heads]
    where = (layer.blocks, layer.stages, *layer.clustering.sight(clusters).values())
    return [ClusterMap(labels[i], clusters, layer.stage, layer.block, i, heads, name, *where) for i in chosen]


# -- drawing -----------------------------------------------------------------------------------


def draw_clusters(
    image: Image.Image,
    maps: Sequence[ClusterMap],
    title: str = "",
    note: str = "",
    opacity: float = OPACITY,
    style: str = "blended",
    more: Sequence[Panel] = (),
) -> Figure:
    """Figure 4 (left), supplement figure 1: the photo, then a panel per map, clusters coloured by rank.

    Colours mean the same in all panels: dark = least like the mean key, bright = most like it.
    style: see `overlay`.  more: panels to follow, as large as the photo's; of Grad-CAM, for example.
    Layers of full attention have no clusters: without `more`, and if others have some, the legend names them.
    """
    explanation = legend(maps)
    if not more:
        maps = [cluster_map for cluster_map in maps if cluster_map.num_clusters > 1] or maps
    size = width, height = panel_size(image)
    photo = image.resize(size, Image.Resampling.LANCZOS)
    panels: list[Panel | Legend] = []
    if style != "side_by_side":
        panels.append(Panel(np.asarray(photo), f"image\n{image.width}×{image.height} px, as the network sees it"))
    else:
        size = (2 * width + BETWEEN, height)
    panels += [Panel(overlay(photo, cluster_map, opacity, style), str(cluster_map)) for cluster_map in maps]
    if len(more) == len(maps) == len(panels):  # each to the right of its map
        return draw_panels([*zip(panels, more, strict=True), (explanation,)], size, title, note)
    if len(more) == len(maps):  # each below its map
        return draw_panels([panels, [explanation, *more]], size, title, note)
    return draw_panels(in_rows([*panels, *more, explanation], size[0] / size[1]), size, title, note)


def legend(maps: Sequence[ClusterMap]) -> Legend:
    """What the colours mean, and which layers have none."""
    full = [place(cluster_map) for cluster_map in maps if cluster_map.num_clusters == 1]
    if len(full) == len(maps):
        return Legend(FULL)
    rest = "" if not full else "\n\nFull attention, nothing to draw:\n" + textwrap.fill(" · ".join(full), 50)
    some = next(cluster_map for cluster_map in maps if cluster_map.num_clusters > 1)
    rest = f"\n{_sight(some)}{rest}"
    if some.partition == "sec":
        return Legend(RANKS + rest, rank_colours(256), ("least like the mean key", "most like it"))
    if some.partition == "tree":
        return Legend(TREE + rest, rank_colours(256), ("first leaf", "last leaf"))
    return Legend(f"Partition: {some.partition.replace('_', ' ')}.{rest}")


def _sight(cluster_map: ClusterMap) -> str:
    """What tokens of a cluster attend to."""
    others = cluster_map.near - 1
    most = "the cluster" if others == 1 else f"the {others} clusters"
    near = f", to {most} of most weight" if others else ""
    some_far = cluster_map.far and cluster_map.near < cluster_map.num_clusters
    far = ", and to a summary of each other cluster" if some_far else ""
    return textwrap.fill(f"Tokens of one colour attend to each other{near}{far}.", 50)


RANKS = """\
Each head ranks its tokens by the cosine of their
keys to the mean key, and cuts the ranking into
clusters of equal size."""
TREE = """\
Clusters are the leaves of a balanced tree: sort by the
first principal component, halve, repeat in each half.
Clusters of like colours are neighbours in it."""
FULL = """\
Full attention: each token attends to all others.
There are no clusters to draw. Choose other stages,
or cut the keys into clusters with num_clusters."""
BETWEEN = 8  # px between two pictures side by side


def overlay(
    photo: Image.Image, cluster_map: ClusterMap, opacity: float = OPACITY, style: str = "blended"
) -> np.ndarray:
    """Clusters in the colours of their ranks, as large as the photo.  -> (H, W, 3) in 0..1

    style: "blended" lays them over the greyed photo, with thin outlines; "outlined" draws their borders into the
    photo; "side_by_side" puts them, opaque, to the right of it, which doubles the width.
    """
    if style not in STYLES:
        raise ValueError(f"style={style!r}; choose one of {', '.join(STYLES)}")
    colour = np.asarray(to_rgb(photo), dtype=np.float64) / 255
    grey = np.asarray(to_rgb(photo).convert("L"), dtype=np.float64)[..., None] / 255
    grey_photo = np.broadcast_to(0.25 + 0.6 * grey, colour.shape)  # full attention: nothing to tell apart
    alone, labels = cluster_map.num_clusters == 1, enlarged(cluster_map.labels, photo.height, photo.width)
    colours = rank_colours(cluster_map.num_clusters)[labels]
    if style == "side_by_side":
        return np.concatenate([colour, np.ones((photo.height, BETWEEN, 3)), grey_photo if alone else colours], axis=1)
    if alone:
        return colour if style == "outlined" else grey_photo
    cell = min(photo.height / cluster_map.labels.shape[0], photo.width / cluster_map.labels.shape[1])
    edge = np.zeros(labels.shape, dtype=bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    if style == "outlined":
        if cell >= 6:  # px: borders of two pixels still leave something of the photo
            edge[:-1] |= labels[1:] != labels[:-1]
            edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
        return np.where(edge[..., None], colours, colour)
    blended = opacity * colours + (1 - opacity) * grey
    strength = min(max(cell / 14 - 0.3, 0.0), 0.75)  # outlines of tiny tokens would be all one sees
    return np.where(edge[..., None], (1 - strength) * blended + strength * 0.05, blended)


def rank_colours(num_clusters: int) -> np.ndarray:
    """A colour per cluster by its rank, from a scale of even perceptual steps.  -> (M, 3)"""
    places = np.linspace(0, 1, num_clusters) if num_clusters > 2 else np.array([0.2, 0.85])
    return matplotlib.colormaps["viridis"](places)[:num_clusters, :3]


def enlarged(labels: Tensor, height: int, width: int) -> np.ndarray:
    """The value of the token that each pixel lies in.  (H, W) -> (height, width)"""
    rows = np.arange(height) * labels.shape[0] // height
    columns = np.arange(width) * labels.shape[1] // width
    return labels.numpy()[rows[:, None], columns]


# -- from a photo to a network's input -----------------------------------------------------------


def normalised(image: Image.Image, model: nn.Module) -> Tensor:
    """A photo as the model's input, its own mean and deviation taken out.  -> (3, H, W)

    Squeezed where a model takes one size only, or whole patches only.
    """
    image = to_rgb(image)
    config = timm.data.resolve_data_config(model=model)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    size = input_size(image.size, model)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    return (pixels - mean) / std


def input_size(size: tuple[int, int], model: nn.Module) -> tuple[int, int]:
    """(width, height) in px that a model takes, nearest to those of a photo."""
    embed: Any = getattr(model, "patch_embed", None)
    if getattr(embed, "strict_img_size", False):
        height, width = embed.img_size
        return width, height
    height, width = getattr(embed, "patch_size", (1, 1))
    return max(1, round(size[0] / width)) * width, max(1, round(size[1] / height)) * height


def sized(image: Image.Image, size: int | None) -> Image.Image:
    """With its long side at `size` px; None keeps it, but at most 640."""
    long = max(image.size)
    factor = (size or min(long, LONG_SIDE)) / long
    if factor == 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def weights_note(model: str) -> str:
    """What a picture says of the weights behind a name alone."""
    return f"weights: {model}" if has_weights(model) else UNTRAINED
