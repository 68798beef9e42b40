"""What the families share: a connector behind the projector of a vision-language model of transformers.

Tower, merging of neighbours and projector stay the family's own; the L tokens that they make of an image (of a tile)
become T.  Everything goes through `get_image_features`, and the processor writes T placeholders.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.utils.generic import can_return_tuple

from secvit import connectors
from secvit.connectors import Connector, Merged

NO_CLS = (
    "{} needs [cls] or its attention, and behind the projector of {} there are patches only; choose "
    "extra_token='mean' or None, and a connector that does without them"
)


class Kind(NamedTuple):
    """The classes of a family, as transformers has them or with a connector."""

    generation: Any
    model: Any
    config: Any


class Family(NamedTuple):
    """One family: what stands where, and who counts.

    projector: where in the inner model the module is that makes tokens for the language model.
    processors: the stock class, and that which counts a connector's tokens.
    count_as: the argument of both that says how many tokens a tile becomes.
    """

    stock: Kind
    ours: Kind
    projector: str
    processors: tuple[type, type]
    count_as: str


FAMILIES: list[Family] = []


def register(family: Family) -> Family:
    """With `use_connector`, the Auto classes, and the names that the family's checkpoints are saved under."""
    FAMILIES.append(family)
    stock, ours = family.stock, family.ours
    AutoConfig.register(ours.config.model_type, ours.config, exist_ok=True)
    AutoModel.register(ours.config, ours.model, exist_ok=True)
    AutoModelForImageTextToText.register(ours.config, ours.generation, exist_ok=True)
    AutoProcessor.register(ours.config, family.processors[1], exist_ok=True)
    # by class as well as by type: a stock checkpoint's config says the stock type
    types = get_checkpoint_conversion_mapping(stock.config.model_type)
    generation = get_checkpoint_conversion_mapping(stock.generation.__name__) or types
    inner = get_checkpoint_conversion_mapping(stock.model.__name__)
    names = (ours.config.model_type, ours.generation.__name__, ours.model.__name__)
    for name, mapping in zip(names, (types, generation, inner)):
        if mapping:
            register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
    return family


def family_of(model: PreTrainedModel) -> Family | None:
    """The family of a model, with a connector or without."""
    kinds = ((family, (family.stock.generation, family.ours.generation)) for family in FAMILIES)
    return next((family for family, generations in kinds if type(model) in generations), None)


def new_connector(config: Any) -> Connector:
    """The connector that `config.connector` describes, as wide as the language model; it has no MLP of its own."""
    if config.connector is None:
        raise ValueError(f"a {config.model_type} needs connector={{'name': 'sec', 'num_tokens': 64}} or the like")
    options, length = dict(config.connector), config.tile_tokens
    if "where" in options:
        raise ValueError(f"where={options['where']!r}; the connector of a {config.model_type} is behind its projector")
    if options["name"] == "mlp":  # T = L
        count = options.get("num_tokens")
        if length is None and count is not None:
            raise ValueError(f"mlp merges nothing, and images of a {config.model_type} differ: choose num_tokens=None")
        options["num_tokens"] = count or length or KEEP_ALL
    if length is None and options.get("extra_token") is not None:
        raise ValueError(f"an extra token has no place in the images of a {config.model_type}; choose extra_token=None")
    width = config.get_text_config().hidden_size
    connector = connectors.create(
        **{**options, "in_dim": width, "out_dim": width, "where": None, "num_patches": length}
    )
    if connector.needs_cls or connector.needs_cls_attention:
        raise ValueError(
            NO_CLS.format("extra_token='cls'" if connector.needs_cls else connector.name, config.model_type)
        )
    return connector


# nor quantised, so that a model in 4 bits saves and loads a connector that can be trained
PLAIN = [r"(?:model\.)?image_connector"]
KEEP_ALL = 2**31 - 1  # num_tokens where L differs from image to image


