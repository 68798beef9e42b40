"""Figures 1 and 4 of the paper, of photos of your own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from secvit.draw.panels import Panel, draw_panels, in_rows, panel_size
from secvit.measure.rounds import clock_for, interleave
from secvit.ops import Partition, shown_name
from secvit.vis.clusters import ClusterMap, maps_of, overlay, place
from secvit.vis.gradcam import CamMap, heat_overlay
from secvit.vis.record import LayerKeys

FIGURE_1 = ("window", "kmeans", "sec")
KMEANS = ("kmeans", "balanced_kmeans")
NAMES = {"sec": "SEC", "kmeans": "k-means", "balanced_kmeans": "balanced k-means", "random_projection": "projection"}
CELL = (264, 198)  # px of a picture in Figure 4's page


@dataclass(frozen=True)
class Compared:
    """One partition of a layer's keys.  found: of one head.  milliseconds: of processor time, for all heads."""

    cluster_map: ClusterMap
    milliseconds: float

    def __str__(self) -> str:
        name = NAMES.get(self.cluster_map.partition, self.cluster_map.partition)
        return f"{name}: {self.milliseconds:.2f} ms\n{self.cluster_map.counts}"


def compare_partitions(
    keys: LayerKeys,
    head: int = 0,
    partitions: Sequence[Partition] = FIGURE_1,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    rounds: int = 5,
) -> list[Compared]:
    """Figure 1: the same keys, cut by each partition, and what each costs.

    k-means is given the keys before rotary positions: with them it finds rows of the image.
    num_clusters | cluster_size: for all of them; the layer's if neither is given.
    Time: from keys to the tokens of each cluster, the median of so many rounds in which the partitions take turns.
    """
    named = {shown_name(one): one for one in partitions}
    sources = {name: keys.without_rotary() if name in KMEANS else keys for name in named}
    cuts = {name: partial(sources[name].cut, num_clusters, cluster_size, one) for name, one in named.items()}
    calls = {name: lambda cut=cut: cut().slots for name, cut in cuts.items()}
    with torch.inference_mode():
        seconds = interleave(calls, next(iter(named)), rounds, clock_for(torch.get_num_threads()), min_seconds=0.005)
        maps = [maps_of(sources[name], head, num_clusters, cluster_size, one)[0] for name, one in named.items()]
    return [Compared(cluster_map, 1000 * median(seconds[cluster_map.partition])) for cluster_map in maps]


def draw_partitions(image: Image.Image, compared: Sequence[Compared], title: str = "", note: str = "") -> Figure:
    """Figure 1: the photo, then each partition of the same keys with its sizes and its time."""
    size = panel_size(image)
    photo = image.resize(size, Image.Resampling.LANCZOS)
    first = compared[0].cluster_map
    heads = f"keys of stage {first.stage + 1}, head {first.head + 1} of {first.heads}"
    panels = [Panel(np.asarray(photo), f"image\n{heads}; time for all heads")]
    panels += [Panel(overlay(photo, one.cluster_map), str(one)) for one in compared]
    return draw_panels(in_rows(panels, size[0] / size[1]), size, title, note)


@dataclass(frozen=True)
class Row:
    """A photo with its clusters and its Grad-CAM, for Figure 4's page."""

    image: Image.Image
    maps: Sequence[ClusterMap]
    cams: Sequence[CamMap]


def draw_page(rows: Sequence[Row], title: str = "", note: str = "", style: str = "blended") -> Figure:
    """Figure 4: a row for each photo, its clusters by stage on the left, Grad-CAM by stage on the right.

    Layers of full attention have no clusters to show, and are left out on the left.
    """
    if style == "side_by_side":
        raise ValueError("a page shows each photo beside its clusters already; choose style blended or outlined")
    lines = []
    for row in rows:
        photo = ImageOps.contain(row.image, CELL, Image.Resampling.LANCZOS)
        panels = [Panel(np.asarray(photo), "image\n ")]
        for cluster_map in row.maps:
            if cluster_map.num_clusters > 1:
                words = f"clusters, {place(cluster_map)}\n{cluster_map.num_clusters} of {cluster_map.span} tokens"
                panels.append(Panel(overlay(photo, cluster_map, style=style), words))
        for cam in row.cams:
            nothing = "" if cam.heat.any() else ", nothing for it"
            words = f"Grad-CAM, {place(cam)}\n{cam.name}: {cam.share:.2f}{nothing}"
            panels.append(Panel(heat_overlay(photo, cam), words))
        lines.append([Panel(_padded(panel.pixels), panel.words) for panel in panels])
    return draw_panels(lines, CELL, title, note)


def _padded(pixels: np.ndarray) -> np.ndarray:
    """In the middle of a white cell.  (H, W, 3) -> 0..1"""
    if pixels.dtype == np.uint8:
        pixels = pixels / 255
    cell = np.ones((CELL[1], CELL[0], 3))
    top, left = (CELL[1] - pixels.shape[0]) // 2, (CELL[0] - pixels.shape[1]) // 2
    cell[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return cell
