"""What one token attends to: its own cluster, near and far ones, beside full attention of the same queries and keys."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor, nn

from secvit.adapt import patch, unpatch
from secvit.draw.panels import Panel, draw_panels, panel_size
from secvit.images import to_rgb
from secvit.ops import Partition, shown_name
from secvit.ops.reference_near_far import full_weights, weights_of_token
from secvit.vis.clusters import enlarged, place
from secvit.vis.record import LayerKeys, clustered, record_keys

Place = tuple[float, float]  # (x, y) in a photo, 0..1
OWN, NEAR = (0.91, 0.42, 0.11), (0.13, 0.45, 0.71)
OPACITY = 0.68
SMALLEST_MARK = 9  # px
EXPLANATION = (
    "The frame marks the token that attends.  Brightness: the square root of a token's part of the attention; a far "
    "cluster's part lies where its summary takes it from.  Full attention is of the same queries and keys."
)


@dataclass(frozen=True)
class TokenAttention:
    """What one token of one head attends to, in float64.

    weights, full (P + L): of every token, prefix tokens first, as the clusters give them, and in full attention of the
        same queries and keys.  A token of a far cluster has the weight of the cluster's summary times its own within
        that.  Each sums to 1.
    labels (H, W): cluster of each patch token.  num_clusters, partition, far: how the layer clusters, and whether
        clusters attend to summaries.
    token: row and column of the one that attends.
    exact: the clusters that it attends to exactly, its own first.
    stage, block, head: counted from 0; heads, blocks, stages: how many there are.
    """

    weights: Tensor
    full: Tensor
    labels: Tensor
    token: tuple[int, int]
    exact: tuple[int, ...]
    num_clusters: int
    partition: str
    far: bool
    stage: int
    block: int
    head: int
    heads: int
    blocks: int = 0
    stages: int = 0

    def of_patches(self, weights: Tensor) -> Tensor:
        """Weights without those of prefix tokens.  (P + L) -> (H, W)"""
        return weights[len(weights) - self.labels.numel() :].view(self.labels.shape)

    def shares(self, weights: Tensor) -> dict[str, float]:
        """Sums of weights (P + L) by kind: own cluster, near and far ones, prefix tokens.  They sum to 1."""
        patches, own, *near = self.of_patches(weights), *self.exact
        sums = {"own": patches[self.labels == own].sum().item()}
        sums["near"] = sum(patches[self.labels == cluster].sum().item() for cluster in near)
        sums["far"] = patches.sum().item() - sums["own"] - sums["near"]
        return {**sums, "prefix": weights.sum().item() - patches.sum().item()}

    @property
    def moved(self) -> float:
        """The part of the attention that lies elsewhere than full attention's.  0..1"""
        return (self.weights - self.full).abs().sum().item() / 2


def token_attention(
    model: nn.Module,
    image: Tensor,
    at: Place = (0.5, 0.5),
    stages: Sequence[int] | None = None,
    head: int | str = 0,
    block: int | str | None = None,
    *,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    partition: Partition | None = None,
) -> list[TokenAttention]:
    """What the token at a place of one normalised image (3, H, W) attends to, one of each chosen block and head.

    model: as in `secvit.vis.cluster_maps`; or a vision transformer without clusters, whose attention is full.
    at: the place (x, y), 0..1 from the left and from the top.
    stages, head, block, num_clusters, cluster_size, partition: as in `secvit.vis.cluster_maps`.
    The model is left as it was.  ValueError for a place outside the image, a block or head that does not exist, a
    network whose attention cannot be put into clusters, and an attention of one's own without `projections`.
    """
    _check_place(at)
    with _some_clusters(model):
        recorded = record_keys(model, image, stages, block, projections=True)
    cut = (num_clusters, cluster_size, partition)
    return [one for keys in recorded for one in attention_of(keys, at, head, *cut)]


@contextmanager
def _some_clusters(model: nn.Module) -> Iterator[None]:
    """A vision transformer without clusters has one in each layer for a while, which is full attention."""
    if clustered(model):
        yield
        return
    patch(model, 1)
    try:
        yield
    finally:
        unpatch(model)


