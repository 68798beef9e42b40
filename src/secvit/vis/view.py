"""From photos to files: pictures of clusters, animations, the paper's figures, numbers."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from secvit import runs
from secvit.adapt import patch
from secvit.draw.panels import Panel, panel_size
from secvit.draw.picture import INK, check_output, save
from secvit.files import check_writable
from secvit.images.photos import Made, Photos, listed, opened, picture_names
from secvit.ops import Partition, check_partition
from secvit.ops.backends import check_near
from secvit.vis.attention import Place, attention_of, draw_attention, place_in
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
from secvit.vis.gradcam import CamMap, grad_cam, heat_overlay
from secvit.vis.metrics import cluster_metrics, mask_of
from secvit.vis.pages import Row, compare_partitions, draw_page, draw_partitions
from secvit.vis.record import LayerKeys, choose, clustered, layers, record_keys

FRAME_AREA = 360 * 270  # px of an animation
FRAME_MS = 700
FRAME_COLOURS = 64
PAGE_NOTE = "Left, tokens of one colour attend to each other{ranks}.  Right, what speaks for the likeliest class.  "
RANKS_NOTE = "; dark = least like the mean key, bright = most"


@dataclass(frozen=True)
class View:
    """What to show of a photo.

    run: the folder of a run, a weight file, or the name of a model: with weights that come along, else random ones.
        A ViT of timm's gets its clusters by `secvit.patch`.  Of a detector or segmenter, the backbone is shown.
    model: name of the network of a weight file that has no config.yaml beside it.
    size: long side in px that the network sees; None keeps the photo's, but at most 640.
    stages, block, head, num_clusters, cluster_size, partition: as in `secvit.vis.cluster_maps`.
    near, far: what clusters attend to, as in `secvit.sec_attention`; None and False leave the network as it is.
    style: as in `secvit.vis.clusters.overlay`.
    """

    run: str | os.PathLike[str] = "secvit_nano.clothing10"
    model: str | None = None
    size: int | None = None
    stages: Sequence[int] | None = None
    block: int | str | None = None
    head: int | str = 0
    num_clusters: int | None = None
    cluster_size: int | None = None
    partition: Partition | None = None
    style: str = "blended"
    near: int | None = None
    far: bool = False

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style={self.style!r}; choose one of {', '.join(STYLES)}")
        if self.partition is not None:
            check_partition(self.partition)
        check_near(1 if self.near is None else self.near, self.far)
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size}; choose the long side in px, for example 448")
        if self.num_clusters is not None and self.cluster_size is not None:
            raise ValueError(f"num_clusters={self.num_clusters} and cluster_size={self.cluster_size}; give one of them")

    @property
    def title(self) -> str:
        """What pictures call the network."""
        return "/".join(Path(self.run).parts[-2:]) if Path(self.run).exists() else str(self.run)

    @property
    def note(self) -> str:
        """What a picture says of the weights."""
        return f"weights: {self.title}" if Path(self.run).exists() else weights_note(str(self.run))

    def network(self) -> nn.Module:
        """The network, or the backbone of one, its attention in clusters."""
        model = runs.network(self.run, self.model)
        if not clustered(model):
            clusters = 4 if self.num_clusters is None and self.cluster_size is None else self.num_clusters
            partition = self.partition or "sec"
            return patch(model, clusters, self.cluster_size, partition=partition, near=self.near or 1, far=self.far)
        if self.near or self.far:
            for layer in layers(model):
                now = layer.clustering
                layer.module.clustering = replace(now, near=self.near or now.near, far=self.far or now.far)
        return model

    def maps(self, keys: Iterable[LayerKeys]) -> list[ClusterMap]:
        """The chosen partitions of recorded keys; full attention once for all heads."""
        cut = (self.num_clusters, self.cluster_size, self.partition)
        maps = [one for layer in keys for one in maps_of(layer, self.head, *cut)]
        return [one for one in maps if one.num_clusters > 1 or one.head == 0 or self.head != "all"]


def cluster_photo(
    photo: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    gradcam: bool = False,
    **view: Any,
) -> Path:
    """Draw the clusters of each stage for a photo of any format and size; returns the picture's path.

    output: a file, replaced if it exists; None takes a free name, PHOTO_clusters.png, in the current folder.
    gradcam: Grad-CAM of the same blocks, too.  view: fields of `View`, run="secvit_tiny" for one.
    """
    made = cluster_photos([photo], output, View(**view), gradcam=gradcam)
    return (made.written + made.replaced)[0]


def cluster_photos(
    photos: Photos,
    output: str | os.PathLike[str] | None = None,
    view: View | None = None,
    *,
    gradcam: bool = False,
    gif: bool = False,
    compare: bool = False,
    attends: str | None = None,
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
    attends: also PHOTO_attends.png: what the token at a place "X,Y" attends to (`secvit.vis.attention.place_in`).
    metrics: also the rows of `secvit.vis.metrics.cluster_metrics`.  masks: a folder with PHOTO.png, or one such
        file, of class numbers, for purity.
    A photo that cannot be read is skipped; a ValueError if there is no other.
    """
    view = view or View()
    kinds: dict[str, Callable[[Recorded, str], Figure | bytes]] = {
        "_clusters.png": functools.partial(clusters_of, gradcam=gradcam)
    }
    if gif:
        kinds["_clusters.gif"] = animation_of
    if compare:
        kinds["_partitions.png"] = partitions_of
    if attends is not None:
        kinds["_attends.png"] = attention_from
    names = _names(photos, output, list(kinds))
    made, network = Made(), view.network()
    for path, image, at in _sized(list(names), view, made, attends):
        recorded = Recorded(network, image, view, all_blocks=gif, at=at)
        if metrics:
            options: dict[str, Any] = {"stages": view.stages, "block": view.block, "keys": recorded.keys}
            options |= {"num_clusters": view.num_clusters, "cluster_size": view.cluster_size}
            mask = None if masks is None else mask_of(path, Path(masks))
            made.rows += [{"photo": str(path), **row} for row in cluster_metrics(network, image, mask, **options)]
        for draw, name in zip(kinds.values(), names[path], strict=True):
            drawn = draw(recorded, f"{path.name} in {view.title}")
            made.add(name, drawn if isinstance(drawn, bytes) else functools.partial(save, drawn))
    return made


