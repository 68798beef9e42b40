"""From a recipe and a place with images to a scored model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from secvit.classification.config import Model, Recipe
from secvit.classification.data import TrainView
from secvit.classification.scoring import AT_ONCE, eval_view, evaluate
from secvit.classification.task import ClassificationTask
from secvit.files import check_writable, write_atomically
from secvit.images import load_checked, skipped_in
from secvit.images.classes import match_classes
from secvit.images.names import Names
from secvit.images.sources import place_of
from secvit.models.saved import class_names_in, class_names_of, create, load_pretrained, patched
from secvit.train.folder import start_of
from secvit.train.job import Job, save_weights
from secvit.train.norms import synchronised
from secvit.train.optim import create_optimizer
from secvit.train.result import Result
from secvit.weights import load_backbone

logger = logging.getLogger(__name__)

# of a pretrained_cfg, what a network of other weights keeps
TIMM_CFG = ("mean", "std", "pool_size", "first_conv", "classifier", "fixed_input_size")


def train(
    recipe: Recipe,
    data: str | Path = "digits",
    output: str | Path = "runs/classification",
    resume: str = "auto",
) -> dict[str, Any]:
    """Train by a recipe, score on the held-out split, and return what result.json says.

    `output` then holds model.safetensors (the averaged weights where the recipe keeps them, ready
    for `timm.create_model(name, num_classes=..., checkpoint_path=...)`), result.json, config.yaml,
    log.csv, eval.csv and checkpoints/.  The score is that of "val", or of "test" if there is none.
    """
    output = Path(output)
    return prepare(recipe, data, output).run(output, resume)


def prepare(recipe: Recipe, data: str | Path, output: Path, resume: str = "auto") -> Job:
    """What a recipe and a place with images make of the loop."""
    check_writable(output)
    train_images, val_images, held_out = load_checked(data)
    place = place_of(data)
    model = initial_model(recipe, train_images.classes)
    if recipe.sync_norm:
        model = synchronised(model, recipe.loop)
    chosen = recipe.model
    cfg = timm.data.resolve_data_config(model=model)
    dataset = TrainView(
        train_images, recipe.augment, chosen.image_size, cfg["mean"], cfg["std"], recipe.loop.seed
    )  # fmt: skip
    view = eval_view(val_images, model, chosen.image_size, chosen.crop_pct)

    def score(network: nn.Module) -> dict[str, float]:
        device = next(network.parameters()).device
        batch = min(AT_ONCE, recipe.loop.batch_size)
        return evaluate(network, view, batch, device, recipe.loop.workers, recipe.loop.precision)

    def report(done: Result) -> dict[str, Any]:
        return {
            "summary": summary(done.metrics, held_out),
            "model": chosen.name,
            "data": place,
            "split": held_out,
            **done.metrics,
            "majority_floor": val_images.majority,
            "best_top1": done.best,
            "best_step": done.best_step,
            "images": {"train": len(train_images), held_out: len(val_images)},
            "parameters": sum(p.numel() for p in model.parameters()),
            "skipped": skipped_in(dataset, view),
        }

    model_input = {"size": chosen.image_size, "crop_pct": chosen.crop_pct, "mean": cfg["mean"], "std": cfg["std"]}
    return Job(
        task=ClassificationTask(model, recipe.label_smoothing, chosen.frozen),
        optimizer=create_optimizer(model, recipe.optim),
        dataset=dataset,
        recipe=recipe,
        about={"task": "classification", "data": place, "classes": train_images.classes, "input": model_input},
        report=report,
        evaluate=score,
        best="top1",
        classes=train_images.classes,
        names=Names.of(f"{name} {label}" for name, label in zip(train_images.names, train_images.labels.tolist())),
        save=lambda done, output: save(done, chosen, train_images.classes, output),
    )


def save(done: Result, chosen: Model, classes: Sequence[str], output: Path) -> None:
    """Weights and a config.json by which timm ("local-dir:RUN", after `import secvit`) and transformers load them."""
    save_weights(done, output)
    config = timm_config(done.model, chosen, classes)
    write_atomically(output / "config.json", json.dumps(config, indent=2).encode())


def timm_config(model: Any, chosen: Model, classes: Sequence[str]) -> dict[str, Any]:
    """What timm's config.json says of a network: how to make it, and what it looks at."""
    architecture, _, tag = chosen.name.partition(".")
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key in TIMM_CFG}
    view = {"input_size": (3, chosen.image_size, chosen.image_size), "crop_pct": chosen.crop_pct}
    view |= {"interpolation": "bicubic", "crop_mode": "center", "num_classes": len(classes)}
    made = (
        {**chosen.args} if not chosen.patch else {**chosen.args, "network": architecture, "patch": dict(chosen.patch)}
    )
    return {
        "architecture": "vit_sec_patched" if chosen.patch else architecture,
        "num_classes": len(classes),  # and not in model_args, where transformers would pass it twice
        "num_features": getattr(model, "num_features", None),
        "label_names": list(classes),
        "model_args": made,
        "pretrained_cfg": {**cfg, **view, "tag": tag, "label_names": list(classes)},
    }


