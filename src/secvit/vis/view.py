"""From photos to files: pictures of clusters, animations, the paper's figures, numbers."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from tqdm import tqdm

from secvit.adapt import patch
from secvit.images import read_image
from secvit.models.saved import load_model
from secvit.models.sec_deit import SECDeiT
from secvit.models.sec_swin import SECSwin
from secvit.models.secvit import SECViT
from secvit.train.checkpoint import check_writable
from secvit.vis.clusters import (
    STYLES,
    ClusterMap,
    draw_clusters,
    maps_of,
    normalised,
    overlay,
    sized,
    weights_note,
)
from secvit.vis.gradcam import grad_cam, heat_overlay
from secvit.vis.metrics import cluster_metrics
from secvit.vis.pages import Row, compare_partitions, draw_page, draw_partitions
from secvit.vis.panels import Panel, panel_size
from secvit.vis.photos import listed, picture_names
from secvit.vis.picture import INK, check_output, save
from secvit.vis.record import LayerKeys, record_keys
from secvit.weights import write_atomically

FRAME_AREA = 360 * 270  # px of an animation
FRAME_MS = 700
FRAME_COLOURS = 64
PAGE_NOTE = (
    "Left, tokens of one colour attend to each other; dark = least like the mean key, bright = most.  "
    "Right, what speaks for the likeliest class.  "
)


@dataclass(frozen=True)
class View:
    """What to show of a photo.

    model, checkpoint: as in `secvit.models.saved.load_model`; a ViT of timm's gets its clusters by `secvit.patch`.
    size: long side in px that the network sees; None keeps the photo's, but at most 640.
    stages, block, head, num_clusters, cluster_size, partition: as in `secvit.vis.cluster_maps`.
    style: as in `secvit.vis.clusters.overlay`.
    """

    model: str = "secvit_nano.clothing10"
    checkpoint: str | os.PathLike[str] | None = None
    size: int | None = None
    stages: Sequence[int] | None = None
    block: int | str | None = None
    head: int | str = 0
    num_clusters: int | None = None
    cluster_size: int | None = None
    partition: str | None = None
    style: str = "blended"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style={self.style!r}; choose one of {', '.join(STYLES)}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size}; choose the long side in px, for example 448")
        if self.num_clusters is not None and self.cluster_size is not None:
            raise ValueError(f"num_clusters={self.num_clusters} and cluster_size={self.cluster_size}; give one of them")

    @property
    def note(self) -> str:
        """What a picture says of the weights."""
        if self.checkpoint is None:
            return weights_note(self.model)
        return f"weights: {'/'.join(Path(self.checkpoint).parts[-2:])}"

    def network(self) -> nn.Module:
        """The model, its attention in clusters."""
        model = load_model(self.model, self.checkpoint)
        if isinstance(model, (SECViT, SECSwin, SECDeiT)) or hasattr(model, "secvit_patch"):
            return model
        clusters = 4 if self.num_clusters is None and self.cluster_size is None else self.num_clusters
        return patch(model, clusters, self.cluster_size, partition=self.partition or "sec")

    def maps(self, keys: Iterable[LayerKeys]) -> list[ClusterMap]:
        """The chosen partitions of recorded keys; full attention once for all heads."""
        cut = (self.num_clusters, self.cluster_size, self.partition)
        found = [one for layer in keys for one in maps_of(layer, self.head, *cut)]
        return [one for one in found if one.num_clusters > 1 or one.head == 0 or self.head != "all"]


@dataclass
class Made:
    """Files that `cluster_photos` wrote, older ones that it replaced, photos that it left out and why, and numbers."""

    written: list[Path] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, path: Path, picture: Figure | bytes) -> None:
        """Write a picture, whole or not at all."""
        known = self.replaced if path.exists() else self.written
        if isinstance(picture, Figure):
            save(picture, path)
        else:
            write_atomically(path, picture)
        known.append(path)


def cluster_photo(
    photo: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    gradcam: bool = False,
    **view: Any,
) -> Path:
    """Draw the clusters of each stage for a photo of any format and size; returns the picture's path.

    output: a file, replaced if it exists; None takes a free name, PHOTO_clusters.png, in the current folder.
    gradcam: Grad-CAM of the same blocks, too.  view: fields of `View`, model="secvit_tiny" for one.
    """
    made = cluster_photos([photo], output, View(**view), gradcam=gradcam)
    return (made.written + made.replaced)[0]


def cluster_photos(
    photos: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    view: View | None = None,
    *,
    gradcam: bool = False,
    gif: bool = False,
    compare: bool = False,
    metrics: bool = False,
    masks: str | os.PathLike[str] | None = None,
) -> Made:
    """PHOTO_clusters.png for each photo, and what else is asked for.

    photos: files of any format and size, or folders of them.
    output: the folder for the pictures, where no file is ever replaced, the current one if None; or, for one photo,
        the picture's own name, replaced if it exists.
    gradcam: Grad-CAM of the same blocks in the picture.
    gif: also PHOTO_clusters.gif, which goes through all blocks.
    compare: also PHOTO_partitions.png, Figure 1: window, k-means and SEC of the first of the chosen layers.
    metrics: also the rows of `secvit.vis.metrics.cluster_metrics`.  masks: a folder with PHOTO.png, or one such
        file, of class numbers, for purity.
    A photo that cannot be read is skipped; a ValueError if there is no other.
    """
    view = view or View()
    kinds: dict[str, Callable[..., Figure | bytes]] = {"_clusters.png": clusters_of}
    if gif:
        kinds["_clusters.gif"] = animation_of
    if compare:
        kinds["_partitions.png"] = partitions_of
    names = _names(photos, output, list(kinds))
    made, network = Made(), view.network()
    for path, image in _opened(names, view, made):
        if metrics:
            options: dict[str, Any] = {"stages": view.stages, "block": view.block}
            options |= {"num_clusters": view.num_clusters, "cluster_size": view.cluster_size}
            mask = None if masks is None else _mask_of(path, Path(masks))
            made.rows += [{"photo": str(path), **row} for row in cluster_metrics(network, image, mask, **options)]
        for draw, name in zip(kinds.values(), names[path], strict=True):
            made.add(name, draw(network, image, view, f"{path.name} in {view.model}", gradcam))
    return made


def cluster_page(
    photos: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    view: View | None = None,
    title: str = "",
) -> Made:
    """Figure 4 of many photos, a row each: clusters by stage, then Grad-CAM by stage.

    photos, and those that cannot be read: as in `cluster_photos`.
    output: a file, replaced if it exists; None takes a free name, page_clusters.png, in the current folder.
    """
    view, made, rows = view or View(), Made(), []
    paths = listed(photos)
    name = check_output(
        output or picture_names([Path("page")], Path(), "_clusters.png", replace=False)[Path("page")][0]
    )
    network = view.network()
    for _, image in _opened(paths, view, made):
        pixels = normalised(image, network)
        maps = view.maps(record_keys(network, pixels, view.stages, view.block))
        rows.append(Row(image, maps, grad_cam(network, pixels, None, view.stages, view.block)))
    made.add(
        name, draw_page(rows, title or f"Clusters and Grad-CAM in {view.model}", PAGE_NOTE + view.note, view.style)
    )
    return made


# -- one photo ---------------------------------------------------------------------------------


def clusters_of(network: nn.Module, image: Image.Image, view: View, title: str = "", gradcam: bool = False) -> Figure:
    """Figure 4 of one photo: clusters of the chosen blocks and, if wanted, Grad-CAM of the same."""
    pixels = normalised(image, network)
    maps = view.maps(record_keys(network, pixels, view.stages, view.block))
    more = []
    if gradcam:
        photo = image.resize(panel_size(image), Image.Resampling.LANCZOS)
        cams = grad_cam(network, pixels, None, view.stages, view.block)
        more = [Panel(heat_overlay(photo, cam, style=view.style), str(cam)) for cam in cams]
    return draw_clusters(image, maps, title, view.note, style=view.style, more=more)


def partitions_of(network: nn.Module, image: Image.Image, view: View, title: str = "", gradcam: bool = False) -> Figure:
    """Figure 1 of one photo: the keys of the first of the chosen layers, cut by window, k-means and SEC."""
    keys = record_keys(network, normalised(image, network), view.stages, view.block)[0]
    head = 0 if view.head == "all" else int(view.head)
    compared = compare_partitions(keys, head, num_clusters=view.num_clusters, cluster_size=view.cluster_size)
    return draw_partitions(image, compared, title, view.note)


def animation_of(network: nn.Module, image: Image.Image, view: View, title: str = "", gradcam: bool = False) -> bytes:
    """A GIF that goes through all blocks of the chosen stages: one head of each that has clusters."""
    head = 0 if view.head == "all" else view.head
    keys = record_keys(network, normalised(image, network), view.stages, "all")
    photo = image.resize(panel_size(image, FRAME_AREA), Image.Resampling.LANCZOS)
    frames = [
        frame(photo, found, view.style) for found in replace(view, head=head).maps(keys) if found.num_clusters > 1
    ]
    if not frames:
        raise ValueError("none of the chosen layers has more than one cluster; choose others, or num_clusters")
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
    return content.getvalue()


def frame(photo: Image.Image, found: ClusterMap, style: str) -> Image.Image:
    """One picture of an animation: the clusters, and below them of which block."""
    pixels = Image.fromarray((255 * overlay(photo, found, style=style)).round().astype(np.uint8))
    whole = Image.new("RGB", (pixels.width, pixels.height + 24), "white")
    whole.paste(pixels, (0, 0))
    stage = "" if found.stages == 1 else f"stage {found.stage + 1}, "
    words = f"{stage}block {found.block + 1} of {found.blocks}, head {found.head + 1} of {found.heads}"
    ImageDraw.Draw(whole).text((6, pixels.height + 12), words, INK, ImageFont.load_default(13), anchor="lm")
    return whole.quantize(FRAME_COLOURS, dither=Image.Dither.NONE)  # dots would make the file twice as large


# -- files -------------------------------------------------------------------------------------


def _names(
    photos: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str] | None, endings: Sequence[str]
) -> dict[Path, tuple[Path, ...]]:
    """Files for the pictures of each photo: in a folder, or, for one photo, beginning with a name of one's own."""
    own = None if output is None or Path(output).is_dir() or not Path(output).suffix else Path(output)
    folder = Path(output or "") if own is None else own.parent
    paths = listed(photos, None if own or output is None else folder)
    if own is None:
        check_writable(folder)
        return picture_names(paths, folder, *endings, replace=False)
    check_output(own)
    if len(paths) > 1:
        raise ValueError(f"{own}: one picture for {len(paths)} photos; name a folder, or ask for one page of them all")
    if own.resolve() == paths[0].resolve():
        raise ValueError(f"{own}: is the photo itself; choose another output")
    first = endings[0].rpartition(".")[0]
    others = [own.with_name(f"{own.stem}{ending.removeprefix(first)}") for ending in endings[1:]]
    return {paths[0]: (own, *others)}


def _opened(paths: Iterable[Path], view: View, made: Made) -> Iterator[tuple[Path, Image.Image]]:
    """Each photo that can be read, at the size that the network sees; a ValueError if none can."""
    read = 0
    for path in tqdm(list(paths), desc="clustering", unit="photo", disable=None, leave=False):
        try:
            image = sized(read_image(path), view.size)
        except ValueError as error:
            made.skipped.append(str(error))
            continue
        read += 1
        yield path, image
    if not read:
        raise ValueError("\n".join(made.skipped))


def _mask_of(photo: Path, masks: Path) -> np.ndarray:
    """The classes of a photo's pixels: in the file, or in the folder's file of the photo's name."""
    from secvit.segmentation.data import MASKS, read_mask

    tried = [masks / f"{photo.stem}{kind}" for kind in MASKS] if masks.is_dir() else [masks]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise ValueError(f"{tried[0]}: no mask for {photo.name}; give a folder of masks with the photos' names")
    mask = read_mask(found)
    if mask.dtype != np.uint8:
        raise ValueError(f"{found}: holds the value {mask.max()}; purity takes class numbers of 0 to 254")
    return mask
