"""What a network clusters by: the keys of its attention, recorded in one forward pass.

One way for every network whose attentions carry a `Clustering` (see `secvit.ops.clustering`): SECViT, SEC-Swin,
SEC-DeiT, vision transformers that `secvit.patch` put clusters into, and networks of your own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secvit.ops import Clustering, Keys, Partition, Plan, Projections, cluster


@dataclass(frozen=True)
class Layer:
    """An attention that clusters, and where it is.

    stage, block: counted from 0; a plain ViT is one stage.  blocks: how many its stage has.  stages: the network.
    module: the attention, with `clustering`, `keys` and `plan`.  around: its block.
    """

    stage: int
    block: int
    blocks: int
    module: Any
    around: nn.Module
    num_heads: int
    stages: int = 1

    @property
    def clustering(self) -> Clustering:
        clustering: Clustering = self.module.clustering
        return clustering


@dataclass(frozen=True)
class LayerKeys:
    """What one attention clusters of one image, and the clusters it makes.

    keys (1, h, L, D): after norms and rotary positions; h = 1 where all heads go by one order.
    labels (h, H, W): cluster of each token.  num_clusters, partition, centre: as the layer has them.
    plan: the same clusters, with the order inside them.
    unturned (1, h, L, D): keys before rotary positions, where the layer has those.
    queries (1, h, L, D): of the same tokens, for trees, where the layer tells them.
    projections: what attention is computed of, where that was asked for and the layer tells it.
    """

    layer: Layer
    keys: Tensor
    labels: Tensor
    num_clusters: int
    partition: Partition
    plan: Plan
    centre: str | Tensor = "mean"
    unturned: Tensor | None = None
    queries: Tensor | None = None
    projections: Projections | None = None

    def without_rotary(self) -> LayerKeys:
        """The same with keys that do not know their places: what k-means needs, which else finds rows of the image."""
        return self if self.unturned is None else replace(self, keys=self.unturned, queries=None)

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
        if partition == "tree":
            clustering = Clustering(num_clusters, cluster_size, partition=partition)
            return clustering.plan(Keys(self.keys, queries=self.queries))
        centre = self.centre if partition == "sec" else "mean"
        options: dict[str, Any] = {"partition": partition, "centre": centre, "grid": self.grid, "generator": generator}
        return cluster(self.keys, num_clusters, cluster_size, **options)


def record_keys(
    model: nn.Module,
    image: Tensor,
    stages: Sequence[int] | None = None,
    block: int | str | None = None,
    *,
    projections: bool = False,
) -> list[LayerKeys]:
    """Keys and clusters of one normalised image (3, H, W) in the chosen attentions, by stage and block.

    stages: counted from 0; all of them if None.
    block: one of each stage, negative from its end, or "all"; None is the last of each stage, and of a plain ViT
        the last of each quarter of its depth.
    projections: record queries, keys and values of all tokens, too, where the attentions tell them.
    The model is left as it was, modes included.
    """
    image = one_image(image)
    chosen = choose(layers(model), stages, block)
    recorded: dict[Layer, LayerKeys] = {}
    size = (image.shape[-2], image.shape[-1])
    with evaluating(model), unsorted(model), ExitStack() as taps, torch.inference_mode():
        for layer in chosen:
            taps.callback(before_each(layer, partial(_keep, layer, recorded, size, projections)).remove)
        run_features(model, image[None].to(next(model.parameters())))
    return [recorded[layer] for layer in chosen]


# -- which attentions --------------------------------------------------------------------------


def layers(model: nn.Module) -> list[Layer]:
    """All attentions of a network that cluster; a ValueError for one that has none.

    A block is what carries the last number in an attention's name, blocks.3 of blocks.3.attn; the blocks of one
    list are a stage.
    """
    names = clustered(model)
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no attention in clusters; take a secvit_*, sec_deit_* or sec_swin_* model, "
            "or put clusters into a vision transformer with secvit.patch(model, num_clusters=4)"
        )
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(_block_name(name).rpartition(".")[0], []).append(name)
    layers = []
    for stage, inside in enumerate(stages.values()):
        for i, name in enumerate(inside):
            module, owner = (model.get_submodule(n) for n in (name, name.rpartition(".")[0]))
            heads = getattr(module, "num_heads", 0) or getattr(owner, "num_heads", 1)  # of what was patched
            around = model.get_submodule(_block_name(name))
            layers.append(Layer(stage, i, len(inside), module, around, heads, len(stages)))
    return layers


def clustered(model: nn.Module) -> list[str]:
    """Names of the attentions that cluster."""
    return [name for name, module in model.named_modules() if hasattr(module, "clustering")]


def _block_name(name: str) -> str:
    """blocks.3 of blocks.3.attn: what ends with the last number."""
    place = re.match(r"(?:.*\.)?\d+(?=\.|$)", name)
    return place[0] if place else name


def choose(all_layers: Sequence[Layer], stages: Sequence[int] | None, block: int | str | None) -> list[Layer]:
    """Those of the chosen stages and blocks, in order; see `record_keys`."""
    last = all_layers[-1].stage
    chosen = []
    for stage in sorted(set(range(last + 1) if stages is None else stages)):
        inside = [layer for layer in all_layers if layer.stage == stage]
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
    network: Any = model
    return network.forward_features(images) if hasattr(network, "forward_features") else network(images)


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
    name = getattr(getattr(model, "secvit_patch", None), "owner", None)
    if name is None:
        yield
        return
    owner: Any = model.get_submodule(name)
    before, owner.secvit_tapped = owner.secvit_tapped, True
    try:
        yield
    finally:
        owner.secvit_tapped = before


def before_each(layer: Layer, tell: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]) -> RemovableHandle:
    """`tell(attention, args, kwargs)` before each of its forward passes, random numbers left as they were."""

    def tap(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        devices = [x.device for x in args if isinstance(x, Tensor) and x.is_cuda]
        with torch.random.fork_rng(devices[:1]):  # a random partition is drawn again, and the same, by the layer itself
            tell(module, args, kwargs)

    return layer.module.register_forward_pre_hook(tap, with_kwargs=True)


def _keep(
    layer: Layer, recorded: dict[Layer, LayerKeys], size: tuple[int, int], with_projections: bool,
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
) -> None:  # fmt: skip
    """Put what a layer clusters into `recorded`."""
    keys, plan = module.keys(*args, **kwargs), module.plan(*args, **kwargs)
    grid = keys.grid or grid_of(plan.order.shape[-1], size)
    labels = plan.labels[0] if plan.order.dim() == 3 else plan.labels  # of each head, or one for all
    tokens = keys.tokens if keys.tokens.dim() == 4 else keys.tokens.unsqueeze(1)
    queries = None if keys.queries is None else keys.queries.reshape(tokens.shape).cpu()
    centre = keys.centre.cpu() if isinstance(keys.centre, Tensor) else keys.centre
    projections = None
    if with_projections and hasattr(module, "projections"):
        made = module.projections(*args, **kwargs)
        projections = Projections(made.q.cpu(), made.k.cpu(), made.v.cpu(), made.scale)
    recorded[layer] = LayerKeys(
        layer, tokens.cpu(), labels.unflatten(-1, grid).cpu(), plan.num_clusters, module.clustering.partition,
        _on_cpu(plan), centre, None if keys.unturned is None else keys.unturned.cpu(), queries, projections,
    )  # fmt: skip


def _on_cpu(plan: Plan) -> Plan:
    sizes = None if plan.unequal_sizes is None else plan.unequal_sizes.cpu()
    return Plan(plan.order.cpu(), plan.num_clusters, plan.max_size, sizes)


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
