"""Keep the results of training runs that differ in the seed: scores on val and test, logs, curves, recipe.

python benchmarks/training.py runs/cifar10 --recipe classification.cifar10_secvit_nano --data cifar10
python benchmarks/training.py runs/scratch_0 runs/scratch_1 runs/scratch_2 --recipe ... --data ...

writes results/<recipe>_<hardware>_<torch>_<date>.json, and for each seed .log.csv, .eval.csv and .png.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from secvit import segmentation
from secvit.classification import evaluate_checkpoint
from secvit.draw.curves import draw_curves
from secvit.provenance import result_name
from secvit.segmentation.data import splits

RESULTS = Path(__file__).parent / "results"
SHARED = ("model", "parameters", "images", "hardware", "versions", "date", "commit", "recipe")
OWN = ("seconds", "steps", "commit", "date", "nonfinite_steps", "skipped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of secvit train, one for each seed")
    parser.add_argument("--recipe", required=True, help="what was trained, slice.recipe")
    parser.add_argument("--data", type=Path, required=True, help="the images it was trained on")
    parser.add_argument("--name", help="what the result is called, if not after the recipe")
    parser.add_argument("--note", default="", help="what a reader of the numbers should know")
    found = parser.parse_args()
    results = [json.loads((run / "result.json").read_text()) for run in found.runs]
    first = results[0]
    kind, _, recipe = found.recipe.partition(".")
    name = found.name or recipe
    kept: dict[str, Any] = {"kind": f"secvit train {kind}", "name": name, "data": found.data.name, "note": found.note}
    kept |= {key: first[key] for key in SHARED}
    if "backbone" in first:
        kept["backbone"] = first["backbone"]
    if init := kept["recipe"]["model"].get("init"):
        kept["recipe"]["model"]["init"] = Path(init).name
    kept["runs"] = [
        {
            "seed": result["recipe"]["loop"]["seed"],
            **{key: result[key] for key in OWN if key in result},
            **scores(kind, run, result, found.data),
        }
        for run, result in zip(found.runs, results, strict=True)
    ]
    stem = result_name(f"{kind}.{name}", first)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.json").write_text(json.dumps(kept, indent=2) + "\n")
    for run, about in zip(found.runs, kept["runs"], strict=True):
        for log in ("log", "eval"):
            shutil.copy(run / f"{log}.csv", RESULTS / f"{stem}.seed{about['seed']}.{log}.csv")
        draw_curves(run / "log.csv", RESULTS / f"{stem}.seed{about['seed']}.png")
    print(RESULTS / f"{stem}.json", *(run["test"] if "test" in run else run["val"] for run in kept["runs"]), sep="\n")


def scores(kind: str, run: Path, result: dict[str, Any], data: Path) -> dict[str, dict[str, Any]]:
    """Numbers by split: accuracies and IoU scored here, or what SimMIM or a detector measured on held-out images."""
    if kind == "simmim":
        return {result["split"]: {key: result[key] for key in ("loss", "mean_baseline")}}
    if kind == "detection":
        return {result["split"]: {key: value for key, value in result.items() if key.startswith(("box_", "mask_"))}}
    if kind == "segmentation":
        keep = ("miou", "pixel_accuracy", "mean_accuracy", "per_class", "images", "skipped")
        held_out = [split for split in splits(data) if split != "train"]
        found = {split: segmentation.evaluate_checkpoint(run, data, split) for split in held_out}
        return {split: {key: score[key] for key in keep} for split, score in found.items()}
    keep = ("top1", "macro", "majority_floor", "images", "skipped")
    found = {split: evaluate_checkpoint(result["model"], run, data, split) for split in ("val", "test")}
    return {split: {key: score[key] for key in keep} for split, score in found.items()}


if __name__ == "__main__":
    main()
