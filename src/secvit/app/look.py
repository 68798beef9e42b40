"""What one network sees in one photo under one partition: clusters, attention, Grad-CAM, classes, sizes and times."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from secvit.classification import predict
from secvit.draw.panels import Panel, draw_panels, panel_size
from secvit.images import read_image, upright_size
from secvit.models.saved import has_weights, load_model
from secvit.vis.attention import draw_attention, token_attention
from secvit.vis.clusters import UNTRAINED, maps_of, normalised, overlay, sized
from secvit.vis.gradcam import grad_cam, heat_overlay
from secvit.vis.record import Layer, layers, record_keys

PARTITIONS = {"SEC": "sec", "tree": "tree", "window": "window", "k-means": "kmeans", "random": "random"}
AS_IT_IS, NUMBER, TOKENS = COUNTED = ("as it is", "number of clusters", "tokens per cluster")
MAX_PIXELS = 40_000_000
MAX_CLUSTERS = 256
SHOWN_SIDE = 960  # px of the pictures on the page
TIMED_CALLS, PATIENCE = 5, 0.5  # no further call after so many seconds

looking = threading.Lock()  # a setting changes its network for a while, and times want the machine for themselves


@dataclass(frozen=True)
class Setting:
    """Which partition to look at.  Stage, block and head are counted from 1; block 0 is the stage's last.

    partition, counted, count, near and far apply to all blocks of the stage; the rest of the network stays as it is.
    counted: "as it is", or what `count` means: "number of clusters" or "tokens per cluster".
    size: long side in px that the network sees.
    near, far: what clusters attend to, as in `secvit.sec_attention`.
    checkpoint: weights or the folder of a run; without, those that ship under the name, else random ones.
    """

    model: str = "secvit_nano.clothing10"
    stage: int = 1
    block: int = 0
    head: int = 1
    partition: str = "SEC"
    counted: str = AS_IT_IS
    count: int = 8
    size: int = 224
    near: int = 1
    far: bool = False
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("partition", PARTITIONS), ("counted", COUNTED)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.count < 1 or (self.counted == NUMBER and self.count > MAX_CLUSTERS):
            raise ValueError(f"{self.counted}: {self.count}; choose 1 to {MAX_CLUSTERS}")

    @property
    def trained(self) -> bool:
        return self.checkpoint is not None or has_weights(self.model)

    @property
    def network(self) -> nn.Module:
        return _load(self.model, self.checkpoint)


@dataclass(frozen=True)
class Seen:
    """What a setting shows of a photo.

    clusters, cam: over the greyed photo.  classes: the likeliest and their probabilities; cam is of the first.
    Random weights have neither classes nor cam.
    numbers: place, grid, clusters and their sizes; milliseconds of this partition and of the whole network.
    """

    clusters: Image.Image
    cam: Image.Image | None
    classes: dict[str, float]
    numbers: dict[str, Any]


def look(photo: str, setting: Setting) -> Seen:
    """Clusters, Grad-CAM, classes, sizes and times of a photo under one setting; a ValueError says what cannot be.

    Remembered by the photo's path, date and size, and the setting.
    """
    return _look(photo, _version(photo), setting)


def attention(photo: str, setting: Setting, x: int, y: int) -> Image.Image:
    """What the token at a place attends to under a setting, beside full attention: `secvit.vis.draw_attention`.

    x, y: per cent of the photo, from the left and from the top.  Remembered like `look`.
    """
    return _attention(photo, _version(photo), setting, x, y)


def _version(photo: str) -> tuple[int, int]:
    """Date and size of a photo's file."""
    try:
        about = os.stat(photo)
    except OSError as error:
        raise ValueError(f"{photo}: cannot be read ({error.strerror}); give it again") from None
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=16)
def _look(photo: str, version: tuple[int, int], setting: Setting) -> Seen:
    image = open_photo(photo)
    network: Any = setting.network
    pixels = normalised(sized(image, setting.size), network)
    shown = sized(image, SHOWN_SIDE)
    classes, cam = {}, None
    with _partitioned(network, pixels, setting) as layer:
        keys = record_keys(network, pixels, [layer.stage], layer.block)[0]
        cluster_map = maps_of(keys, setting.head - 1)[0]
        if setting.trained and network.num_classes:
            classes = dict(predict(network, image, 5))
            names = list(map(str, network.pretrained_cfg.get("label_names") or range(network.num_classes)))
            target = names.index(next(iter(classes)))
            cam = _picture(heat_overlay(shown, grad_cam(network, pixels, target, [layer.stage], layer.block)[0]))
        with torch.inference_mode():
            partition_ms, network_ms = _milliseconds(keys.cut), _milliseconds(lambda: network(pixels[None]))
    low, high = int(cluster_map.sizes.min()), int(cluster_map.sizes.max())
    numbers = {
        "place": f"block {cluster_map.block + 1} of {cluster_map.blocks}, "
        f"head {cluster_map.head + 1} of {cluster_map.heads}",
        "grid": f"{keys.grid[1]} × {keys.grid[0]}",
        "clusters": cluster_map.num_clusters,
        "tokens per cluster": f"{low}" if low == high else f"{low} to {high}",
        "partition (ms)": partition_ms,
        "network (ms)": network_ms,
    }
    return Seen(_picture(overlay(shown, cluster_map)), cam, classes, numbers)