def attention_of(
    keys: LayerKeys,
    at: Place,
    head: int | str = 0,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    partition: Partition | None = None,
) -> list[TokenAttention]:
    """`token_attention` of one layer's recorded keys."""
    layer, projections = keys.layer, keys.projections
    if projections is None:
        raise ValueError(
            f"{type(layer.module).__name__} does not say what it computes attention of; give it a method projections "
            "(secvit.ops.clustering), and record with projections=True"
        )
    heads, prefix = projections.q.shape[1], layer.clustering.num_prefix_tokens
    if head != "all" and not (isinstance(head, int) and -heads <= head < heads):
        raise ValueError(f'head {head!r}, counted from 0; that stage has {heads} of them; or choose "all"')
    other_partition = (num_clusters, cluster_size, partition) != (None, None, None)
    plan = keys.cut(num_clusters, cluster_size, partition) if other_partition else keys.plan
    plan = plan.per_head(projections.k[:, :, prefix:])
    sight = layer.clustering.sight(plan.num_clusters)
    where = _token_at(at, keys.grid)
    token = prefix + where[0] * keys.grid[1] + where[1]
    attentions = []
    for i in range(heads) if head == "all" else [int(head) % heads]:
        q, k = (x[0, i].double() for x in (projections.q, projections.k))
        sizes = plan.sizes[0, i].tolist()
        clusters = [part.tolist() for part in plan.order[0, i, : sum(sizes)].split(sizes)]
        weights, exact = weights_of_token(token, q, k, clusters, **sight, scale=projections.scale, prefix=prefix)
        everything = [list(range(len(q)))]
        full = full_weights(q[token : token + 1], k, everything, projections.scale, 0)[0]
        about = (plan.num_clusters, shown_name(partition or keys.partition), sight["far"], layer.stage, layer.block)
        labels = plan.labels[0, i].unflatten(0, keys.grid)
        extent = (i, heads, layer.blocks, layer.stages)
        attentions.append(TokenAttention(weights, full, labels, where, tuple(exact), *about, *extent))
    return attentions


def place_in(text: str, size: tuple[int, int]) -> Place:
    """The place that "X,Y" names in a photo of (width, height) px, as parts of both.  -> (x, y), 0..1

    X, Y: parts from 0 to 1, or px if one of them is above 1.  Raises ValueError for anything else.
    """
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is no place; give X,Y, as 0.4,0.6 or in px as 256,128") from None
    if max(x, y) > 1:
        width, height = size
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"{text} is no place in a photo of {width} × {height} px")
        x, y = x / width, y / height
    _check_place((x, y))
    return x, y


def _check_place(at: Place) -> None:
    if not all(0 <= part <= 1 for part in at):
        raise ValueError(f"a place at {at}; places (x, y) go from 0 to 1, from the left and from the top")


