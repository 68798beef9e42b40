"""Networks by name, with weights from a file, from a run, or from those that ship."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from secvit.adapt import patch
from secvit.fields import Entry, Wrong, abridged, integer, items, mapping, number, read_yaml, text
from secvit.hub import hub
from secvit.models.convert import check_name, fitting_models
from secvit.weights import misfit, read_weights

# arguments of timm.create_model that would make another kind of network, or load weights that nobody compares
OURS = {
    "features_only": "it is for backbones of detection and segmentation, which set it",
    "checkpoint_path": "give the file as --model.init, or as a checkpoint",
}


def create(name: str, num_classes: int | None, args: Mapping[str, Any] | None = None) -> nn.Module:
    """A timm model; a name that timm does not know is a ValueError with its nearest neighbours.

    num_classes: None for those of the pretrained weights.
    """
    check_name(name)
    for option, value in (args or {}).items():
        if option in OURS:
            raise ValueError(f"{name} with {dict(args or {})}: {option} is no argument here; {OURS[option]}")
        if "drop" in option and isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ValueError(f"{name} with {dict(args or {})}: {option}={value}; choose a probability of 0 to below 1")
    try:
        with fetching(name, args or {}):
            return timm.create_model(name, num_classes=num_classes, **(args or {}))
    except TypeError as error:
        raise ValueError(
            f"{name} with {dict(args or {})}: {error}; give --model.args that it takes, {{}} for none"
        ) from None
    except ValueError as error:
        named = str(error).startswith(f"{name}: ")
        raise ValueError(str(error) if named else f"{name} with {dict(args or {})}: {error}") from None
    except Exception as error:  # timm knows no weights under the name, cannot reach them, or fails on the arguments
        raise ValueError(f"{name} with {dict(args or {})}: {(str(error) or repr(error)).splitlines()[0]}") from None


@contextlib.contextmanager
def fetching(name: str, args: Mapping[str, Any]) -> Iterator[None]:
    """Around timm.create_model(name, **args): weights that are nowhere, or out of reach, are a ValueError at once."""
    if not args.get("pretrained") or has_weights(name):
        yield
    elif not known_to_timm(name):
        raise ValueError(
            f"{name}: there are no pretrained weights by this name; say pretrained: false to begin with random ones, "
            "or give a file or a run as --model.init"
        )
    else:
        with hub(name):
            yield


def patched(model: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """`secvit.patch` by the words of a recipe; none leave the model as it is."""
    try:
        return patch(model, **arguments) if arguments else model
    except TypeError as error:
        raise ValueError(f"patch {dict(arguments)}: {error}; the arguments are those of secvit.patch") from None


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Begin every ValueError with the file that is to blame."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def device_of(name: torch.device | str | None) -> torch.device:
    """A device by its name, the GPU if there is one for None; a ValueError where this machine lacks it."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # one for each kind of device
        raise ValueError(f"device {str(name)!r} is not there ({str(error).splitlines()[0]}); try cpu") from None
    return device


def has_weights(name: str) -> bool:
    """Whether weights ship for a name, or for its first tag."""
    config = _weights_of(name)
    return bool(config and config.file)


def known_to_timm(name: str) -> bool:
    """Whether timm knows where there are weights for a name: here, on the hub, or elsewhere."""
    config = _weights_of(name)
    return bool(config and config.has_weights)


def _weights_of(name: str) -> Any:
    """timm's entry about the weights of a name, None for a network without; ValueError for names nobody knows."""
    check_name(name)
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # the network is known, the tag behind the dot is not
        network = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{network}.*")) or "none"
        raise ValueError(f"no weights {name!r}; of {network} there are {tags}") from None


