"""`secvit.patch`: clusters in the attention of a model that exists; `unpatch` takes them out again.

No weights, keys of the state dict or classes change.  In timm's and other modules the call of
`scaled_dot_product_attention` inside an attention module's own forward is answered by
`ClusteredAttention`, so qk-norm, rotary positions, gates and layer scale stay what they are.  In
transformers the public attention interface does the same (`hf`).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models import eva, vision_transformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from secvit.adapt.attend import ClusteredAttention, SharedOrder
from secvit.ops import Clustering, Partition

# attention over all tokens by one call of scaled_dot_product_attention (two in DiffAttention)
TIMM_ATTENTION = (
    Attention,
    AttentionRope,
    DiffAttention,
    eva.EvaAttention,
    vision_transformer.ParallelScalingBlock,
    vision_transformer.DiffParallelScalingBlock,
)
PATCHED_TIMM = "vit_sec_patched"  # timm's name for a patched network (secvit.models.patched_vit)


@dataclass
class Patch:
    """What `patch` did to a model, kept as its attribute `secvit_patch` and undone by `unpatch`.

    options: the arguments of `patch` that are not its defaults.
    layers, left_out: names of the attention modules that are clustered, and of the others in transformers.
    owner: name of the module whose blocks pass on sorted tokens.
    configs: transformers' configs before, by module; the patched model has its own.
    """

    clustering: Clustering
    options: dict[str, Any]
    layers: list[str]
    left_out: list[str] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)
    owner: str | None = None
    configs: list[tuple[nn.Module, Any]] = field(default_factory=list)


def patch(
    model: nn.Module,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    *,
    layers: Iterable[int] | None = None,
    score: str = "keys",
    centre: str = "mean",
    partition: Partition = "sec",
    shared: bool = False,
    share_order_every: int = 1,
    grid: tuple[int, int] | None = None,
    num_prefix_tokens: int | None = None,
    modules: Iterable[str] | None = None,
    backend: str = "auto",
    near: int = 1,
    far: bool = False,
) -> nn.Module:
    """Eqs. 1 to 4 inside the self-attention of a vision transformer, in place; returns the model.

    model: one of timm's plain ViTs (vit, deit, deit3, eva, dinov3, clip, siglip, ...), a vision tower of
        transformers (ViT, CLIP, SigLIP, DINOv2, DINOv3, ...), or, with `modules`, anything.
    num_clusters | cluster_size: of the patch tokens; a size keeps the cost linear in their number.
    layers: which of the model's layers, counted from 0 (negative: from the end); all if None.
    score, centre, partition, shared, grid: see `secvit.Clustering`.
    near, far: beside the paper, whose clusters see nothing of each other; a trained model is not made for that.
        near is never more than there are clusters.
        partition="tree", near=2, far=True keeps its features nearly as they are (`secvit.sec_attention`).
    share_order_every: so many layers in a row go by the order of the first, one order for all heads.  Where
        blocks take nothing but tokens, the tokens travel in that order between them: a forward hook on a
        block inside such a group sees them so.
    num_prefix_tokens: tokens in front that are no patches; what the model says if None.
    modules: names of attention modules, each of which calls `scaled_dot_product_attention` on (B, h, L, D) of
        all tokens, for models that neither timm nor transformers made.
    A model of transformers keeps the options in its config: `save_pretrained` writes them, and where secvit is
    imported `from_pretrained` patches again.
    Raises ValueError for models whose attention cannot be clustered (windows, causal, biases), with the reason.
    """
    layers, modules = (None if value is None else list(value) for value in (layers, modules))
    options = {name: value for name, value in locals().items() if name != "model" and value != DEFAULTS[name]}
    if hasattr(model, "secvit_patch"):
        raise ValueError("the model is patched already; secvit.unpatch(model) first")
    if share_order_every < 1:
        raise ValueError(f"share_order_every={share_order_every}; choose share_order_every >= 1")
    if (partition in ("kmeans", "balanced_kmeans") or backend == "reference") and share_order_every > 1:
        raise ValueError(f"partition={partition!r}, backend={backend!r} cannot be shared; use share_order_every=1")
    transformers = sys.modules.get("transformers")
    from_transformers = transformers is not None and isinstance(model, transformers.PreTrainedModel)
    if from_transformers:
        from secvit.adapt import hf

    if modules is not None:
        sites = _named(model, modules)
    else:
        sites = hf.attention_modules(model) if from_transformers else _timm_attention(model)
    if num_prefix_tokens is None:
        num_prefix_tokens = hf.num_prefix_tokens(model) if from_transformers else _timm_prefix(model)
    clustering = Clustering(
        num_clusters, cluster_size, num_prefix_tokens, score, centre,
        partition, shared or share_order_every > 1, grid, backend, near, far,
    )  # fmt: skip
    chosen = _chosen(sites, layers)
    if patched := [name for name, module in sites if hasattr(module, "secvit")]:
        raise ValueError(f"{patched[0]} is patched already, as part of another model; secvit.unpatch that first")
    by_interface = from_transformers and modules is None
    if not by_interface and (hooked := [name for name, module in chosen if "forward" in vars(module)]):
        raise ValueError(f"{hooked[0]} has a forward of its own, set by another tool; patch the model before that does")
    done = Patch(clustering, options, [name for name, _ in chosen])
    recomputing = [
        m for m in model.modules() if hasattr(m, "grad_checkpointing") or hasattr(m, "gradient_checkpointing")
    ]
    for start in range(0, len(chosen), share_order_every):
        group = chosen[start : start + share_order_every]
        order = SharedOrder() if len(group) > 1 else None
        for i, (_, module) in enumerate(group):
            module.secvit = ClusteredAttention(clustering, order, leads=i == 0)
            if not by_interface:
                module.forward = partial(_clustered_forward, module)
        if order is not None:
            done.handles.append(group[0][1].register_forward_pre_hook(partial(_refuse_recomputing, recomputing)))
            handles, owner = _carry_order(model, [name for name, _ in group], order, clustering.num_prefix_tokens)
            done.handles += handles
            done.owner = done.owner if owner is None else owner
    if done.owner is not None:
        owner_module = model.get_submodule(done.owner)
        owner_module.secvit_tapped = False
        owner_module.forward_intermediates = partial(_tapped_intermediates, owner_module)
    if by_interface:
        for name, module in sites:
            if name not in done.layers:
                module.secvit = None
                done.left_out.append(name)
    if from_transformers:
        done.configs = hf.own_configs(model, options)
    if by_interface:
        done.handles += hf.use(model)
    model.secvit_patch = done
    return model


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(patch).parameters.items()}


def unpatch(model: nn.Module) -> nn.Module:
    """Undo `patch`: the model is what it was, with the weights it has now."""
    done = getattr(model, "secvit_patch", None)
    if not isinstance(done, Patch):
        inside = [f"secvit.unpatch(model.{name})" for name, m in model.named_modules() if hasattr(m, "secvit_patch")]
        raise ValueError("the model is not patched" + (f"; a part of it is: {inside[0]}" if inside else ""))
    present = dict(model.named_modules())  # layers may have been pruned
    for module in (present[name] for name in done.layers + done.left_out if name in present):
        if hasattr(module, "secvit"):
            del module.secvit
        if getattr(vars(module).get("forward"), "func", None) is _clustered_forward:
            del module.forward
    for handle in done.handles:
        handle.remove()
    if done.owner is not None:
        owner = model.get_submodule(done.owner)
        del owner.secvit_tapped, owner.forward_intermediates
    for module, config in done.configs:
        module.config = config
    del model.secvit_patch
    return model


# -- the call inside a module's forward ------------------------------------------------------------


class _Answer(TorchFunctionMode):
    """Calls of scaled_dot_product_attention inside the context are answered by `attend`."""

    def __init__(self, attend: ClusteredAttention, called: list[bool]) -> None:
        super().__init__()
        self.attend = attend
        self.called = called

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.called.append(True)
            return self.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _clustered_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    called: list[bool] = []
    with _Answer(module.secvit, called):
        out = type(module).forward(module, *args, **kwargs)
    if not called:
        raise RuntimeError(
            f"{type(module).__name__} did not call scaled_dot_product_attention, so nothing was clustered; "
            "switch its fused attention on (timm.layers.set_fused_attn), or unpatch"
        )
    return out


# -- which modules, which tokens ---------------------------------------------------------------------


def _named(model: nn.Module, names: Iterable[str]) -> list[tuple[str, nn.Module]]:
    known = dict(model.named_modules())
    names = list(names)
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"modules={missing}: the model has none of that name; see model.named_modules()")
    if not names:
        raise ValueError("modules=[]; name the attention modules to cluster")
    return [(name, known[name]) for name in names]


def _timm_attention(model: nn.Module) -> list[tuple[str, nn.Module]]:
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, TIMM_ATTENTION)]
    if not found:
        raise ValueError(
            f"no attention that can be clustered in {type(model).__name__}: it needs plain self-attention over all "
            "tokens, without windows or position biases, as in timm's vit, deit, deit3, eva, clip, siglip and dinov3 "
            "models and in transformers' vision towers.  For a module of your own give modules=[names]"
        )
    if off := [name for name, m in found if not getattr(m, "fused_attn", True)]:
        raise ValueError(
            f"{off[0]} and {len(off) - 1} more do not call scaled_dot_product_attention (fused_attn is off); create "
            "the model with fused attention on (timm.layers.set_fused_attn)"
        )
    return found


def _timm_prefix(model: nn.Module) -> int:
    counts = {m.num_prefix_tokens for m in model.modules() if isinstance(getattr(m, "num_prefix_tokens", None), int)}
    if len(counts) > 1:
        counts = {
            m.num_prefix_tokens for m in model.modules() if hasattr(m, "num_prefix_tokens") and hasattr(m, "blocks")
        }
    if len(counts) > 1:
        raise ValueError(f"parts of the model count {sorted(counts)} prefix tokens; give num_prefix_tokens=")
    if not counts and any("cls_token" in name for name, _ in model.named_parameters()):
        raise ValueError(f"{type(model).__name__} has a [cls] token and does not say where; give num_prefix_tokens=")
    return counts.pop() if counts else 0


def _chosen(sites: Sequence[tuple[str, nn.Module]], layers: Iterable[int] | None) -> list[tuple[str, nn.Module]]:
    if layers is None:
        return list(sites)
    layers = list(layers)
    if not layers or any(not -len(sites) <= i < len(sites) for i in layers):
        raise ValueError(f"layers={layers}; choose from 0 to {len(sites) - 1}, or negative ones from the end")
    wanted = {i % len(sites) for i in layers}
    return [site for i, site in enumerate(sites) if i in wanted]


# -- one order for several layers ----------------------------------------------------------------------


def _carry_order(
    model: nn.Module, names: Sequence[str], order: SharedOrder, prefix: int
) -> tuple[list[RemovableHandle], str | None]:
    """Hooks that end a group's order, and let tokens travel in it where blocks allow that; and who owns the blocks."""
    places = [re.fullmatch(r"(.*?)\.?\bblocks\.(\d+)(?:\.attn)?", name) for name in names]
    numbers = [int(place[2]) for place in places if place]
    if len(numbers) == len(names) and numbers == list(range(numbers[0], numbers[0] + len(names))):
        owner_name = places[0][1]  # type: ignore[index]
        owner = model.get_submodule(owner_name)
        if hasattr(owner, "forward_intermediates"):
            stream = _Stream(owner, order, prefix)
            first, last = owner.blocks[numbers[1]], owner.blocks[numbers[-1]]
            return [
                first.register_forward_pre_hook(stream.enter, with_kwargs=True),
                last.register_forward_hook(stream.leave),
            ], owner_name
    return [model.get_submodule(names[-1]).register_forward_hook(partial(_forget, order))], None


