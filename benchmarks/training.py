"""Keep the result of a training run: score it on a split, copy its log, its curves and its recipe.

python benchmarks/training.py runs/cifar10_hour --recipe cifar10_secvit_nano_hour --data cifar10 --split test

writes results/<recipe>_<hardware>_<torch>_<date>.json (.log.csv, .eval.csv, .png).
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from secvit.classification import evaluate_checkpoint
from secvit.vis import draw_curves

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of secvit train")
    parser.add_argument("--recipe", required=True, help="what the result is called")
    parser.add_argument("--data", required=True, help="the images it was trained on")
    parser.add_argument("--split", default="test", help="split to score")
    found = parser.parse_args()
    result = json.loads((found.run / "result.json").read_text())
    scores = evaluate_checkpoint(result["model"], found.run / "model.safetensors", found.data, found.split)
    keep = ("top1", "macro", "majority_floor", "images", "skipped")
    result = {"kind": "secvit train", "name": found.recipe, **result, "data": Path(found.data).name}
    result[found.split] = {key: scores[key] for key in keep}
    hardware = re.sub(r"\W+", "-", result["hardware"].split(",")[0]).strip("-").lower()
    torch = result["versions"]["torch"].split("+")[0]
    stem = f"{found.recipe}_{hardware}_torch{torch}_{result['date']}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    for name in ("log", "eval"):
        shutil.copy(found.run / f"{name}.csv", RESULTS / f"{stem}.{name}.csv")
    draw_curves(found.run / "log.csv", RESULTS / f"{stem}.png")
    print(f"{found.split} top-1 {100 * scores['top1']:.2f} %: {RESULTS / stem}.json")


if __name__ == "__main__":
    main()