def load_model(
    name: str | None = None, checkpoint: str | os.PathLike[str] | None = None, num_classes: int | None = None
) -> nn.Module:
    """A network in evaluation mode with saved weights: ours, the authors', or those of a run's folder.

    name: of the network; a run says itself what it is, and a name that says otherwise is a ValueError.
    checkpoint: without one, the weights that ship under the name, else random ones of seed 0.
    num_classes: what the weights must have; None takes what they have.
    Model arguments, patch, image size and class names come from the config.yaml beside the weights, if
    there is one; size and names go to the model's pretrained_cfg.
    """
    name = name_of(checkpoint, name)
    if checkpoint is None:
        shipped = timm.get_pretrained_cfg(name) if has_weights(name) else None
        classes = shipped.num_classes if shipped else num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create(name, 1000 if classes is None else classes, {"pretrained": shipped is not None}).eval()
    path = Path(checkpoint)
    state, config = read_weights(path), saved_config(path)
    settings = config.get("model") or {}
    names = config.get("classes") if settings else None
    if num_classes is None:
        num_classes = len(names) if names else classes_in(state, name)
    with naming(config_beside(path)) if settings else contextlib.nullcontext():
        network: Any = create(name, num_classes, settings.get("args"))
    try:
        state = in_our_layout(state, network)
    except Exception as error:  # the filters of timm and of ours trust shapes
        raise ValueError(f"{path} does not fit {name}: {error}") from None
    if report := misfit(state, network.state_dict()):
        fits = settings.get("name") or ", ".join(fitting_models(state)) or "none known"
        raise ValueError(
            f"{path} does not fit {name} with {num_classes} classes; models that it fits: {fits}.  It has {report}"
        )
    network.load_state_dict(state)
    with naming(config_beside(path)):
        patched(network, settings.get("patch") or {})
    # what timm.data.resolve_data_config and whoever names the classes go by; without a config.yaml nobody knows names
    cfg: dict[str, Any] = {"label_names": names}
    if settings:
        size = settings.get("image_size") or network.pretrained_cfg["input_size"][-1]
        cfg |= {"input_size": (3, size, size), "crop_pct": settings.get("crop_pct", 1.0)}
    network.pretrained_cfg = {**network.pretrained_cfg, **cfg}
    return network.eval()


def name_of(checkpoint: str | os.PathLike[str] | None, name: str | None = None) -> str:
    """The network of saved weights: what their config.yaml says, which a given name must not contradict.

    Tags, as in secvit_nano.cifar10, say which weights a network began with, and are not compared.
    """
    settings = (saved_config(checkpoint).get("model") or {}) if checkpoint is not None else {}
    saved = settings.get("name")
    if saved is None and (made := settings.get("backbone")):
        raise ValueError(
            f"{checkpoint} is a run of {settings.get('detector') or settings.get('head')} on {made}, no classifier"
        )
    if name is None and saved is None:
        raise ValueError(f"{checkpoint}: no config.yaml beside the weights, so the network is unknown; give its name")
    if name is not None:
        check_name(name)
    if saved is not None and name is not None and saved.partition(".")[0] != name.partition(".")[0]:
        raise ValueError(f"{checkpoint} is a run of {saved}, not of {name}; leave out the name")
    return saved or name  # type: ignore[return-value]


def check_one_name(name: str, other: str | None) -> None:
    """A ValueError where a second name stands beside that of a network and says another, but for the tag."""
    check_name(name)
    if other is not None and other.partition(".")[0] != name.partition(".")[0]:
        raise ValueError(
            f"{name} is itself the name of a network, and {other} stands beside it; leave that out, or give a weight "
            "file first and then the name of its network"
        )


def classes_in(state: Mapping[str, Tensor], name: str) -> int:
    """How many classes weights tell apart, 0 if they have no classifier."""
    own = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "classifier", None) or ()
    layers = [own] if isinstance(own, str) else own
    keys = [*("head.fc.weight", "head.weight", "fc.weight"), *(f"{layer}.weight" for layer in layers)]
    return next((state[key].shape[0] for key in keys if key in state and state[key].dim()), 0)


def class_names_of(model: nn.Module) -> tuple[str, ...]:
    """The names of the classes that a model tells apart; () where nobody knows them."""
    settings: Any = model.pretrained_cfg
    names = tuple(map(str, settings.get("label_names") or ()))
    return names if len(names) == getattr(model, "num_classes", len(names)) else ()


