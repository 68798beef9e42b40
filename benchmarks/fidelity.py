"""How much of a trained ViT's features is left when its attention is put into clusters, and what that saves.

python benchmarks/fidelity.py WEIGHTS PHOTO... --size 448 --clusters 16 32
python benchmarks/fidelity.py WEIGHTS PHOTO... --size 336 --tokens 36 72 144   # how much connectors keep of them

Every photo goes through the network as it is, and through the same network patched without any training, by each
VARIANT: SEC, windows, random groups and the balanced tree, blind to each other and with near and far; the tree's
order made anew in each layer and head, or shared.  Compared are patch tokens (cosine, the mean over the tokens of a
photo) and [cls]; times are interleaved, on one photo.  WEIGHTS is a file for timm's NETWORK, PHOTOS are squashed to
squares.  Writes results/fidelity.<size>_<hardware>_<torch>_<date>.json.

With --tokens nothing is patched: T tokens of each of CONNECTORS, not trained and before the MLP, stand for the patch
tokens, and compared is the share of the tokens' variance that they keep (`variance_kept`), and how much of the outputs'
places their index explains (`place_explained`).  Writes
results/connector-fidelity.<size>_<hardware>_<torch>_<date>.json.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

import secvit
from secvit.connectors import create
from secvit.images import read_image
from secvit.measure.results import head, save_result, using_threads
from secvit.measure.rounds import Speeds, clock_for, clock_name, interleave
from secvit.provenance import result_name

RESULTS = Path(__file__).parent / "results"
PLAIN = "unpatched"
SEES = {"near": 2, "far": True}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"partition": name} for name in ("sec", "window", "random")},
    **{f"{name}, near and far": {"partition": name, **SEES} for name in ("sec", "window", "random", "tree")},
    "tree, near 4 and far": {"partition": "tree", "near": 4, "far": True},
    "tree, near and far, one order for all heads": {"partition": "tree", **SEES, "shared": True},
    **{
        f"tree, near and far, one order for {layers} layers": {"partition": "tree", **SEES, "share_order_every": layers}
        for layers in (2, 12)
    },
    **{f"sec, one order for {layers} layers": {"partition": "sec", "share_order_every": layers} for layers in (2, 12)},
}
CONNECTORS: dict[str, dict[str, Any]] = {
    "tree": {"name": "tree"},
    "tome": {"name": "tome"},
    "windows": {"name": "window", "pooling": "mean"},
    "sec, sequential": {"name": "sec", "pooling": "mean", "arrangement": "sequential"},
    "sec": {"name": "sec", "pooling": "mean"},
    "random groups": {"name": "random", "pooling": "mean"},
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a weight file for the network, in timm's or its publisher's form")
    parser.add_argument("photos", type=Path, nargs="+", help="image files")
    parser.add_argument("--called", default="ViT-S/14", help="what results call the network and its weights")
    parser.add_argument("--network", default="vit_small_patch14_dinov2", help="timm's name of it")
    parser.add_argument("--size", type=int, default=448, help="px of a side")
    parser.add_argument("--clusters", type=int, nargs="+", default=[16], help="numbers of clusters")
    parser.add_argument("--tokens", type=int, nargs="+", help="numbers of tokens that connectors give; no patching")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="variants")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing; 0 for none")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    asked = parser.parse_args(words)
    model = timm.create_model(asked.network, num_classes=0, img_size=asked.size)
    model.load_state_dict(checkpoint_filter_fn(load_file(asked.weights), model))
    title, measured = ("connector-fidelity", measure_connectors) if asked.tokens else ("fidelity", measure)
    with using_threads(1):
        result = measured(model.eval(), asked)
    asked.results.mkdir(exist_ok=True)
    path = asked.results / f"{result_name(f'{title}.{asked.size}', result)}.json"
    save_result(result, path)
    print(f"wrote {path}")


@torch.no_grad()
def measure(model: nn.Module, asked: argparse.Namespace) -> dict[str, Any]:
    """Every variant on every photo, then the times."""
    images = [seen(model, photo, asked.size) for photo in asked.photos]
    before = [model.forward_features(image) for image in images]
    rows: list[dict[str, Any]] = []
    for clusters in asked.clusters:
        for name in asked.only:
            torch.manual_seed(0)  # of random groups
            secvit.patch(model, clusters, **VARIANTS[name])
            rows.append({"variant": name, "clusters": clusters, **compared(model, images, before)})
            secvit.unpatch(model)
            row = rows[-1]
            worst = min(row["patches"])
            photo = asked.photos[row["patches"].index(worst)].name
            print(f"M={clusters:3} {name:48} {fmean(row['patches']):.4f}  worst {worst:.4f} ({photo})", flush=True)
    recipe = {
        "network": asked.called, "architecture": asked.network, "size": asked.size, "rounds": asked.rounds,
        "photos": [photo.name for photo in asked.photos], "variants": {name: VARIANTS[name] for name in asked.only},
    }  # fmt: skip
    result = {**head("fidelity", recipe, threads=1), "rows": rows}
    if asked.rounds:
        result["speed"] = timed(model, images[0], asked)
    return result


def seen(model: nn.Module, photo: Path, size: int) -> Tensor:
    """A photo, squashed to a square, as the network takes it.  -> (1, 3, size, size)"""
    square = read_image(photo).resize((size, size), Image.Resampling.BICUBIC)
    config = timm.data.resolve_data_config(model=model)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    return ((torch.from_numpy(np.array(square)) / 255 - mean) / std).permute(2, 0, 1).unsqueeze(0)


def compared(model: nn.Module, images: Sequence[Tensor], before: Sequence[Tensor]) -> dict[str, list[float]]:
    """Cosines of patch tokens and of [cls] to the unpatched network's, one a photo."""
    found: dict[str, list[float]] = {"patches": [], "cls": []}
    for image, tokens in zip(images, before, strict=True):
        cosine = F.cosine_similarity(model.forward_features(image), tokens, dim=-1)[0]
        found["patches"].append(cosine[1:].mean().item())
        found["cls"].append(cosine[0].item())
    return found


