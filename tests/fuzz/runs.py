"""config.yaml of runs: the network with its saved weights, classes and image size."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml
from safetensors.torch import save

from secvit.models.saved import load_model
from tests.fuzz.case import Case
from tests.fuzz.mutate import changed, damaged, no_json, replaced

NAME = "test_vit"
CLASSES = ["cat", "Straße", "7"]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)


class Run(NamedTuple):
    """A run's folder, and the names of its classes; None where they are not known."""

    folder: Path
    classes: list[str] | None


@functools.cache
def weights() -> bytes:
    torch.manual_seed(0)
    return save({k: v.contiguous() for k, v in timm.create_model(NAME, num_classes=3).state_dict().items()})


def make(rng: random.Random, folder: Path) -> Case:
    config: Any = {"model": {"name": NAME, "args": {}, "image_size": 160, "crop_pct": 0.9}, "classes": CLASSES,
                   "optim": {"lr": 0.1}}  # fmt: skip
    run, meant, known = folder / "run", "harmless", CLASSES
    run.mkdir()
    (run / "model.safetensors").write_bytes(weights())
    file, kind = run / "config.yaml", rng.choice(["form", "structure", "structure", "values", "text", "bytes", "files"])
    change, text = kind, ""
    if kind == "form":
        change = rng.choice(["as it is", "BOM", "CRLF", "JSON", "no args", "other order"])
        if change == "no args":
            del config["model"]["args"]
        elif change == "other order":
            config = dict(reversed(config.items()))
    elif kind == "structure":
        change, config = changed(rng, config)
        meant, known = "either", None
    elif kind == "values":
        key, value = rng.choice([("image_size", 0), ("image_size", -160), ("image_size", "large"), ("image_size", [160, 160]),
                                 ("image_size", 10**9), ("crop_pct", "x"), ("crop_pct", {}), ("args", [1]), ("args", "x"),
                                 ("args", {"nonsense": 1}), ("args", {"depth": -1}), ("args", {"embed_dim": "x"}),
                                 ("args", {"img_size": 10**7}), ("patch", 5), ("patch", {"nonsense": 1})])  # fmt: skip
        config["model"][key] = value
        change, meant = f"{key} {value}", "wrong"
    dump = functools.partial(yaml.safe_dump, allow_unicode=True, sort_keys=False)
    text = json.dumps(config) if change == "JSON" or kind == "structure" else dump(config)
    data = text.encode("utf-8-sig" if change == "BOM" else "utf-8", "surrogatepass")
    if change == "CRLF":
        data = data.replace(b"\n", b"\r\n")
    if kind == "text":
        change, data, meant = rng.choice([
            (*no_json(rng, data), "either"), ("a tag that runs code", b"x: !!python/object/apply:os.system ['true']\n", "wrong"),
            ("aliases of aliases", BOMB.encode(), "either"), ("an anchor in itself", b"&a [*a]", "either"),
            ("a list", b"- 1\n- 2\n", "either"), ("a date that is none", b"day: 2020-99-99\n", "either"),
            ("a tab", b"model:\n\tname: x\n", "wrong"), ("a number of digits", b"a: " + b"9" * 10_000, "either"),
        ])  # fmt: skip
        known = None
    elif kind == "bytes":
        change, data = damaged(rng, data)
        meant, known = "either", None
    file.write_bytes(data)
    if kind == "files":
        change, meant, known = replaced(rng, file), "either", None
    return Case(f"config.yaml: {change}", meant, (str(file), str(run)), Run(run, known))


def run(case: Case) -> str:
    known: Run = case.data
    network = load_model(NAME, known.folder, 3 if known.classes is None else None)
    config = network.pretrained_cfg
    names, size, crop = config.get("label_names"), config["input_size"], config.get("crop_pct")
    if names is not None and (not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names)):
        return f"names of classes {str(names)[:80]}"
    if known.classes is not None and list(names or ()) != known.classes:
        return f"names of classes {names}, not {known.classes}"
    if not all(type(side) is int and 0 < side < 10**6 for side in size):
        return f"input_size {str(size)[:80]}"
    if crop is not None and (isinstance(crop, bool) or not isinstance(crop, (int, float)) or not 0 < crop < 100):
        return f"crop_pct {str(crop)[:80]}"
    if not torch.equal(network.state_dict()["head.weight"], timm_head()):
        return "other weights"
    return ""


@functools.cache
def timm_head() -> torch.Tensor:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=3).state_dict()["head.weight"]
