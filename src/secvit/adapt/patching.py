"""`secvit.patch`: clusters in the attention of a model that exists; `unpatch` takes them out again.

No weights, keys of the state dict or classes change.  In timm's and other modules the call of
`scaled_dot_product_attention` inside an attention module's own forward is answered by
`ClusteredAttention`, so qk-norm, rotary positions, gates and layer scale stay what they are.  In
transformers the public attention interface does the same (`hf`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, cast

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from secvit.adapt.attend import ClusteredAttention, SharedOrder
from secvit.adapt.shared_order import Owner, carry_order, let_tap, refuse_recomputing
from secvit.adapt.sites import Site, chosen_layers, named_modules, timm_attention, timm_prefix
from secvit.ops import Clustering, Partition, chosen_quality

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PATCHED_TIMM = "vit_sec_patched"  # timm's name for a patched network (secvit.models.patched_vit)


@dataclass
class Patch:
    """What `patch` did to a model, kept as its attribute `secvit_patch` and undone by `unpatch`.

    options: the arguments of `patch` that are not its defaults, and the quality where no number is given.
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


class PatchedModel(Protocol):
    """What `patch` adds to a model; to a type checker any other attribute of a module is a Tensor or a Module."""

    secvit_patch: Patch


class PatchedAttention(Protocol):
    """What `patch` adds to an attention module.  secvit is None in layers of transformers that were left out."""

    secvit: ClusteredAttention | None
    forward: Callable[..., Any]


def patch(
    model: nn.Module,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    *,
    quality: str | None = None,
    layers: Iterable[int] | None = None,
    score: str = "keys",
    centre: str = "mean",
    partition: Partition = "auto",
    shared: bool = False,
    share_order_every: int = 1,
    grid: tuple[int, int] | None = None,
    num_prefix_tokens: int | None = None,
    modules: Iterable[str] | None = None,
    backend: str = "auto",
    near: int | None = None,
    far: bool | None = None,
) -> nn.Module:
    """Clusters in the self-attention of a vision transformer, in place; returns the model.

    model: one of timm's plain ViTs (vit, deit, deit3, eva, dinov3, clip, siglip, ...), a vision tower of
        transformers (ViT, CLIP, SigLIP, DINOv2, DINOv3, Qwen-VL, ...), or, with `modules`, anything.
    quality: "fast", "balanced" (where no number is given) or "faithful": a tree of clusters that see each other, as
        many as the number of tokens asks for, at each call; few tokens attend to all, as in the unpatched model.
    num_clusters | cluster_size: the paper's, of the patch tokens; a size keeps the cost linear in their number.
    layers: which of the model's layers, counted from 0 (negative: from the end); all if None (those outside windows).
    score, centre, partition, shared, grid: see `secvit.Clustering`.
    near, far: with a number; beside the paper, whose clusters see nothing of each other; a trained model is not made
        for that.  near (1) is never more than there are clusters, far is False.
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
    layers = None if layers is None else list(layers)
    modules = None if modules is None else list(modules)
    quality = chosen_quality(quality, num_clusters, cluster_size, near, far)
    options = _beside_defaults({name: value for name, value in locals().items() if name != "model"})
    _check_request(model, partition, backend, share_order_every)
    by_interface = _of_transformers(model) and modules is None
    sites = _sites(model, modules)
    clustering = Clustering(
        num_clusters, cluster_size, _prefix(model) if num_prefix_tokens is None else num_prefix_tokens, score, centre,
        partition, shared or share_order_every > 1, grid, backend, 1 if near is None else near,
        False if far is None else far, quality,
    )  # fmt: skip
    chosen = chosen_layers(sites, _possible(model, layers, len(sites)) if by_interface else layers)
    _check_sites(sites, [] if by_interface else chosen)
    done = Patch(clustering, options, [name for name, _ in chosen])
    for start in range(0, len(chosen), share_order_every):
        _cluster_group(model, chosen[start : start + share_order_every], done, by_interface)
    if done.owner is not None:
        let_tap(cast(Owner, model.get_submodule(done.owner)))
    if _of_transformers(model):
        _register(model, done, sites if by_interface else [])
    cast(PatchedModel, model).secvit_patch = done
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
        owner = cast(Owner, model.get_submodule(done.owner))
        del owner.secvit_tapped, owner.forward_intermediates
    for module, config in done.configs:
        module.config = config
    del model.secvit_patch
    return model


# -- the steps of `patch` ----------------------------------------------------------------------------


def _beside_defaults(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `patch` that a file must hold."""
    with_numbers = {"partition": "sec", "near": 1, "far": False}
    implied = {"partition": "tree"} if arguments["quality"] is not None else with_numbers
    return {
        name: value
        for name, value in arguments.items()
        if value != DEFAULTS[name] and (name not in implied or value != implied[name])
    }