@torch.no_grad()
def measure_connectors(model: nn.Module, asked: argparse.Namespace) -> dict[str, Any]:
    """Every connector, with each number of tokens, on the patch tokens of every photo."""
    photos = [model.forward_features(seen(model, photo, asked.size))[:, 1:] for photo in asked.photos]
    length, dim = photos[0].shape[1:]
    rows: list[dict[str, Any]] = []
    for count in asked.tokens:
        for name, form in CONNECTORS.items():
            connector = create(**form, in_dim=dim, out_dim=1, num_tokens=count, extra_token=None).eval()
            merged = [connector.merged(tokens) for tokens in photos]
            kept = [variance_kept(tokens[0], one.weights[0]) for tokens, one in zip(photos, merged, strict=True)]
            place = place_explained(torch.cat([one.coordinates for one in merged]))
            rows.append({"connector": name, "tokens": count, "kept": kept, "place": place})
            worst = asked.photos[kept.index(min(kept))].name
            print(f"T={count:3} {name:16} {fmean(kept):.3f}  worst {min(kept):.3f} ({worst})", flush=True)
    recipe = {
        "network": asked.called, "architecture": asked.network, "size": asked.size, "length": length,
        "photos": [photo.name for photo in asked.photos], "connectors": CONNECTORS,
    }  # fmt: skip
    return {**head("connector fidelity", recipe, threads=1), "rows": rows}


def variance_kept(tokens: Tensor, weights: Tensor) -> float:
    """Share of the variance of tokens (L, C) that is left when outputs stand for them, in float64.

    weights (T, L): what the outputs are made of, as in `Merged`.  A token is replaced by its output, or by the mean of
    its outputs, by weight: 1 where nothing was merged, 0 where all tokens are one.
    """
    tokens, weights = tokens.double(), weights.double()
    back = (weights / weights.sum(dim=0)).T @ (weights @ tokens)
    return 1 - ((tokens - back).square().sum() / (tokens - tokens.mean(dim=0)).square().sum()).item()


def place_explained(coordinates: Tensor) -> list[float]:
    """Share of the variance of x, and of y, that an output's index explains.  coordinates (B, T, 2) of B photos."""
    centred = coordinates.double() - coordinates.double().mean(dim=(0, 1))
    return (centred.mean(dim=0).square().mean(dim=0) / centred.square().mean(dim=(0, 1))).tolist()


def timed(model: nn.Module, image: Tensor, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed of each variant over the unpatched network's, interleaved, for each number of clusters."""
    speeds = []
    for clusters in asked.clusters:
        candidates: dict[str, Callable[[], object]] = {PLAIN: lambda: model.forward_features(image)}
        for name in asked.only:
            candidates[name] = patched_call(model, image, clusters, VARIANTS[name])
        clock = clock_for(1)
        seconds = interleave(candidates, PLAIN, asked.rounds, clock, title=f"M={clusters}")
        of = Speeds.of(seconds, asked.only, PLAIN, PLAIN)
        row = {"clusters": clusters, "clock": clock_name(1), "null": vars(of.null), "quiet": of.quiet}
        speeds.append({**row, "seconds": seconds, "speeds": {name: vars(ratio) for name, ratio in of.speeds.items()}})
        print(f"null pair {of.null.median:.3f}", *(f"{r.median:.2f} {n}" for n, r in of.speeds.items()), sep="\n")
    return speeds


def patched_call(model: nn.Module, image: Tensor, clusters: int, options: dict[str, Any]) -> Callable[[], object]:
    """A forward of a patched copy, with the same weights."""
    weights = {id(p): p for p in model.parameters()}
    twin = secvit.patch(copy.deepcopy(model, weights), clusters, **options)
    return lambda: twin.forward_features(image)


if __name__ == "__main__":
    main()