class _Stream:
    """Tokens travel in the leading layer's order through the blocks that follow it."""

    def __init__(self, owner: nn.Module, order: SharedOrder, prefix: int) -> None:
        self.owner, self.order, self.prefix = owner, order, prefix
        self.depth = len(owner.blocks)

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the block after the leading one."""
        plan = self.order.plan
        alone = len(args) == 1 and all(value is None or value is False for value in kwargs.values())
        # a shortened model never reaches the block that puts tokens back
        whole = len(self.owner.blocks) == self.depth and not self.owner.secvit_tapped
        if plan is None or plan.unequal_sizes is not None or not (alone and whole):
            return None
        self.order.sorted_stream = True
        return (self._patches(plan.take, args[0]),), kwargs

    def leave(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """After the last block of the group."""
        plan, travelled = self.order.plan, self.order.sorted_stream
        self.order.plan, self.order.sorted_stream = None, False
        return self._patches(plan.put_back, out) if travelled and plan is not None else None

    def _patches(self, move: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.prefix], move(x[:, self.prefix :])], dim=1)


def _forget(order: SharedOrder, module: nn.Module, args: Any, out: Any) -> None:
    order.plan = None


def _refuse_recomputing(modules: Sequence[nn.Module], module: nn.Module, args: Any) -> None:
    """Already in the forward: an error in the middle of a backward can crash torch when the process ends."""
    if torch.is_grad_enabled() and any(
        getattr(m, "grad_checkpointing", False) or (m.training and getattr(m, "gradient_checkpointing", False))
        for m in modules
    ):
        raise ValueError(
            "gradient checkpointing recomputes layers without the order they share; use share_order_every=1"
        )


def _tapped_intermediates(owner: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """forward_intermediates shows the tokens between blocks, so they stay where they are."""
    owner.secvit_tapped = True
    try:
        return type(owner).forward_intermediates(owner, *args, **kwargs)
    finally:
        owner.secvit_tapped = False
