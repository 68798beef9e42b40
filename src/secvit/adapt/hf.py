"""transformers' vision towers, through its public attention interface: `model.set_attn_implementation("secvit")`.

The interface is one function for all models; each attention module carries its own settings.  Importing this module
also lets `from_pretrained` patch a model again that was saved patched, and `save_pretrained` write the patches of
parts: transformers has no seam for either, so both are wrapped.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from secvit.adapt.patching import PATCHED_TIMM, patch
from secvit.ops import written

NAME = "secvit"
KEY = "secvit_patch"  # in config.json: the options of `secvit.patch`


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What the interface calls: q k v (B, h, L, D) -> (B, L, h, D).  Layers left out by `layers=` use SDPA."""
    if not hasattr(module, "secvit"):
        raise ValueError(
            f"this {type(module).__name__} is told to use {NAME!r} and has no clusters: secvit.patch(model, ...) sets "
            "both; set_attn_implementation alone cannot"
        )
    clustered: Any = module.secvit  # a ClusteredAttention
    if clustered is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if biases := [name for name in ("position_bias", "softcap", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} adds {biases[0]} to its scores, which clusters cannot keep; unpatch")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    out = clustered(query, key, value, attention_mask, dropout, bool(causal), scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def check_call(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> None:
    """Before the model's forward, what would else pass in silence: another attention, or weights, which are None."""
    if model.config._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} is patched, and its attention was set to {model.config._attn_implementation!r}, "
            "which has no clusters: first secvit.unpatch(model), then set it"
        )
    if kwargs.get("output_attentions", getattr(model.config, "output_attentions", False)):
        raise ValueError("clustered attention has no L x L weights to return; drop output_attentions, or unpatch")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The self-attention modules of a vision tower by name; a ValueError with the reason if it is none."""
    if hasattr(model.config, "text_config"):
        towers = [name for name, m in model.named_modules() if _sees_images(m) and name]
        raise ValueError(
            f"{type(model).__name__} has a text tower; patch its vision tower instead: "
            + " or ".join(f"secvit.patch(model.{name}, ...)" for name in towers[:1] or ["vision_model"])
        )
    name = type(model).__name__
    if model.config.model_type == "pixtral":
        raise ValueError(
            f"{name} packs the patches of all images into one sequence under a mask that keeps images apart, and "
            "clusters would cross it: such a tower cannot be patched"
        )
    if not _sees_images(model) and "image" in getattr(model, "input_modalities", ()):
        raise ValueError(f"{name} takes its images neither as pixel_values nor with grid_thw; give modules=[names]")
    if not _sees_images(model):
        raise ValueError(
            f"{name} reads {model.main_input_name}, not images.  A causal tower cannot be clustered: "
            "the centre and every token's rank depend on later tokens; patch the vision tower"
        )
    settings = [item for _, config in _configs(model) for item in vars(config).items()]
    some = hasattr(model.config, "fullatt_block_indexes")  # windows in the other layers alone (`full_attention`)
    windows = [key for key, value in settings if "window_size" in key and value and not some]
    biases = [key for key, _ in [*model.named_modules(), *model.named_parameters()] if "relative_position" in key]
    if windows or biases:
        raise ValueError(
            f"{name} has windows or position biases ({(windows + biases)[0]}), which clusters cannot keep; patch a "
            "tower with plain attention over all tokens (ViT, CLIP, SigLIP, DINOv2, DINOv3, ...)"
        )
    modules = [(name, m) for name, m in model.named_modules() if hasattr(m, "is_causal")]
    if not modules:
        raise ValueError(
            f"{name} does not go through transformers' attention interface, so there is nothing to "
            "patch; for an attention of your own give modules=[names]"
        )
    return modules


def _configs(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    return [(m, m.config) for m in model.modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)]


def full_attention(model: PreTrainedModel, layers: list[int] | None, depth: int) -> list[int] | None:
    """Which of `depth` layers to cluster, all if None; ValueError where one of `layers` attends inside windows."""
    possible = getattr(model.config, "fullatt_block_indexes", None)
    if possible is None or layers is None:
        return layers if possible is None else list(possible)
    if inside := [i for i in layers if i % depth not in possible and -depth <= i < depth]:
        raise ValueError(
            f"layer {inside[0]} of {type(model).__name__} attends inside windows, which clusters cannot keep; choose "
            f"layers from {list(possible)}"
        )
    return layers


def _sees_images(module: nn.Module) -> bool:
    """Is it a vision tower?  grid_thw: packed images, which the attention of these towers takes one by one."""
    if not isinstance(module, PreTrainedModel) or hasattr(module.config, "text_config"):
        return False
    takes = inspect.signature(module.forward).parameters
    by_name = "input_ids" not in takes and ("pixel_values" in takes or "grid_thw" in takes)
    return by_name or module.main_input_name == "pixel_values"


def num_prefix_tokens(model: PreTrainedModel) -> int:
    """[cls], distillation and register tokens in front of the patches."""
    names = ("cls_token", "class_embedding", "distillation_token")
    present = {name for m in model.modules() for name in names if torch.is_tensor(getattr(m, name, None))}
    return len(present) + int(getattr(model.config, "num_register_tokens", 0) or 0)


def own_configs(model: PreTrainedModel, options: dict[str, Any]) -> list[tuple[nn.Module, Any]]:
    """Give the model configs of its own, with the patch's options: others may share those it had, which are returned.

    A function that has no name is not written down; `save_pretrained` then says so.
    """
    before = _configs(model)
    copies: dict[int, Any] = {}
    for module, config in before:
        module.config = copy.deepcopy(config, copies)
    for _, config in before:
        vars(config).pop(KEY, None)  # of a file; these configs are the unpatched model's
    with suppress(ValueError):
        setattr(model.config, KEY, written(options))
    return before


def use(model: PreTrainedModel) -> list[RemovableHandle]:
    """Set the attention to ours, and see that it stays so."""
    model.set_attn_implementation(NAME)
    models = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    return [m.register_forward_pre_hook(check_call, with_kwargs=True) for m in models]


# -- saving and loading ----------------------------------------------------------------------------


def _writes_patches(save_pretrained: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save_pretrained)
    def save(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        with _patches_in_config(self):
            return save_pretrained(self, *args, **kwargs)

    return save


@contextmanager
def _patches_in_config(model: PreTrainedModel) -> Iterator[None]:
    """The model's config with the patches of its parts: a patched part has a config of its own.

    Raises ValueError for a patch with a function that has no name.  Warns of a part that the config has no place for.
    """
    places = {id(config): config for config in _with_parts(model.config)}
    marked = []
    for name, part in model.named_modules():
        done = vars(part).get("secvit_patch")
        if done is None:
            continue
        options = written(done.options)
        before = next((config for module, config in done.configs if module is part), None)
        if id(before) in places:
            setattr(before, KEY, options)
            marked.append(before)
        elif part is not model and getattr(model.config, "architecture", None) != PATCHED_TIMM:
            warnings.warn(
                f"the clusters of {name} are not saved: {type(model).__name__} has no place for them in its config; "
                f"after loading, secvit.patch(model.{name}, **{options})",
                stacklevel=4,
            )
    try:
        yield
    finally:
        for config in marked:
            delattr(config, KEY)


def _with_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            yield from _with_parts(part)


def _patches_again(from_pretrained: Callable[..., Any]) -> Any:
    @functools.wraps(from_pretrained)
    def load(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        loaded = from_pretrained(cls, *args, **kwargs)
        _patch_again(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    return classmethod(load)


def _patch_again(model: PreTrainedModel) -> None:
    """Patch what was saved patched: the model or parts of it."""
    done: list[str] = []
    for name, part in list(model.named_modules()):
        if not isinstance(part, PreTrainedModel) or any(name.startswith(outer) for outer in done):
            continue
        options = vars(part.config).pop(KEY, None)
        if options is None:
            continue
        done.append(f"{name}." if name else "")
        try:
            patch(part, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{model.config.name_or_path}: it was saved with clusters, {KEY}={options}, and they cannot be put in "
                f"again: {error}.  Without {KEY} in its config.json it loads without clusters"
            ) from None


PreTrainedModel.save_pretrained = _writes_patches(PreTrainedModel.save_pretrained)  # type: ignore[method-assign]
PreTrainedModel.from_pretrained = _patches_again(  # type: ignore[method-assign]
    PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
)