def show_clusters(
    photos: Photos,
    output: str | None = None,
    *,
    run: str = "secvit_nano.clothing10", model: str | None = None, size: int | None = None,
    stage: Sequence[int] | None = None, block: int | Literal["all"] | None = None, head: int | Literal["all"] = 1,
    num_clusters: int | None = None, cluster_size: int | None = None, partition: str | None = None,
    near: int | None = None, far: bool = False,
    style: Literal["blended", "outlined", "side_by_side"] = "blended",
    gradcam: bool = False, gif: bool = False, compare: bool = False, attends: str | None = None, page: bool = False,
    metrics: bool = False, masks: str | None = None,
) -> Made:  # fmt: skip
    """A picture of the clusters that each stage of a network makes of a photo; and what they are worth.

    Stages, blocks and heads count from 1, as in the pictures; in `View` and `secvit.vis.cluster_maps` from 0.

    photos: files of any format and size, or folders of them.
    output: a folder, where no file is replaced (default: this one); for one photo or a page also a file's name.
    run: a run, a weight file, or the name of a secvit_*, sec_deit_* or sec_swin_* model, or of a plain ViT of timm's,
        which is patched.
    model: name of the network of a weight file that has no config.yaml beside it.
    size: long side in px that the network sees (default: the photo's, at most 640).
    stage: stages to show; else all.
    block: of each stage; "all", or else the last.
    head: number of the head, or "all".
    num_clusters: cut the keys into so many, not as the network does.
    cluster_size: or into clusters of so many tokens or fewer.
    partition: sec, tree, or a rival: window, raster, random, kmeans, ...
    near: clusters that each attends to, itself among them; else as the network does.
    far: clusters attend to a summary of every other one, too.
    style: how clusters are laid over the photo.
    gradcam: Grad-CAM of the likeliest class below the clusters.
    gif: also PHOTO_clusters.gif, through all blocks.
    compare: also PHOTO_partitions.png: window, k-means and SEC, with sizes and times.
    attends: also PHOTO_attends.png: what the token at X,Y attends to; parts of the photo, as 0.4,0.6, or px.
    page: one picture for all photos: clusters and Grad-CAM.
    metrics: compactness, stability and, with masks, purity, as a table.
    masks: folder of indexed PNGs by the photos' names, or one of them.
    """
    if masks and not metrics:
        raise ValueError("--masks is for --metrics; give both")
    extra: dict[str, Any] = {"gradcam": gradcam, "gif": gif, "compare": compare, "attends": attends}
    extra |= {"metrics": metrics, "masks": masks}
    if page and any(extra.values()):
        raise ValueError("--page is one picture by itself; leave out " + ", ".join(f"--{n}" for n in extra if extra[n]))
    stages = None if stage is None else [_from_one("stage", one) for one in stage]
    where = {"stages": stages, "block": _from_one("block", block), "head": _from_one("head", head)}
    view = View(run, model, size, **where, num_clusters=num_clusters, cluster_size=cluster_size, partition=partition,
                style=style, near=near, far=far)  # fmt: skip
    if page:
        return cluster_page(photos, output, view)
    return cluster_photos(photos, output, view, **extra)


def _from_one(name: str, number: Any) -> Any:
    """A number that a user counts from 1, counted from 0; "all" and None as they are."""
    if isinstance(number, int) and number < 1:
        raise ValueError(f"--{name} {number}; count from 1, as in the pictures")
    return number - 1 if isinstance(number, int) else number