def class_names_in(source: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the classes of a run or of one of timm's pretrained models; () where nobody knows them."""
    name = str(source).removeprefix("timm/")
    if Path(source).exists() or not timm.is_model(name):
        return tuple(saved_config(source).get("classes") or ())
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return tuple(map(str, getattr(config, "label_names", None) or ()))


@dataclass(frozen=True)
class Loaded:
    """Which tensors of a model came from pretrained weights.

    loaded: filled.  new: not in the source.  zeroed: not in the source either, but LePE: at zero, the network
    starts as near to the pretrained one as it can.  reshaped: there in another shape, and new too.
    unused: of the source alone.
    """

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    zeroed: tuple[str, ...]
    reshaped: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        kinds = {
            "new": self.new, "zero, as the source has none": self.zeroed,
            "new, of another shape in the source": self.reshaped, "unused": self.unused,
        }  # fmt: skip
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        return "; ".join(lines + [f"{len(names)} {kind} ({abridged(names)})" for kind, names in kinds.items() if names])


def load_pretrained(model: nn.Module, source: str | os.PathLike[str]) -> Loaded:
    """Fill a model with the weights that fit, and say what did not: DeiT's into SEC-DeiT, Swin's into SEC-Swin, ...

    source: a weight file or run, or one of timm's pretrained models ("deit_small_patch16_224.fb_in1k", with
        or without "timm/"), which timm downloads.
    Position tables of another size are resampled.  LePE, which the originals lack, becomes zero.
    Raises ValueError where nothing fits.
    """
    name = str(source).removeprefix("timm/")
    if Path(source).exists() or not timm.is_model(name):
        weights = read_weights(source)
    else:
        weights = create(name, None, {"pretrained": True}).state_dict()
    expected = model.state_dict()
    try:
        weights = in_our_layout(weights, model)
    except Exception as error:  # position tables that belong to other prefix tokens, DeiT's distilled ones for one
        raise ValueError(f"{source} does not fit {type(model).__name__}: {error}") from None
    fits = {key: value for key, value in weights.items() if key in expected and value.shape == expected[key].shape}
    if not any(key.endswith(".weight") for key in fits):
        raise ValueError(f"{source} does not fit {type(model).__name__}: it has {misfit(weights, expected)}")
    if report := misfit(fits, {key: expected[key] for key in fits}):
        raise ValueError(f"{source} does not fit {type(model).__name__}: {report}")
    zeroed = {key: torch.zeros_like(expected[key]) for key in expected if ".lepe." in key and key not in weights}
    model.load_state_dict({**fits, **zeroed}, strict=False)
    reshaped = tuple(key for key in expected if key in weights and key not in fits)
    return Loaded(
        str(source), tuple(fits), tuple(key for key in expected if key not in {**weights, **zeroed}), tuple(zeroed),
        reshaped, tuple(key for key in weights if key not in expected),
    )  # fmt: skip


def in_our_layout(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' or the original networks' tensors under the names and in the order of the model."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # where timm puts it, too
    return dict(state) if rename is None else rename(dict(state), model)


def saved_config(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The config.yaml beside a checkpoint, {} if there is none."""
    beside = config_beside(checkpoint)
    if not beside.is_file():
        return {}
    content = read_yaml(beside)
    if content is None:
        return {}
    entry = Entry(str(beside), content)
    settings = Entry(f"{beside}: model", entry.get("model", mapping, {}))
    typed = {
        "name": settings.get("name", text, None), "args": settings.get("args", mapping, None),
        "patch": settings.get("patch", mapping, None), "image_size": settings.get("image_size", _size, None),
        "crop_pct": settings.get("crop_pct", _part, None),
    }  # fmt: skip
    model = {**settings.fields, **{key: value for key, value in typed.items() if value is not None}}
    classes = entry.get("classes", _names, None)
    return {**content, **({"model": model} if model else {}), **({"classes": classes} if classes else {})}


def config_beside(checkpoint: str | os.PathLike[str]) -> Path:
    path = Path(checkpoint)
    return (path if path.is_dir() else path.parent) / "config.yaml"


def _size(value: Any) -> int:
    size = integer(value)
    if not 1 <= size <= 2**16:
        raise Wrong("px of the side of an image")
    return size


def _part(value: Any) -> float:
    part = number(value)
    if not 0 < part <= 1:
        raise Wrong("a part of the short side, above 0 and up to 1")
    return part


def _names(value: Any) -> list[str]:
    try:
        return [text(name) for name in items(value)]
    except Wrong:
        raise Wrong("a list of names") from None
