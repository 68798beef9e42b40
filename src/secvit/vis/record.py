"""What a network clusters by: the keys of its attention, recorded in one forward pass.

One way for SECViT, SEC-Swin, SEC-DeiT and vision transformers that `secvit.patch` put clusters into.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secvit.adapt import ClusteredAttention
from secvit.models.rotary import rotate_packed_
from secvit.models.sec_deit import SECDeiT, SECDeiTAttention
from secvit.models.sec_swin import SECSwin
from secvit.models.secvit import SECAttention, SECViT
from secvit.ops import Partition, Plan, cluster


@dataclass(frozen=True)
class Layer:
    """An attention that clusters, and where it is.

    stage, block: counted from 0; a plain ViT is one stage.  blocks: how many its stage has.  stages: the network.
    module: the attention.  around: its block.
    layout: of what goes through the block, "NCHW", "NHWC" or "NLC", with so many `prefix` tokens in front.
    """

    stage: int
    block: int
    blocks: int
    module: nn.Module
    around: nn.Module
    layout: str
    prefix: int = 0
    stages: int = 1


@dataclass(frozen=True)
class LayerKeys:
    """What one attention clusters of one image, and the clusters it makes.

    keys (1, h, L, D): after norms and rotary positions; h = 1 where all heads go by one order.
    labels (h, H, W): cluster of each token.  num_clusters, partition, centre: as the layer has them.
    unturned (1, h, L, D): keys before rotary positions, where the layer has those.
    """

    layer: Layer
    keys: Tensor
    labels: Tensor
    num_clusters: int
    partition: Partition
    centre: str | Tensor = "mean"
    unturned: Tensor | None = None

    def without_rotary(self) -> LayerKeys:
        """The same with keys that do not know their places: what k-means needs, which else finds rows of the image."""
        return self if self.unturned is None else replace(self, keys=self.unturned)

    @property
    def grid(self) -> tuple[int, int]:
        return self.labels.shape[1], self.labels.shape[2]

    def cut(
        self,
        num_clusters: int | None = None,
        cluster_size: int | None = None,
        partition: Partition | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """Another partition of the same keys; what is not given is the layer's.  Never more clusters than tokens."""
        if num_clusters is None and cluster_size is None:
            num_clusters = self.num_clusters
        if num_clusters is not None:
            num_clusters = min(num_clusters, self.keys.shape[-2])
        partition = partition or self.partition
        centre = self.centre if partition == "sec" else "mean"
        options: dict[str, Any] = {"partition": partition, "centre": centre, "grid": self.grid, "generator": generator}
        return cluster(self.keys, num_clusters, cluster_size, **options)


def record_keys(
    model: nn.Module,
    image: Tensor,
    stages: Sequence[int] | None = None,
    block: int | str | None = None,
) -> list[LayerKeys]:
    """Keys and clusters of one normalised image (3, H, W) in the chosen attentions, by stage and block.

    stages: counted from 0; all of them if None.
    block: one of each stage, negative from its end, or "all"; None is the last of each stage, and of a plain ViT
        the last of each quarter of its depth.
    The model is left as it was, modes included.
    """
    image = one_image(image)
    chosen = choose(layers(model), stages, block)
    found: dict[Layer, LayerKeys] = {}
    with evaluating(model), unsorted(model), ExitStack() as taps, torch.inference_mode():
        for layer in chosen:
            taps.enter_context(_tapped(layer, found, tuple(image.shape[-2:])))
        run_features(model, image[None].to(next(model.parameters())))
    return [found[layer] for layer in chosen]


# -- which attentions --------------------------------------------------------------------------


def layers(model: nn.Module) -> list[Layer]:
    """All attentions of a network that cluster; a ValueError for one that has none."""
    if isinstance(model, SECViT):
        return _staged(model.stages, "NCHW")
    if isinstance(model, SECSwin):
        return _staged(model.layers, "NHWC")
    if isinstance(model, SECDeiT):
        blocks, prefix = model.blocks, model.num_prefix_tokens
        return [Layer(0, i, len(blocks), block.attn, block, "NLC", prefix) for i, block in enumerate(blocks)]
    if hasattr(model, "secvit_patch"):
        names, prefix = model.secvit_patch.layers, model.secvit_patch.clustering.num_prefix_tokens
        around = [model.get_submodule(_block_name(name)) for name in names]
        return [
            Layer(0, i, len(names), model.get_submodule(name), around[i], "NLC", prefix) for i, name in enumerate(names)
        ]
    raise ValueError(
        f"{type(model).__name__} has no attention in clusters; take a secvit_*, sec_deit_* or sec_swin_* model, "
        "or put clusters into a vision transformer with secvit.patch(model, num_clusters=4)"
    )


def _staged(stages: nn.Module, layout: str) -> list[Layer]:
    return [
        Layer(s, i, len(stage.blocks), block.attn, block, layout, stages=len(stages))
        for s, stage in enumerate(stages)
        for i, block in enumerate(stage.blocks)
    ]


def _block_name(name: str) -> str:
    """blocks.3 of blocks.3.attn: what ends with the last number."""
    place = re.match(r"(?:.*\.)?\d+(?=\.|$)", name)
    return place[0] if place else name


