"""Turn a finished run into weights that ship: float16, with a model card, its log and its curves.

python benchmarks/ship.py runs/cifar10 secvit_nano.cifar10 --data cifar10 --recipe cifar10_secvit_nano

writes src/secvit/pretrained/<name>/: a folder that timm loads (local-dir:) and the Hugging Face hub
takes as it is.  The card's numbers are those of the float16 weights, scored here.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.models import save_for_hf

from secvit.classification import evaluate_checkpoint
from secvit.draw.curves import draw_curves
from secvit.models.saved import create, load_model

SHIPPED = Path(__file__).parents[1] / "src" / "secvit" / "pretrained"
LARGEST = 12_000_000  # bytes of a weight file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of secvit train")
    parser.add_argument("name", help="secvit_nano.TAG")
    parser.add_argument("--data", type=Path, required=True, help="the images it was trained on, with SOURCE.md")
    parser.add_argument("--recipe", required=True, help="name of the recipe, with the changes that were made")
    parser.add_argument("--about", default="", help="one more paragraph of the card")
    found = parser.parse_args()
    result = json.loads((found.run / "result.json").read_text())
    folder = SHIPPED / found.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    trained = load_model(result["model"], found.run)
    network = create(found.name, trained.num_classes)
    network.load_state_dict(trained.state_dict())
    names, arguments = network.pretrained_cfg["label_names"], result["recipe"]["model"]["args"]
    save_for_hf(network.half(), str(folder), {"label_names": names}, arguments, safe_serialization=True)
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    config.get("model_args", {}).pop("num_classes", None)  # else transformers' timm wrapper is given it twice
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if (size := (folder / "model.safetensors").stat().st_size) > LARGEST:
        raise SystemExit(f"{size} bytes of weights; at most {LARGEST} may ship")
    for name in ("log.csv", "eval.csv"):
        shutil.copy(found.run / name, folder / name)
    resolved = yaml.safe_load((found.run / "config.yaml").read_text())
    resolved["data"] = found.data.name
    if init := resolved["model"]["init"]:
        resolved["model"]["init"] = Path(init).name
    (folder / "recipe.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    draw_curves(found.run / "log.csv", folder / "curves.png")
    scores = {split: evaluate_checkpoint(found.name, None, found.data, split) for split in ("val", "test")}
    (folder / "README.md").write_text(card(found.name, found.recipe, found.data, result, scores, found.about))
    print(f"{folder}: {size} bytes, test top-1 {100 * scores['test']['top1']:.2f} %")


TERMS = {
    "cifar10": (
        "CIFAR-10 (A. Krizhevsky, 2009, *Learning multiple layers of features from tiny images*), 40,000 of its "
        "training images, JPEG re-encoded. Its authors state no licence; use in research with citation is customary."
    ),
    "clothing10_160": (
        "clothing-dataset-small (A. Grigorev), 2,761 photographs of ten kinds of clothes, short side 160 px. CC0 1.0."
    ),
}


def card(
    name: str, recipe: str, data: Path, result: dict[str, Any], scores: dict[str, dict[str, Any]], about: str
) -> str:
    """The model card: what it is, how it was made, what it reached, what it is not for."""
    size = timm.get_pretrained_cfg(name).input_size[-1]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k in ("torch", "timm"))
    rows = "\n".join(
        f"| {split} | {100 * s['top1']:.2f} % | {100 * s['macro']:.2f} % | {100 * s['majority_floor']:.2f} % "
        f"| {s['images']} |"
        for split, s in scores.items()
    )
    loop = result["recipe"]["loop"]
    floor = floors(data)
    return f"""---
license: apache-2.0
library_name: timm
tags: [image-classification, timm, secvit]
datasets: [{data.name}]
---
# {name}

SECViT-nano ({result["parameters"] / 1e6:.2f} M parameters), image classification at {size} px. Semantic Equitable
Clustering: Fan, Huang, Chen, He, ICCV 2025. Trained by the makers of this library, not by the paper's authors.

```python
import secvit, timm

model = timm.create_model("{name}", pretrained=True).eval()
```
{about and chr(10) + about + chr(10)}
## Accuracy
Of these float16 weights, seed {loop["seed"]}:

| split | top-1 | mean over classes | most frequent class | images |
|---|---|---|---|---|
{rows}
{floor}
## Training
`secvit train classification.{recipe} --data {data.name}`: {result["steps"]} steps of {loop["batch_size"]} images in
{result["seconds"] / 60:.0f} minutes on {result["hardware"]}. Commit `{result["commit"]}`, {result["date"]}, {versions}.
Everything else is in `recipe.yaml`; the log in `log.csv` and `eval.csv`; the curves in `curves.png`.

## Data and licence
{TERMS[data.name]} The weights are under Apache-2.0 as far as they are ours to license.

## Not for
Anything that matters: it knows {len(timm.get_pretrained_cfg(name).label_names)} classes and answers one of them to any
photo, with a confidence that was never calibrated.
"""


def floors(data: Path) -> str:
    """The data set's own floor, from its SOURCE.md."""
    found = re.search(r"^- Floor: (.*)$", (data / "SOURCE.md").read_text(), re.MULTILINE)
    return f"\nFloor given with the data: {found[1]}\n" if found else ""


if __name__ == "__main__":
    main()
