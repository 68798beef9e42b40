"""What `secvit.patch` costs a trained ViT in accuracy, and how much a tenth of its training brings back.

python benchmarks/patching.py runs/vit_0 runs/vit_1 runs/vit_2 --data cifar10 --output runs/patched

The runs are those of classification.cifar10_vit, one a seed.  Each is scored on the test images as it is;
with its attention in clusters, by SEC, windows and random partitions of the same sizes, without any training;
and after the steps of classification.cifar10_vit_patched with each partition, and with none: further training
alone may help.  Writes results/patching.<data>_<hardware>_<torch>_<date>.json; a second call goes on where the
first one stopped.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secvit
from secvit.classification import evaluate, recipes, train
from secvit.classification.scoring import eval_view
from secvit.images import load_split
from secvit.models.saved import load_model
from secvit.provenance import provenance, result_name

RESULTS = Path(__file__).parent / "results"
PARTITIONS = ("sec", "window", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of classification.cifar10_vit, one a seed")
    parser.add_argument("--data", type=Path, required=True, help="the images it was trained on")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs that follow")
    parser.add_argument("--clusters", type=int, nargs="+", default=[2, 4, 16], help="numbers to score untrained")
    found = parser.parse_args()
    recipe = recipes.cifar10_vit_patched()
    trained_clusters = recipe.model.patch["num_clusters"]
    images = load_split(str(found.data), "test")
    found.output.mkdir(parents=True, exist_ok=True)
    kept = found.output / "rows.json"
    known: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    rows: list[dict[str, Any]] = []

    def score(make: Callable[[], nn.Module], seed: int, partition: str, clusters: int, tuned: bool) -> None:
        row: dict[str, Any] = {"seed": seed, "partition": partition, "clusters": clusters, "tuned": tuned}
        before = [old for old in known if {**old, **row} == old]
        if not before:
            torch.manual_seed(seed)  # random partitions
            model = make()
            before = [{**row, "top1": evaluate(model, eval_view(images, model))["top1"]}]
            known.extend(before)
            kept.write_text(json.dumps(known))
        rows.extend(before)
        print(before[0], flush=True)

    for run in found.runs:
        base = json.loads((run / "result.json").read_text())
        seed = base["recipe"]["loop"]["seed"]
        score(partial(load_model, base["model"], run), seed, "none", 1, False)
        for clusters in found.clusters:
            for partition in PARTITIONS:
                make = partial(patched_copy, base["model"], run, clusters, partition)
                score(make, seed, partition, clusters, False)
        for partition in ("none", *PARTITIONS):
            patched = {} if partition == "none" else {"num_clusters": trained_clusters, "partition": partition}
            chosen = replace(
                recipe,
                model=replace(recipe.model, init=str(run), patch=patched),
                loop=replace(recipe.loop, seed=seed),
            )
            output = found.output / f"{partition}_{seed}"
            if not (output / "result.json").is_file():
                train(chosen, found.data, output)
            clusters = 1 if partition == "none" else trained_clusters
            score(partial(load_model, base["model"], output), seed, partition, clusters, True)
    about = provenance()
    result = {
        "kind": "secvit patch accuracy", "data": found.data.name, "images": len(images),
        "recipes": ["classification.cifar10_vit", "classification.cifar10_vit_patched"],
        "base_steps": base["steps"], "steps": recipe.loop.steps, "tokens": 64, "rows": rows, **about,
    }  # fmt: skip
    path = RESULTS / f"{result_name(f'patching.{found.data.name}', about)}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


def patched_copy(name: str, run: Path, clusters: int, partition: str) -> nn.Module:
    return secvit.patch(load_model(name, run), clusters, partition=partition)


if __name__ == "__main__":
    main()