def _token_at(at: Place, grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the token at a place (x, y) in 0..1."""
    return min(int(at[1] * grid[0]), grid[0] - 1), min(int(at[0] * grid[1]), grid[1] - 1)


# -- drawing -----------------------------------------------------------------------------------


def draw_attention(image: Image.Image, attentions: Sequence[TokenAttention], title: str = "", note: str = "") -> Figure:
    """A row for each: the token and the clusters that it sees, its weights in them, and those of full attention.

    Weights of a row are of one scale.  In a layer of full attention: the token, and its weights.
    """
    size = panel_size(image)
    photo = image.resize(size, Image.Resampling.LANCZOS)
    rows = [_row(photo, one) for one in attentions]
    letters = size[0] * max(map(len, rows)) // 10  # of a line
    return draw_panels(rows, size, title, textwrap.fill(f"{EXPLANATION}  {note}", letters))


def _row(photo: Image.Image, one: TokenAttention) -> list[Panel]:
    where = f"{place(one)}, head {one.head + 1} of {one.heads}"
    top = max(_brightest(one, one.weights), _brightest(one, one.full))
    full = _panel(photo, one, one.full, top, "full attention")
    if one.num_clusters == 1:
        return [Panel(sight_overlay(photo, one), f"{where}\nfull attention"), full]
    height, width = one.labels.shape
    clusters = f"{one.num_clusters} clusters ({one.partition.replace('_', ' ')}), grid {width}×{height}"
    title = f"in clusters: {one.moved:.0%} is elsewhere than in full attention"
    return [
        Panel(sight_overlay(photo, one), f"{where}\n{clusters}\n{_seen_words(one)}"),
        _panel(photo, one, one.weights, top, title),
        full,
    ]


def _brightest(one: TokenAttention, weights: Tensor) -> float:
    """The weight that has the brightest colour: a few tokens above it would leave all others dark."""
    return one.of_patches(weights).flatten().quantile(0.995).item()


def _panel(photo: Image.Image, one: TokenAttention, weights: Tensor, top: float, title: str) -> Panel:
    shares = one.shares(weights)
    if one.num_clusters == 1:
        shares = {"patch tokens": shares["own"], "prefix": shares["prefix"]}
    elif not one.far:
        shares = {"other clusters" if name == "far" else name: share for name, share in shares.items()}
    words = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)
    most = f"brightest: a token with {top:.2%} of the attention or more"
    return Panel(weights_overlay(photo, one, weights, top), f"{title}\n{words}\n{most}")


def _seen_words(one: TokenAttention) -> str:
    near, others = len(one.exact) - 1, one.num_clusters - len(one.exact)
    words = "sees its own cluster (orange)" + (f", {near} near (blue)" if near else "")
    return words + (f", {others} far by summaries" if one.far and others else "" if not others else " and no other")


def sight_overlay(photo: Image.Image, one: TokenAttention) -> np.ndarray:
    """Own cluster orange, near ones blue, far ones outlined where they are seen.  -> (h, w, 3) in 0..1"""
    grey = np.asarray(to_rgb(photo).convert("L"), dtype=np.float64)[..., None] / 255
    out = np.repeat(0.25 + 0.6 * grey, 3, axis=-1)
    if one.num_clusters > 1:
        labels = enlarged(one.labels, photo.height, photo.width)
        own, near = labels == one.exact[0], np.isin(labels, one.exact[1:])
        if not one.far:
            out = np.where((own | near)[..., None], out, 0.5 + 0.4 * grey)
        for inside, colour in ((own, OWN), (near, NEAR)):
            out = np.where(inside[..., None], OPACITY * np.array(colour) + (1 - OPACITY) * grey, out)
        edge = np.zeros(labels.shape, dtype=bool)
        edge[1:] |= labels[1:] != labels[:-1]
        edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        out = np.where((edge & (own | near | one.far))[..., None], 0.6 * out, out)
    return _marked(out, one)


def weights_overlay(photo: Image.Image, one: TokenAttention, weights: Tensor, top: float) -> np.ndarray:
    """Weights (P + L) of the patch tokens over the greyed photo, `top` brightest.  -> (h, w, 3) in 0..1"""
    share = (one.of_patches(weights) / max(top, 1e-300)).clamp(0, 1).sqrt()
    colours = matplotlib.colormaps["inferno"](enlarged(share, photo.height, photo.width))[..., :3]
    grey = np.asarray(to_rgb(photo).convert("L"), dtype=np.float64)[..., None] / 255
    return _marked(OPACITY * colours + (1 - OPACITY) * grey, one)


def _marked(pixels: np.ndarray, one: TokenAttention) -> np.ndarray:
    """A frame around the token that attends."""
    picture = Image.fromarray((255 * pixels).round().astype(np.uint8))
    (row, column), (rows, columns) = one.token, one.labels.shape
    width, height = max(picture.width / columns, SMALLEST_MARK), max(picture.height / rows, SMALLEST_MARK)
    x, y = (column + 0.5) * picture.width / columns, (row + 0.5) * picture.height / rows
    draw = ImageDraw.Draw(picture)
    for margin, colour in ((4, "black"), (3, "white"), (2, "white"), (1, "black")):
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        draw.rectangle((left - margin, top - margin, right + margin, bottom + margin), outline=colour)
    return np.asarray(picture) / 255
