"""The main job from end to end, on real input and without network: what `make demo` runs.

    python demo.py [--photo PHOTO] [--output demo_output] [--epochs 6]

1. Trains a small SECViT on scikit-learn's 1,797 handwritten digits and scores it on held-out ones,
   beside the majority floor and beside the same network with window and with random partitions:
   same sizes, same seed, same steps, by `secvit.compare`.
2. Draws the clusters of each stage, and Grad-CAM, for a photograph, yours ($PHOTO or --photo) or scikit-learn's
   china.jpg, in a network that comes trained, and says what two such networks see in it.
About three minutes on two cores.  Everything is written to --output; the same names are replaced, and trainings
that are finished there are not done again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import sklearn.datasets

from secvit import runs
from secvit.classification import load_split
from secvit.classification.recipes import digits
from secvit.compare import compare, markdown
from secvit.draw.curves import draw_curves
from secvit.draw.picture import check_output, save
from secvit.images import read_image
from secvit.vis import cluster_maps, cluster_photo, draw_clusters
from secvit.vis.clusters import normalised

NAME, ENTRY = "classification.digits", "model.args.partition"
PARTITIONS = ("sec", "window", "random")
TRAINED = Path("sec") / "seed_0"
SHIPPED = ("secvit_nano.cifar10", "secvit_nano.clothing10")
PICTURE = SHIPPED[1]  # the one for larger images
CHINA = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"


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
        comparison = train(found.output, found.epochs)
        if comparison["stopped"]:
            print("interrupted; the same command goes on")
            return 130
        logging.getLogger("secvit").setLevel(logging.WARNING)
        report(comparison)
        classify(photo)
        wrote = draw_training(found.output)
        picture = draw_photo(photo, found.output)
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(f"\nWritten in {time.time() - began:.0f} s:")
    for path, what in [
        *wrote,
        (found.output / "comparison.md", "the table above"),
        (found.output / "comparison.png", "the same as a picture"),
        (found.output / "comparison.json", "all numbers, with the recipe"),
        (found.output / TRAINED / "model.safetensors", "the trained network"),
        picture,
    ]:
        print(f"  {path}\n      {what}")
    print(
        f"\nGo on:  secvit evaluate {found.output / TRAINED}\n"
        f"        secvit compare {NAME} --vary {ENTRY}={','.join(PARTITIONS)} --loop.epochs {found.epochs:g} "
        f"--output {found.output}\n        trains with seeds 1 and 2, too, and says what three seeds can tell"
    )
    return 0


# -- training and comparing --------------------------------------------------------------------


def train(output: Path, epochs: float) -> dict[str, Any]:
    """Three trainings that differ in the partition only."""
    if not sys.stderr.isatty():  # no progress bar there: lines instead
        logging.basicConfig(level=logging.INFO, format="    %(message)s", stream=sys.stdout)
    logging.getLogger("timm").setLevel(logging.WARNING)
    recipe = digits()
    recipe = replace(recipe, loop=replace(recipe.loop, epochs=epochs))
    print(
        "Digits: 8x8 px, enlarged to 32x32, so that stage 1 has 16x16 tokens in 8 clusters of 32 and\n"
        f"stage 2 8x8 in 2 of 32.  {epochs:g} epochs each, seed 0.\n"
    )
    variants = {
        name: replace(recipe, model=replace(recipe.model, args={**recipe.model.args, "partition": name}))
        for name in PARTITIONS
    }
    return compare(variants, "digits", output, [0], entry=ENTRY, name=NAME, tell=lambda line: print(line, flush=True))


def report(comparison: dict[str, Any]) -> None:
    """The accuracies, and what they do and do not show."""
    result = comparison["runs"][0]["result"]
    count = result["images"][result["split"]]
    print(f"\nOn {count} held-out digits, where one more wrong is {100 / count:.2f} points:\n")
    print(markdown(comparison))
    print("The images are small and easy, and the convolutions do much of the work: no proof for or against any.")


# -- pictures ----------------------------------------------------------------------------------


def draw_training(output: Path) -> list[tuple[Path, str]]:
    """Curves of the SEC run, and what its network makes of a held-out digit."""
    curves = draw_curves(output / TRAINED / "log.csv", output / "curves.png")
    network = runs.open(output / TRAINED).model
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