def cluster_page(
    photos: Photos,
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
    for _, image, _ in _sized(paths, view, made):
        recorded = Recorded(network, image, view)
        rows.append(Row(image, view.maps(recorded.keys), recorded.cams()))
    ranks = RANKS_NOTE if all(one.partition == "sec" for row in rows for one in row.maps) else ""
    note = PAGE_NOTE.format(ranks=ranks) + view.note
    page = draw_page(rows, title or f"Clusters and Grad-CAM in {view.title}", note, view.style)
    made.add(name, functools.partial(save, page))
    return made


# -- one photo ---------------------------------------------------------------------------------


class Recorded:
    """A photo and what a network clusters of it, recorded in one forward pass for all that is drawn of it.

    all_blocks: of the chosen stages, as an animation needs them, and not only the chosen ones.
    at: the place (x, y), 0..1, of the token whose attention will be drawn.
    """

    def __init__(
        self, network: nn.Module, image: Image.Image, view: View, all_blocks: bool = False, at: Place | None = None
    ) -> None:
        self.network, self.image, self.view, self.at = network, image, view, at
        self.pixels = normalised(image, network)
        chosen = [(layer.stage, layer.block) for layer in choose(layers(network), view.stages, view.block)]
        block = "all" if all_blocks else view.block
        self.blocks = record_keys(network, self.pixels, view.stages, block, projections=at is not None)
        self.keys = [keys for keys in self.blocks if (keys.layer.stage, keys.layer.block) in chosen]

    def cams(self) -> list[CamMap]:
        """Grad-CAM of the chosen blocks: a second pass, with gradients."""
        return grad_cam(self.network, self.pixels, None, self.view.stages, self.view.block)


def clusters_of(recorded: Recorded, title: str = "", gradcam: bool = False) -> Figure:
    """Figure 4 of one photo: clusters of the chosen blocks and, if wanted, Grad-CAM of the same."""
    image, view, more = recorded.image, recorded.view, []
    if gradcam:
        photo = image.resize(panel_size(image), Image.Resampling.LANCZOS)
        more = [Panel(heat_overlay(photo, cam, style=view.style), str(cam)) for cam in recorded.cams()]
    return draw_clusters(image, view.maps(recorded.keys), title, view.note, style=view.style, more=more)


def partitions_of(recorded: Recorded, title: str = "") -> Figure:
    """Figure 1 of one photo: the keys of the first of the chosen layers, cut by window, k-means and SEC."""
    view = recorded.view
    head = 0 if view.head == "all" else int(view.head)
    compared = compare_partitions(
        recorded.keys[0], head, num_clusters=view.num_clusters, cluster_size=view.cluster_size
    )
    return draw_partitions(recorded.image, compared, title, view.note)


def attention_from(recorded: Recorded, title: str = "") -> Figure:
    """What the token at the recorded place attends to in the chosen blocks."""
    view, at = recorded.view, recorded.at or (0.5, 0.5)
    cut = (view.num_clusters, view.cluster_size, view.partition)
    attentions = [one for keys in recorded.keys for one in attention_of(keys, at, view.head, *cut)]
    return draw_attention(recorded.image, attentions, title, view.note)


def animation_of(recorded: Recorded, title: str = "") -> bytes:
    """A GIF that goes through all blocks of the chosen stages: one head of each that has clusters."""
    image, view = recorded.image, recorded.view
    view = replace(view, head=0 if view.head == "all" else view.head)
    photo = image.resize(panel_size(image, FRAME_AREA), Image.Resampling.LANCZOS)
    frames = [
        frame(photo, cluster_map, view.style)
        for cluster_map in view.maps(recorded.blocks)
        if cluster_map.num_clusters > 1
    ]
    if not frames:
        raise ValueError("none of the chosen layers has more than one cluster; choose others, or num_clusters")
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
    return content.getvalue()


def frame(photo: Image.Image, cluster_map: ClusterMap, style: str) -> Image.Image:
    """One picture of an animation: the clusters, and below them of which block."""
    pixels = Image.fromarray((255 * overlay(photo, cluster_map, style=style)).round().astype(np.uint8))
    canvas = Image.new("RGB", (pixels.width, pixels.height + 24), "white")
    canvas.paste(pixels, (0, 0))
    stage = "" if cluster_map.stages == 1 else f"stage {cluster_map.stage + 1}, "
    block = f"block {cluster_map.block + 1} of {cluster_map.blocks}"
    words = f"{stage}{block}, head {cluster_map.head + 1} of {cluster_map.heads}"
    ImageDraw.Draw(canvas).text((6, pixels.height + 12), words, INK, ImageFont.load_default(13), anchor="lm")
    return canvas.quantize(FRAME_COLOURS, dither=Image.Dither.NONE)  # dots would make the file twice as large


# -- files -------------------------------------------------------------------------------------


def _names(
    photos: Photos, output: str | os.PathLike[str] | None, endings: Sequence[str]
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


def _sized(
    paths: Sequence[Path], view: View, made: Made, attends: str | None = None
) -> Iterator[tuple[Path, Image.Image, Place | None]]:
    """Each photo that can be read, at the size that the network sees, and where in it the place is."""

    def at(photo: Image.Image) -> Place | None:
        return None if attends is None else place_in(attends, photo.size)

    for batch in opened(paths, made, 1, "clustering", at):
        for path, photo in batch.items():
            yield path, sized(photo, view.size), at(photo)
