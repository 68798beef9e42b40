"""The main job from end to end, on real input and without network: what `make demo` runs.

    python demo.py [--photo PHOTO] [--output demo_output] [--epochs 6]

1. Trains a small SECViT on scikit-learn's 1,797 handwritten digits and scores it on held-out ones,
   beside the majority floor and beside the same network with window and with random partitions:
   same sizes, same seed, same steps.
2. Draws the clusters of each stage, and Grad-CAM, for a photograph, yours ($PHOTO or --photo) or scikit-learn's
   china.jpg, in a network that comes trained, and says what two such networks see in it.
About three minutes on two cores.  Everything is written to --output; the same names are replaced.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets

from secvit import runs
from secvit.classification import load_split, train
from secvit.classification.recipes import digits
from secvit.images import read_image
from secvit.vis import cluster_maps, cluster_photo, draw_clusters, draw_curves
from secvit.vis.clusters import normalised
from secvit.vis.picture import check_output, save

PARTITIONS = {"sec": "SEC", "window": "window", "random": "random"}
SHIPPED = ("secvit_nano.cifar10", "secvit_nano.clothing10")
PICTURE = SHIPPED[1]  # the one for larger images
CHINA = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
KEPT = ("model.safetensors", "config.yaml", "result.json", "log.csv", "eval.csv")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train, compare, draw: the main job on real input.")
    parser.add_argument("--photo", default=os.environ.get("PHOTO") or None, help="default: china.jpg")
    parser.add_argument("--output", default="demo_output", type=Path, help="folder to write to")
    parser.add_argument("--epochs", default=6.0, type=float, help="of each of the three trainings")
    found = parser.parse_args()
    began = time.time()
    try:
        found.output.mkdir(parents=True, exist_ok=True)
        check_output(found.output / "clusters.png")
        photo = Path(found.photo) if found.photo else CHINA
        read_image(photo)  # now: a wrong path should not cost minutes
        results = compare(found.output, found.epochs)
        logging.getLogger("secvit").setLevel(logging.WARNING)
        if results is None:
            print("interrupted")
            return 130
        report(results)
        classify(photo)
        wrote = draw_training(found.output)
        picture = draw_photo(photo, found.output)
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    (found.output / "comparison.json").write_text(json.dumps(results, indent=2))
    print(f"\nWritten in {time.time() - began:.0f} s:")
    for path, what in [
        *wrote,
        (found.output / "comparison.json", "all numbers, with the recipe"),
        (found.output / "sec" / "model.safetensors", "the trained network"),
        picture,
    ]:
        print(f"  {path}\n      {what}")
    print(f"\nGo on:  secvit evaluate {found.output / 'sec'}")
    return 0


# -- training and comparing --------------------------------------------------------------------


def compare(output: Path, epochs: float) -> dict[str, dict[str, Any]] | None:
    """Three trainings that differ in the partition only.  None if they were interrupted."""
    if not sys.stderr.isatty():  # no progress bar there: lines instead
        logging.basicConfig(level=logging.INFO, format="    %(message)s", stream=sys.stdout)
    logging.getLogger("timm").setLevel(logging.WARNING)
    recipe = digits()
    recipe = replace(recipe, loop=replace(recipe.loop, epochs=epochs, save_every=10**9))
    print(
        "Digits: 8x8 px, enlarged to 32x32, so that stage 1 has 16x16 tokens in 8 clusters of 32 and\n"
        f"stage 2 8x8 in 2 of 32.  {epochs:g} epochs each, seed {recipe.loop.seed}."
    )
    results = {}
    for i, (partition, label) in enumerate(PARTITIONS.items()):
        print(f"\n[{i + 1}/3] training with {label} partitions", flush=True)
        arguments = {**recipe.model.args, "partition": partition}
        chosen = replace(recipe, model=replace(recipe.model, args=arguments))
        with tempfile.TemporaryDirectory(dir=output, prefix=".run_") as folder:
            result = train(chosen, "digits", folder, "never")
            if result["stopped"]:
                return None
            (output / partition).mkdir(exist_ok=True)
            for name in KEPT:
                os.replace(Path(folder) / name, output / partition / name)
        print(f"      {result['seconds']:.0f} s", flush=True)
        results[partition] = result
    return results


def report(results: dict[str, dict[str, Any]]) -> None:
    """The accuracies, and what they do and do not show."""
    sec = results["sec"]
    count = sec["images"][sec["split"]]
    wrong = {p: round((1 - r["top1"]) * count) for p, r in results.items()}
    print(f"\n{f'Top-1 on {count} held-out digits':41}  wrong  seconds")
    print(f"  {'always the most frequent class':31} {100 * sec['majority_floor']:6.2f} %")
    for partition, label in PARTITIONS.items():
        result = results[partition]
        name = f"SECViT with {label} partitions"
        top1, seconds = 100 * result["top1"], result["seconds"]
        print(f"  {name:31} {top1:6.2f} %  {wrong[partition]:5}  {seconds:7.0f}")
    print(verdict(wrong, count))


def verdict(wrong: dict[str, int], count: int) -> str:
    """What one seed can say: counts within two standard errors are not told apart."""
    lines = []
    for rival in ("window", "random"):
        rates = [wrong[p] / count for p in ("sec", rival)]
        error = max(np.sqrt(sum(r * (1 - r) / count for r in rates)), 1 / count)
        ahead = rates[1] - rates[0]
        if abs(ahead) < 2 * error:
            said = "too close to tell apart"
        else:
            said = "SEC is ahead" if ahead > 0 else "SEC is behind"
        lines.append(f"  SEC against {PARTITIONS[rival]} partitions: {100 * ahead:+.2f} points, {said}.")
    lines.append(
        "  One seed on small, easy images, whose convolutions do much of the work: no proof\n"
        "  for or against any of the three."
    )
    return "\n".join(lines)


# -- pictures ----------------------------------------------------------------------------------


def draw_training(output: Path) -> list[tuple[Path, str]]:
    """Curves of the SEC run, and what its network makes of a held-out digit."""
    curves = draw_curves(output / "sec" / "log.csv", output / "curves.png")
    network = runs.open(output / "sec").model
    held_out = load_split("digits", "val")
    digit = held_out.image(held_out.labels.tolist().index(8))
    figure = draw_clusters(
        digit,
        cluster_maps(network, normalised(digit, network)),
        "A held-out digit in the network just trained",
    )
    return [
        (curves, "loss and accuracy of the SEC training"),
        (save(figure, output / "digit_clusters.png"), "clusters of a digit in the trained network"),
    ]


def draw_photo(photo: Path, output: Path) -> tuple[Path, str]:
    path = cluster_photo(photo, output / "clusters.png", gradcam=True, run=PICTURE, size=320)
    return path, f"clusters and Grad-CAM of each stage for {photo.name} in {PICTURE}"


def classify(photo: Path) -> None:
    """What the networks that come trained say of the photo; each knows ten classes only."""
    print(f"\n{photo.name}, to networks that know ten classes each:")
    for name in SHIPPED:
        said = runs.open(name).predict(photo)[0]
        print(f"  {name:24}" + ", ".join(f"{label} {100 * share:.0f} %" for label, share in said))


if __name__ == "__main__":
    sys.exit(main())