def connected(get_image_features: Callable[..., Any]) -> Callable[..., Any]:
    """A family's `get_image_features` whose pooler_output are the connector's tokens.

    With its signature: `generate` reads there what it takes.
    """

    @functools.wraps(get_image_features)
    @can_return_tuple
    def features(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = get_image_features(self, *args, **{**kwargs, "return_dict": True})
        outputs.pooler_output = self.connect(outputs.pooler_output)
        return outputs

    return features


class ConnectedModel:
    """What a family's inner model (tower, projector, language model) does otherwise with a connector; a mixin."""

    config: Any
    image_connector: Connector
    get_image_features: Callable[..., Any]
    _keep_in_fp32_modules: Any = PLAIN

    def __init__(self, config: Any):
        behind: Any = super()
        behind.__init__(config)
        self.attach(new_connector(config))

    def attach(self, connector: Connector) -> None:
        """Put the connector in."""
        self.image_connector = connector

    def detach(self) -> None:
        """Take the connector out."""
        del self.image_connector

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        """Weights that a checkpoint lacks: those of the connector start as the connector has it."""
        if any(module is part for part in self.image_connector.modules()):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        else:
            behind: Any = super()
            behind._init_weights(module)

    def connect(self, tokens: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """(tiles, L, C), or (tiles of it x L, C) for each image -> the same with T tokens a tile."""
        if isinstance(tokens, Tensor):
            return self.image_connector(tokens)
        length = self.config.tile_tokens
        merged = self.image_connector(torch.cat(tuple(tokens)).unflatten(0, (-1, length)))
        return [tiles.flatten(0, 1) for tiles in merged.split([len(image) // length for image in tokens])]

    def get_placeholder_mask(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; its ValueError for other counts in prompt and images names the remedy."""
        behind: Any = super()
        try:
            return behind.get_placeholder_mask(*args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{error}  {REMEDY}") from None

    def merged(self, *args: Any, **kwargs: Any) -> Merged:
        """Of which of its tile's L tokens each of the T is made, and where they lie; takes what images are given as."""
        tokens: list[Tensor] = []
        hook = self.image_connector.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
        try:
            with torch.no_grad():
                self.get_image_features(*args, **kwargs)
        finally:
            hook.remove()
        return self.image_connector.merged(tokens[0])


REMEDY = (
    "This model has a connector: take the processor that use_connector returned, or AutoProcessor from the model's own "
    "folder, and do not cut prompts to a max_length"
)


class ConnectedGeneration:
    """The same for the model with its head; a mixin."""

    model: Any
    _keep_in_fp32_modules: Any = PLAIN

    def __init__(self, config: Any):
        behind: Any = super()
        behind.__init__(config)  # with transformers' inner model, which then becomes ours: towers are built once
        family = next(one for one in FAMILIES if one.ours.generation is type(self))
        self.model.__class__ = family.ours.model
        self.model.attach(new_connector(config))

    def merged(self, *args: Any, **kwargs: Any) -> Merged:
        """Of which of its tile's L tokens each of the T is made, and where they lie; takes what images are given as."""
        return self.model.merged(*args, **kwargs)


# -- in a model that is loaded already ------------------------------------------------------------


def use(model: Any, processor: ProcessorMixin | None, chosen: dict[str, Any]) -> ProcessorMixin | None:
    """`use_connector` for one of FAMILIES."""
    family, config = _family(model), _with_connector(model, chosen)
    connector = new_connector(config)
    weight = next(model.model.get_submodule(family.projector).parameters())
    if weight.is_meta:
        raise ValueError("the projector is offloaded; load the model with it in memory (device_map)")
    if processor is not None:
        # "mlp" leaves all tokens, which the family's own processor counts
        processor = _new_processor(processor, family, int(connector.name != "mlp"), connector.num_output_tokens())
    dtype = weight.dtype if weight.is_floating_point() else model.dtype
    if type(model) is family.ours.generation:
        model.model.detach()
    become(model, family.ours, config)
    model.model.attach(connector.to(device=weight.device, dtype=dtype).train(model.training))
    return processor


def restore(model: Any, processor: ProcessorMixin | None) -> ProcessorMixin | None:
    """`restore_connector` for one of FAMILIES."""
    family = _family(model)
    length = model.config.tile_tokens
    config = config_as(model.config, family.stock.config)
    model.model.detach()
    del config.connector
    become(model, family.stock, config)
    return None if processor is None else _new_processor(processor, family, 0, length)


def connector_of(model: Any, chosen: dict[str, Any]) -> Connector:
    """The connector that a model would get."""
    return new_connector(_with_connector(model, chosen))


def _with_connector(model: Any, chosen: dict[str, Any]) -> Any:
    config = config_as(model.config, _family(model).ours.config)
    config.connector = dict(chosen)
    return config


def parts(model: Any, connector: nn.Module | None = None) -> nn.ModuleDict:
    """What `save_connector` writes: the projector, and the model's connector or another one."""
    projector = model.model.get_submodule(_family(model).projector)
    return nn.ModuleDict({"projector": projector, "connector": connector or model.model.image_connector})


def _family(model: PreTrainedModel) -> Family:
    family = family_of(model)
    assert family is not None  # asked before
    return family


def config_as(config: Any, kind: type) -> Any:
    """A config of another class with the same entries, not copies: towers share their parts of it."""
    new: Any = object.__new__(kind)
    vars(new).update(vars(config))
    return new


def become(model: Any, kind: Any, config: Any) -> None:
    """The model as one of another class, where it stands: inside peft's wrapper, a trainer or a pipeline.

    Its class says how it is saved and loaded, so a new object would have to take its place in all of them.
    """
    config.model_type = kind.config.model_type
    model.__class__, model.model.__class__ = kind.generation, kind.model
    model.config = model.model.config = config


def _new_processor(processor: Any, family: Family, which: int, count: int) -> Any:
    """The same tokenizer, image and video processor and template, counting tokens otherwise."""
    stock = family.processors[0]
    if not isinstance(processor, stock):
        raise ValueError(
            f"a {type(processor).__name__} is no {stock.__name__}; pass this model's AutoProcessor.from_pretrained(...)"
        )
    names = [name for name in inspect.signature(stock).parameters if hasattr(processor, name)]
    return family.processors[which](**{**{name: getattr(processor, name) for name in names}, family.count_as: count})
