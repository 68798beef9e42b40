"""A connector in a LLaVA that is loaded already, and back: nothing is copied but what the connector adds."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from secvit.connectors import Connector
from secvit.files import write_atomically
from secvit.vlm import families
from secvit.vlm.families import become, config_as
from secvit.vlm.llava import (
    SecLlavaConfig,
    SecLlavaForConditionalGeneration,
    SecLlavaModel,
    SecLlavaProcessor,
    new_connector,
    num_patches,
)
from secvit.vlm.next import (
    SecLlavaNextConfig,
    SecLlavaNextForConditionalGeneration,
    SecLlavaNextModel,
    SecLlavaNextProcessor,
)
from secvit.weights import misfit, read_weights, weight_bytes

logger = logging.getLogger(__name__)


class Family(NamedTuple):
    """The classes of one kind of LLaVA, as transformers has them or with a connector."""

    generation: type
    model: type
    config: Any
    processor: type
    projector: type


FAMILIES = (
    (
        Family(LlavaForConditionalGeneration, LlavaModel, LlavaConfig, LlavaProcessor, LlavaMultiModalProjector),
        Family(SecLlavaForConditionalGeneration, SecLlavaModel, SecLlavaConfig, SecLlavaProcessor, Connector),
    ),
    (
        Family(
            LlavaNextForConditionalGeneration,
            LlavaNextModel,
            LlavaNextConfig,
            LlavaNextProcessor,
            LlavaNextMultiModalProjector,
        ),
        Family(
            SecLlavaNextForConditionalGeneration,
            SecLlavaNextModel,
            SecLlavaNextConfig,
            SecLlavaNextProcessor,
            Connector,
        ),
    ),
)


def use_connector(
    model: PreTrainedModel,
    processor: ProcessorMixin | None = None,
    name: str = "sec",
    num_tokens: int | None = 144,
    *,
    extra_token: str | None = None,
    **options: Any,
) -> ProcessorMixin | None:
    """Give a vision-language model a connector: T tokens an image (a tile) -> the processor to use from now on.

    model: a LLaVA-1.5 or LLaVA-NeXT, whose projector the connector replaces and whose MLP it keeps, also in 4 or 8
    bits (the projector is then a plain one again); or one of `secvit.vlm.families`, whose projector stays in front of
    it.  Inside peft, too.  It is changed where it stands, and saved and loaded as Sec... from then on.  A second call
    changes the connector.
    name, num_tokens, extra_token, options: as for `secvit.connectors.create`.  extra_token is None here, because no
    released model ever saw it.  "mlp" merges nothing and takes num_tokens=None.
    NotImplementedError for other models; ValueError where the connector cannot give num_tokens.
    """
    chosen = {"name": name, "num_tokens": num_tokens, "extra_token": extra_token, **options}
    processor = _any_connect(model, processor, chosen)
    if name != "mlp":
        logger.warning(
            "the connector %r is not trained: until it is, alone or with the language model, the answers are worse, "
            "and nobody knows by how much",
            name,
        )
    return processor


def restore_connector(model: PreTrainedModel, processor: ProcessorMixin | None = None) -> ProcessorMixin | None:
    """Undo `use_connector`: the model's own classes and projector -> its processor.  What was trained stays so."""
    base = unwrapped(model)
    if family := families.family_of(base):
        if type(base) is family.stock.generation:
            raise ValueError(NO_CONNECTOR.format("take out"))
        return families.restore(base, processor)
    stock, _ = _family(base)
    if type(base) is stock.generation:
        raise ValueError(NO_CONNECTOR.format("take out"))
    inner, config = base.model, config_as(base.config, stock.config)
    projector = _stock_projector(base)
    del config.connector
    config.image_seq_length = num_patches(config)
    become(base, stock, config)
    inner.multi_modal_projector = projector.to(inner.multi_modal_projector.linear_1.weight.device)
    inner.__dict__.pop("_stock_projector", None)
    return None if processor is None else _new_processor(processor, stock.processor)


def save_connector(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """What stage 1 trains, without the towers: connector.safetensors and connector.json in `folder`."""
    base = unwrapped(model)
    family = families.family_of(base)
    stock = family.stock if family else _family(base)[0]
    if type(base) is stock.generation:
        raise ValueError(NO_CONNECTOR.format("save"))
    state = (families.parts(base) if family else base.model.multi_modal_projector).state_dict()
    wrapped = [key for key in state if "lora_" in key or "base_layer" in key or "modules_to_save" in key]
    if wrapped:
        raise ValueError(f"peft holds a part of this connector ({wrapped[0]}) and saves it: model.save_pretrained")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "connector.safetensors", weight_bytes(state))
    write_atomically(folder / "connector.json", json.dumps(base.config.connector, indent=2).encode() + b"\n")


def load_connector(
    model: PreTrainedModel, processor: ProcessorMixin | None, folder: str | os.PathLike[str]
) -> ProcessorMixin | None:
    """Put the connector of `save_connector` in a LLaVA of the same widths -> the processor to use from now on."""
    path = Path(folder) / "connector.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder that save_connector wrote")
    weights = read_weights(path.with_suffix(".safetensors"))
    chosen = json.loads(path.read_text())
    base = unwrapped(model)
    family = families.family_of(base)
    # before the model changes: the connector alone tells whether it fits
    new = (
        families.parts(base, families.connector_of(base, chosen))
        if family
        else new_connector(_with_connector(base, chosen))
    )
    if report := misfit(weights, new.state_dict()):
        raise ValueError(f"{path.parent} does not fit this {type(base).__name__}: {report}; take its twin")
    processor = _any_connect(model, processor, chosen)
    (families.parts(base) if family else base.model.multi_modal_projector).load_state_dict(weights)
    return processor


