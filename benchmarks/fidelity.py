"""How much of a trained ViT's features is left when its attention sees less, and what that saves.

python benchmarks/fidelity.py WEIGHTS PHOTO... --size 448 --clusters 16 32
python benchmarks/fidelity.py WEIGHTS PHOTO... --size 336 --tokens 36 72 144   # how much connectors keep of them

Every photo goes through the network as it is, and through the same network changed without any training, by each
variant of trained.py: SEC, windows, random groups and the balanced tree, blind to each other and with near and far;
similar tokens merged; a smaller image; the tree's order made anew in each layer and head, or shared.  Compared are
patch tokens (cosine, the mean over the tokens of a photo) and [cls]; times are interleaved, on one photo.  WEIGHTS is
a file for timm's NETWORK, PHOTOS are squashed to squares.  Writes
results/fidelity.<size>_<hardware>_<torch>_<date>.json.

With --tokens nothing is patched: T tokens of each of CONNECTORS, not trained and before the MLP, stand for the patch
tokens, and compared is the share of the tokens' variance that they keep (`variance_kept`), and how much of the outputs'
places their index explains (`place_explained`).  Writes
results/connector-fidelity.<size>_<hardware>_<torch>_<date>.json.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trained import ORDERS, PLAIN, VARIANTS, as_input, change, features, network, twin

from secvit.connectors import create
from secvit.images import read_image
from secvit.measure.results import head, save_result, using_threads
from secvit.measure.rounds import Speeds, clock_for, clock_name, interleave
from secvit.provenance import result_name

RESULTS = Path(__file__).parent / "results"
ALL = {**VARIANTS, **ORDERS}
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
    parser.add_argument("--only", nargs="+", default=list(ALL), choices=list(ALL), help="variants")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing; 0 for none")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    asked = parser.parse_args(words)
    model = network(asked.network, asked.weights, (asked.size, asked.size))
    title, measured = ("connector-fidelity", measure_connectors) if asked.tokens else ("fidelity", measure)
    with using_threads(1):
        result = measured(model, asked)
    asked.results.mkdir(exist_ok=True)
    path = asked.results / f"{result_name(f'{title}.{asked.size}', result)}.json"
    save_result(result, path)
    print(f"wrote {path}")


@torch.no_grad()
def measure(model: nn.Module, asked: argparse.Namespace) -> dict[str, Any]:
    """Every variant on every photo, then the times."""
    images = [as_input(model, read_image(photo), (asked.size, asked.size)) for photo in asked.photos]
    before = [features(model, image, {}) for image in images]
    rows: list[dict[str, Any]] = []
    for clusters in asked.clusters:
        for name in asked.only:
            undo = change(model, ALL[name], clusters)
            row = {"variant": name, "clusters": clusters, **compared(model, images, before, ALL[name])}
            undo()
            rows.append(row)
            worst = min(row["patches"])
            photo = asked.photos[row["patches"].index(worst)].name
            print(f"M={clusters:3} {name:48} {fmean(row['patches']):.4f}  worst {worst:.4f} ({photo})", flush=True)
    recipe = {
        "network": asked.called, "architecture": asked.network, "size": asked.size, "rounds": asked.rounds,
        "photos": [photo.name for photo in asked.photos], "variants": {name: ALL[name] for name in asked.only},
    }  # fmt: skip
    result = {**head("fidelity", recipe, threads=1), "rows": rows}
    if asked.rounds:
        result["speed"] = timed(model, images[0], asked)
    return result


def compared(
    model: nn.Module, images: Sequence[Tensor], before: Sequence[tuple[Tensor, Tensor]], variant: dict[str, Any]
) -> dict[str, list[float]]:
    """Cosines of patch tokens and of [cls] to the unpatched network's, one a photo."""
    found: dict[str, list[float]] = {"patches": [], "cls": []}
    for image, (cls, patches) in zip(images, before, strict=True):
        new_cls, new_patches = features(model, image, variant)
        found["patches"].append(F.cosine_similarity(new_patches, patches, dim=-1).mean().item())
        found["cls"].append(F.cosine_similarity(new_cls, cls, dim=-1).item())
    return found


@torch.no_grad()
def measure_connectors(model: nn.Module, asked: argparse.Namespace) -> dict[str, Any]:
    """Every connector, with each number of tokens, on the patch tokens of every photo."""
    size = (asked.size, asked.size)
    photos = [features(model, as_input(model, read_image(photo), size), {})[1].flatten(1, 2) for photo in asked.photos]
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
        candidates = {PLAIN: call(model, image, {}, clusters)}
        for name in asked.only:
            candidates[name] = call(twin(model), image, ALL[name], clusters)
        clock = clock_for(1)
        seconds = interleave(candidates, PLAIN, asked.rounds, clock, title=f"M={clusters}")
        of = Speeds.of(seconds, asked.only, PLAIN, PLAIN)
        row = {"clusters": clusters, "clock": clock_name(1), "null": vars(of.null), "quiet": of.quiet}
        speeds.append({**row, "seconds": seconds, "speeds": {name: vars(ratio) for name, ratio in of.speeds.items()}})
        print(f"null pair {of.null.median:.3f}", *(f"{r.median:.2f} {n}" for n, r in of.speeds.items()), sep="\n")
    return speeds


def call(model: nn.Module, image: Tensor, variant: dict[str, Any], clusters: int) -> Callable[[], object]:
    """A forward of a network that stays as the variant has it."""
    change(model, variant, clusters)
    return lambda: features(model, image, variant)


if __name__ == "__main__":
    main()