def _of_transformers(model: nn.Module) -> TypeGuard[PreTrainedModel]:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _check_request(model: nn.Module, partition: Partition, backend: str, share_order_every: int) -> None:
    if hasattr(model, "secvit_patch"):
        raise ValueError("the model is patched already; secvit.unpatch(model) first")
    if share_order_every < 1:
        raise ValueError(f"share_order_every={share_order_every}; choose share_order_every >= 1")
    if (partition in ("kmeans", "balanced_kmeans") or backend == "reference") and share_order_every > 1:
        raise ValueError(f"partition={partition!r}, backend={backend!r} cannot be shared; use share_order_every=1")


def _sites(model: nn.Module, modules: Sequence[str] | None) -> Sequence[Site]:
    if modules is not None:
        return named_modules(model, modules)
    if _of_transformers(model):
        from secvit.adapt import hf

        return hf.attention_modules(model)
    return timm_attention(model)


def _possible(model: nn.Module, layers: list[int] | None, depth: int) -> list[int] | None:
    from secvit.adapt import hf

    return hf.full_attention(cast("PreTrainedModel", model), layers, depth)


def _prefix(model: nn.Module) -> int:
    if _of_transformers(model):
        from secvit.adapt import hf

        return hf.num_prefix_tokens(model)
    return timm_prefix(model)


def _check_sites(sites: Sequence[Site], called: Sequence[Site]) -> None:
    """sites: attention modules of the model.  called: those whose forward will be ours."""
    if patched := [name for name, module in sites if hasattr(module, "secvit")]:
        raise ValueError(f"{patched[0]} is patched already, as part of another model; secvit.unpatch that first")
    if hooked := [name for name, module in called if "forward" in vars(module)]:
        raise ValueError(f"{hooked[0]} has a forward of its own, set by another tool; patch the model before that does")


def _cluster_group(model: nn.Module, group: Sequence[Site], done: Patch, by_interface: bool) -> None:
    """Put clusters in layers that go by one order, that of the first."""
    order = SharedOrder() if len(group) > 1 else None
    for i, (_, module) in enumerate(group):
        attention = cast(PatchedAttention, module)
        attention.secvit = ClusteredAttention(done.clustering, order, leads=i == 0)
        if not by_interface:
            attention.forward = partial(_clustered_forward, attention)
    if order is not None:
        done.handles.append(refuse_recomputing(model, group[0][1]))
        handles, owner = carry_order(model, [name for name, _ in group], order, done.clustering.num_prefix_tokens)
        done.handles += handles
        done.owner = done.owner if owner is None else owner


def _register(model: PreTrainedModel, done: Patch, sites: Sequence[Site]) -> None:
    """Note the patch in transformers' configs, and answer its attention interface for `sites`, if there are any."""
    from secvit.adapt import hf

    for name, module in sites:
        if name not in done.layers:
            cast(PatchedAttention, module).secvit = None
            done.left_out.append(name)
    done.configs = hf.own_configs(model, done.options)
    if sites:
        done.handles += hf.use(model)


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


def _clustered_forward(module: PatchedAttention, *args: Any, **kwargs: Any) -> Any:
    called: list[bool] = []
    assert module.secvit is not None  # only transformers' interface leaves layers out
    with _Answer(module.secvit, called):
        out = type(module).forward(module, *args, **kwargs)
    if not called:
        raise RuntimeError(
            f"{type(module).__name__} did not call scaled_dot_product_attention, so nothing was clustered; "
            "switch its fused attention on (timm.layers.set_fused_attn), or unpatch"
        )
    return out