NO_CONNECTOR = "this model has no connector to {}; use_connector puts one in"


def _any_connect(
    model: PreTrainedModel, processor: ProcessorMixin | None, chosen: dict[str, Any]
) -> ProcessorMixin | None:
    base = unwrapped(model)
    return (families.use if families.family_of(base) else _connect)(base, processor, chosen)


def _connect(model: PreTrainedModel, processor: ProcessorMixin | None, chosen: dict[str, Any]) -> ProcessorMixin | None:
    base: Any = unwrapped(model)
    _, ours = _family(base)
    config = _with_connector(base, chosen)
    connector = new_connector(config)
    config.image_seq_length = connector.num_output_tokens(num_patches(config))
    projector = _stock_projector(base)
    weight = projector.linear_1.weight
    if weight.is_meta:
        raise ValueError("the projector is offloaded; load the model with it in memory (device_map)")
    if processor is not None:
        processor = _new_processor(processor, ours.processor, num_image_tokens=config.image_seq_length)
    dtype = weight.dtype if weight.is_floating_point() else base.model.vision_tower.dtype
    connector.to(device=weight.device, dtype=dtype).train(projector.training)
    plain = {name: _plain(getattr(projector, name), dtype) for name in ("linear_1", "linear_2")}
    connector.take_mlp(SimpleNamespace(act=projector.act, **plain))
    # The class changes with the projector: save_pretrained would otherwise write a LLaVA without it, and
    # from_pretrained would load that without a word.
    become(base, ours, config)
    base.model.multi_modal_projector = connector
    base.model.__dict__["_stock_projector"] = projector  # past nn.Module: not in the state dict
    return processor


def unwrapped(model: Any) -> PreTrainedModel:
    """The LLaVA inside peft's wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _family(model: PreTrainedModel) -> tuple[Family, Family]:
    """(stock, with connector) of a model that is one or the other."""
    for stock, ours in FAMILIES:
        if type(model) in (stock.generation, ours.generation):
            return stock, ours
    able = [stock for stock, _ in FAMILIES] + [family.stock for family in families.FAMILIES]
    raise NotImplementedError(
        f"{type(model).__name__} has no place for a connector yet; those that have: "
        + ", ".join(kind[0].__name__ for kind in able)
        + ".  In a model of your own put secvit.connectors.create(...) where its projector stands."
    )


def _with_connector(model: PreTrainedModel, chosen: dict[str, Any]) -> Any:
    config = config_as(model.config, _family(model)[1].config)
    config.connector = dict(chosen)
    return config


def _stock_projector(model: PreTrainedModel) -> Any:
    """LLaVA's own projector: as it stands, as it stood before use_connector, or of the MLP that the connector holds."""
    stock, _ = _family(model)
    now: Any = model.model.multi_modal_projector
    if "_stock_projector" in model.model.__dict__:
        return model.model.__dict__["_stock_projector"]
    if isinstance(now, stock.projector):
        return now
    if not hasattr(now, "linear_1") or not isinstance(now, Connector):
        raise ValueError(
            f"a {type(now).__name__} stands where LLaVA's projector did, and holds no MLP to give back; load the model "
            "that it came from (inside peft: put the connector in first, then wrap the model)"
        )
    projector = stock.projector(model.config)
    projector.linear_1, projector.act, projector.linear_2 = now.linear_1, now.act, now.linear_2
    return projector.train(now.training)


def _plain(linear: Any, dtype: torch.dtype) -> Any:
    """A quantised layer as an nn.Linear of the same function, which can be trained; any other as it is."""
    if "weight" not in linear._parameters or linear.weight.is_floating_point():
        return linear
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    plain.to(device=linear.weight.device, dtype=dtype)
    bias, linear.bias = linear.bias, None
    # whatever the format and a device's layout of it, a layer's answers to one-hot inputs are its weights
    # (and it computes rather than packs itself for inference where a gradient is wanted)
    one_hot = torch.eye(linear.in_features, dtype=dtype, device=linear.weight.device, requires_grad=True)
    with torch.enable_grad():
        answers = linear(one_hot)
    linear.bias = bias
    with torch.no_grad():
        plain.weight.copy_(answers.T)
        if bias is not None:
            plain.bias.copy_(bias)
    return plain


def _new_processor(processor: ProcessorMixin, kind: type, **counts: int) -> ProcessorMixin:
    """The same tokenizer, image processor and template, counting tokens otherwise."""
    if not isinstance(processor, (LlavaProcessor, LlavaNextProcessor)):
        raise ValueError(
            f"a {type(processor).__name__} is no LLaVA's processor; pass AutoProcessor.from_pretrained(...)"
        )
    names = ("patch_size", "vision_feature_select_strategy", "chat_template", "image_token")
    kept = {name: getattr(processor, name) for name in (*names, "num_additional_image_tokens")}
    return kind(processor.image_processor, processor.tokenizer, **kept, **counts)