def summary(metrics: Mapping[str, float], split: str) -> str:
    """One line about an evaluation; "" if there was none."""
    if not metrics:
        return ""
    return (
        f"{split} top-1 {100 * metrics['top1']:.2f} % of {metrics['images']} images "
        f"(majority floor {100 * metrics['majority_floor']:.2f} %)"
    )


def initial_model(recipe: Recipe, classes: Sequence[str]) -> nn.Module:
    """The network at step 0: weights that the seed decides, or those the recipe starts from.

    A classifier that comes along is kept, in the order of `classes`, if it knows the same classes by name.
    """
    chosen = recipe.model
    if chosen.pretrained and chosen.init:
        raise ValueError(f"pretrained=true and init={chosen.init}; give one of them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        model: Any = create(chosen.name, len(classes), {**chosen.args, "pretrained": chosen.pretrained})
        kept = chosen.pretrained and model.pretrained_cfg["num_classes"] == len(classes)
        fresh = _classifier(create(chosen.name, len(classes), chosen.args) if kept else model)
    if kept:
        _match_classifier(model, fresh, class_names_of(model), classes, chosen.name)
    if chosen.init:
        source = start_of(chosen.init)
        if getattr(model, "borrows_weights", False):
            logger.info("starting from %s", load_pretrained(model, source))
        else:
            new = load_backbone(model, source, next(iter(fresh)).split(".")[0])
            logger.info("starting from %s; new: %s", source, ", ".join(new) or "nothing")
        _match_classifier(model, fresh, class_names_in(source), classes, source)
    model = patched(model, chosen.patch)
    _check_sees(model, chosen, len(classes))
    return model


def _check_sees(model: nn.Module, chosen: Model, classes: int) -> None:
    """A ValueError where a network cannot look at images of the recipe's size, before the first step."""
    size = (1, getattr(model, "in_chans", 3), chosen.image_size, chosen.image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shape = tuple(model.eval()(torch.zeros(size)).shape)
    except Exception as error:  # whatever networks and their layers raise on arguments or sizes that do not fit
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{chosen.name} with {chosen.args} and image_size={chosen.image_size}: {reason}; change --model.args, or "
            "--model.image_size"
        ) from None
    finally:
        model.train()
    if shape != (1, classes):
        raise ValueError(f"{chosen.name} with {chosen.args} gives {shape} for an image; expected {(1, classes)}")


def _classifier(model: Any) -> dict[str, Tensor]:
    """Copies of the tensors with a row for each class."""
    layers = model.pretrained_cfg["classifier"]
    starts = tuple(f"{layer}." for layer in ([layers] if isinstance(layers, str) else layers))
    return {key: value.clone() for key, value in model.state_dict().items() if key.startswith(starts)}


def _match_classifier(
    model: nn.Module, fresh: Mapping[str, Tensor], names: Sequence[str], classes: Sequence[str], source: str
) -> None:
    """Keep the classifier that weights brought if it knows the same classes, in the order of `classes`.

    fresh: the classifier as it was before.  names: the classes of the weights, () where nobody knows them.
    """
    state = model.state_dict()
    loaded = [key for key, value in fresh.items() if not torch.equal(state[key], value)]
    if not loaded:
        return
    if not names:
        logger.warning("%s comes without names of classes: its classifier is kept, in its own order", source)
    elif sorted(names) == sorted(classes):
        order = torch.tensor(match_classes(names, classes, source, "the data"))
        model.load_state_dict({key: state[key][order] for key in loaded}, strict=False)
    else:
        logger.info("%s knows other classes than the data: the classifier starts anew", source)
        model.load_state_dict(fresh, strict=False)