@lru_cache(maxsize=16)
def _attention(photo: str, version: tuple[int, int], setting: Setting, x: int, y: int) -> Image.Image:
    image, network = open_photo(photo), setting.network
    pixels = normalised(sized(image, setting.size), network)
    with _partitioned(network, pixels, setting) as layer:
        where = ([layer.stage], setting.head - 1, layer.block)
        attentions = token_attention(network, pixels, (x / 100, y / 100), *where)
    content = io.BytesIO()
    draw_attention(image, attentions, note="" if setting.trained else UNTRAINED).savefig(content, format="png")
    return Image.open(content).convert("RGB")


def place_of(photo: str, pixel: Sequence[float]) -> tuple[int, int]:
    """A pixel (x, y) of the page's picture of a photo, in per cent of width and height; at most 100."""
    width, height = sized(open_photo(photo), SHOWN_SIDE).size
    x, y = (round(100 * at / side) for at, side in zip(pixel, (width, height), strict=True))
    return min(max(x, 0), 100), min(max(y, 0), 100)


def open_photo(photo: str) -> Image.Image:
    """The photo in a file, upright RGB; a ValueError where it is broken, or too large to be decoded."""
    try:
        width, height = upright_size(photo)
    except ValueError:
        width = height = 0  # read_image says what is wrong, by the name that the reader knows
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{Path(photo).name}: {width} × {height} pixels, more than {MAX_PIXELS // 10**6} million; "
            "make it smaller first"
        )
    return read_image(Path(photo).read_bytes(), Path(photo).name)


@lru_cache(maxsize=3)
def _load(model: str, checkpoint: str | None) -> nn.Module:
    return load_model(model, checkpoint)


def extent(network: nn.Module, stage: int) -> tuple[int, int, int]:
    """Stages of a network; blocks, and heads of each, in one stage, counted from 1."""
    inside = [layer for layer in layers(network) if layer.stage == stage - 1]
    return layers(network)[-1].stage + 1, len(inside), inside[0].num_heads


def _place(network: nn.Module, setting: Setting) -> tuple[list[Layer], Layer]:
    """All attentions of the setting's stage, and the one to look at."""
    all_layers = layers(network)
    stage = [layer for layer in all_layers if layer.stage == setting.stage - 1]
    if not stage:
        raise ValueError(f"stage {setting.stage}; {setting.model} has stages 1 to {all_layers[-1].stage + 1}")
    heads = stage[0].num_heads
    for name, value, low, high in (("block", setting.block, 0, len(stage)), ("head", setting.head, 1, heads)):
        if not low <= value <= high:
            raise ValueError(f"{name} {value}; stage {setting.stage} of {setting.model} has {name}s 1 to {high}")
    return stage, stage[setting.block - 1]


def _check_count(cluster_size: int, grid: tuple[int, int]) -> None:
    tokens = grid[0] * grid[1]
    least = -(-tokens // MAX_CLUSTERS)
    if cluster_size < least:
        raise ValueError(
            f"{tokens} tokens in clusters of {cluster_size} are more than {MAX_CLUSTERS} clusters; "
            f"choose {least} tokens per cluster or more"
        )


@contextmanager
def _partitioned(network: nn.Module, pixels: Tensor, setting: Setting) -> Iterator[Layer]:
    """The attentions of a stage cluster as the setting says, for a while; yields the one to look at.

    Nobody else looks meanwhile, and random partitions are the same every time.
    """
    stage, layer = _place(network, setting)
    with looking, torch.random.fork_rng([]):
        if setting.counted == TOKENS:
            _check_count(setting.count, record_keys(network, pixels, [layer.stage], layer.block)[0].grid)
        with _changed(stage, setting):
            torch.manual_seed(0)
            yield layer


@contextmanager
def _changed(stage: list[Layer], setting: Setting) -> Iterator[None]:
    changes: dict[str, Any] = {
        "partition": PARTITIONS[setting.partition], "near": setting.near, "far": setting.far,
    }  # fmt: skip
    if setting.counted != AS_IT_IS:
        changes["num_clusters"] = setting.count if setting.counted == NUMBER else None
        changes["cluster_size"] = setting.count if setting.counted == TOKENS else None
        changes["quality"] = None
    before = [layer.clustering for layer in stage]
    try:
        for layer, clustering in zip(stage, before):
            layer.module.clustering = replace(clustering, **changes)
        yield
    finally:
        for layer, clustering in zip(stage, before):
            layer.module.clustering = clustering


def _milliseconds(call: Callable[[], object]) -> float:
    """Median of a few calls; of one, where that is slow."""
    seconds: list[float] = []
    while len(seconds) < TIMED_CALLS and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return round(1000 * median(seconds), 2)


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def draw(photo: str, settings: list[Setting]) -> Figure:
    """A picture to keep: the photo, its clusters and its Grad-CAM, a row for each setting."""
    image = open_photo(photo)
    size = panel_size(image)
    rows = []
    for setting in settings:
        seen = look(photo, setting)
        of = seen.numbers
        sight = (f", near {setting.near}" if setting.near > 1 else "") + (", far" if setting.far else "")
        row = [
            Panel(np.asarray(image.resize(size)), f"image\n{setting.size} px for the network"),
            Panel(
                np.asarray(seen.clusters),
                f"{setting.model}, {setting.partition}{sight}\nstage {setting.stage}, {of['place']}\n"
                f"{of['clusters']} clusters × {of['tokens per cluster']} tokens, grid {of['grid']}",
            ),
        ]
        if seen.cam:
            label, share = next(iter(seen.classes.items()))
            row.append(Panel(np.asarray(seen.cam), f'Grad-CAM of "{label}"\nprobability {share:.2f}'))
        rows.append(row)
    note = "" if all(setting.trained for setting in settings) else UNTRAINED
    return draw_panels(rows, size, Path(photo).name, note)