def choose(known: Sequence[Layer], stages: Sequence[int] | None, block: int | str | None) -> list[Layer]:
    """Those of the chosen stages and blocks, in order; see `record_keys`."""
    last = known[-1].stage
    chosen = []
    for stage in sorted(set(range(last + 1) if stages is None else stages)):
        inside = [layer for layer in known if layer.stage == stage]
        if not inside:
            raise ValueError(f"stage {stage}, counted from 0; this model has {last + 1} of them")
        count = len(inside)
        if block == "all":
            chosen += inside
        elif block is None:
            quarters = 4 if last == 0 else 1
            chosen += [inside[i] for i in sorted({math.ceil(count * (q + 1) / quarters) - 1 for q in range(quarters)})]
        elif isinstance(block, int) and -count <= block < count:
            chosen.append(inside[block])
        else:
            raise ValueError(f'block {block!r}, counted from 0; that stage has {count} of them; or choose "all"')
    return chosen


# -- one forward pass --------------------------------------------------------------------------


def one_image(image: Tensor) -> Tensor:
    """(3, H, W) of that or of (1, 3, H, W)."""
    image = image[0] if image.dim() == 4 and image.shape[0] == 1 else image
    if image.dim() != 3:
        raise ValueError(f"image of shape {tuple(image.shape)}; give one image (3, H, W)")
    return image


def run_features(model: nn.Module, images: Tensor) -> object:
    """A forward pass through all blocks: timm's networks without their head, others whole."""
    return model.forward_features(images) if hasattr(model, "forward_features") else model(images)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def unsorted(model: nn.Module) -> Iterator[None]:
    """Tokens of a patched model stay in their places between blocks that share an order."""
    owner = getattr(getattr(model, "secvit_patch", None), "owner", None)
    if owner is None:
        yield
        return
    owner = model.get_submodule(owner)
    before, owner.secvit_tapped = owner.secvit_tapped, True
    try:
        yield
    finally:
        owner.secvit_tapped = before


@contextmanager
def _tapped(layer: Layer, found: dict[Layer, LayerKeys], size: tuple[int, int]) -> Iterator[None]:
    """What a layer clusters is put into `found` as it runs."""

    def keep(
        keys: Tensor, grid: tuple[int, int], plan: Callable[[], Plan], partition: Partition,
        centre: str | Tensor = "mean", unturned: Tensor | None = None,
    ) -> None:  # fmt: skip
        with torch.random.fork_rng([keys.device] if keys.is_cuda else []):
            made = plan()  # forked: a random partition is drawn again, and the same, by the layer itself
        labels = made.labels[0] if made.order.dim() == 3 else made.labels
        centre = centre.cpu() if isinstance(centre, Tensor) else centre
        labels = labels.unflatten(-1, grid).cpu()
        unturned = None if unturned is None else unturned.cpu()
        found[layer] = LayerKeys(layer, keys.cpu(), labels, made.num_clusters, partition, centre, unturned)

    module = layer.module
    if isinstance(module, SECAttention):

        def tap(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            x, table = inputs
            B, H, W, C = x.shape
            qkv = module.qkv(x).view(B, H * W, module.num_heads, 3, C // module.num_heads)
            unturned = qkv[:, :, :, 1].transpose(1, 2).clone()
            keys = rotate_packed_(qkv, table)[:, :, :, 1].transpose(1, 2)
            keep(keys, (H, W), lambda: module.plan(x, table), module.partition, unturned=unturned)

        handle = module.register_forward_pre_hook(tap)
    elif isinstance(module, SECDeiTAttention):

        def tap(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            c, grid = module.clustering, module.grid.size
            qkv = module.qkv(inputs[0])[:, c.num_prefix_tokens :].unflatten(-1, (3, module.num_heads, -1))
            keys = module.k_norm(qkv[:, :, 1].transpose(1, 2))
            clusters = c.clusters_for(keys.shape[2])
            keep(keys, grid, lambda: cluster(keys, clusters, partition=c.partition, grid=grid), c.partition)

        handle = module.register_forward_pre_hook(tap)
    else:
        clustered = module.secvit
        module.secvit = _Overheard(clustered, keep, size)
        try:
            yield
        finally:
            module.secvit = clustered
        return
    try:
        yield
    finally:
        handle.remove()


class _Overheard:
    """A patched layer's attention, which says what it clusters before it does."""

    def __init__(self, clustered: ClusteredAttention, keep: Callable[..., None], size: tuple[int, int]) -> None:
        self.clustered, self.keep, self.size = clustered, keep, size

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        c = self.clustered.clustering
        scored = {"keys": key, "queries": query, "values": value}[c.score]
        if c.shared:
            scored = scored.transpose(1, 2).flatten(2).unsqueeze(1)
        centre: str | Tensor = scored[..., 0, :] if c.centre == "cls" else c.centre
        scored = scored[..., c.num_prefix_tokens :, :]
        length = scored.shape[-2]
        clusters = c.clusters_for(length)

        def plan() -> Plan:
            if clusters == 1:  # the layer does not ask for one either
                return cluster(scored, 1)
            return self.clustered.plan(query, key, value, clusters, None)

        self.keep(scored, c.grid or grid_of(length, self.size), plan, c.partition, centre)
        return self.clustered(query, key, value, *args, **kwargs)


def grid_of(num_tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of that many tokens whose proportions are nearest to the image's; a ValueError if none are near."""
    wanted = math.log(size[0] / size[1])

    def stretch(height: int) -> float:
        return abs(math.log(height**2 / num_tokens) - wanted)

    height = min((n for n in range(1, num_tokens + 1) if num_tokens % n == 0), key=stretch)
    if stretch(height) > math.log(1.5):
        raise ValueError(
            f"{num_tokens} tokens are no grid of an image of {size[0]} x {size[1]} px; say with "
            "secvit.patch(..., num_prefix_tokens=, grid=) how they lie"
        )
    return height, num_tokens // height
