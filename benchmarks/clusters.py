"""Do clusters follow objects?  Purity, compactness and stability by stage and head, beside rival partitions.

python benchmarks/clusters.py --data coco286 pets599 camvid --images 60
python benchmarks/clusters.py --data camvid --weights secvit_nano.clothing10 untrained --clusters 2 8

Each --data is a folder: one in COCO's format (masks of instances become classes of pixels, 0 where there is none),
or one of images and masks (docs/segmentation.md).  Every stage's keys are cut into the same numbers of clusters,
so that stages and partitions can be compared; the stages' own numbers play no part.  The network's attention stays
as it was trained.  Writes results/clusters_<hardware>_<torch>_<date>.json: means over images of every head and of
all heads together, and, for purity, SEC's lead over each rival with its standard error over images.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from tqdm import tqdm

from secvit import detection, segmentation
from secvit.images import read_image
from secvit.models.saved import load_model
from secvit.provenance import provenance, result_name
from secvit.vis.clusters import sized
from secvit.vis.metrics import CHANGES, RIVALS, cluster_metrics

RESULTS = Path(__file__).parent / "results"
SCORES = ("purity", "floor", "compactness", *CHANGES)  # the last three of the first weights only
UNTRAINED = "untrained"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of photos with masks")
    parser.add_argument("--weights", nargs="+", default=["secvit_nano.clothing10", UNTRAINED], help="names of networks")
    parser.add_argument("--images", type=int, default=60, help="of each data set, evenly spread over its val split")
    parser.add_argument("--size", type=int, default=320, help="long side in px")
    parser.add_argument("--clusters", type=int, nargs="+", default=[2, 8], help="numbers of clusters, at every stage")
    found = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for root in found.data:
        examples = list(photos_with_masks(root, found.images))
        for i, weights in enumerate(found.weights):
            for clusters in found.clusters:
                about = {"data": root.name, "weights": weights, "images": len(examples), "clusters": clusters}
                rows += [{**about, **row} for row in score(network_of(weights), examples, clusters, found.size, i == 0)]
                print(about, flush=True)
    about = provenance()
    result = {"kind": "secvit clusters", "size": found.size, "partitions": RIVALS, "rows": rows, **about}
    path = RESULTS / f"{result_name('clusters', about)}.json"
    path.write_text(json.dumps(result) + "\n")
    print(path)


def network_of(weights: str) -> torch.nn.Module:
    """A network by name; "untrained" is the first one's with random weights."""
    if weights != UNTRAINED:
        return load_model(weights)
    torch.manual_seed(0)
    return timm.create_model("secvit_nano", stem_stride=4, num_classes=10).eval()


def photos_with_masks(root: Path, count: int) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """Photos of a val split with the class of each pixel, 255 where it does not count."""
    if (root / "annotations").is_dir() and not list(root.glob("*_label")):
        split = detection.data.load(root, "val")
        for i in spread(len(split.images), count):
            target = split.target(i)
            mask = np.zeros(target["masks"].shape[1:], np.uint8)
            # large ones first: what lies on them stays visible
            for n in target["masks"].sum((1, 2)).argsort(descending=True).tolist():
                mask[target["masks"][n].numpy() > 0] = int(target["labels"][n]) + 1
            yield read_image(split.path(i)), mask
        return
    pixels = segmentation.data.load(root, "val")
    for i in spread(len(pixels), count):
        yield read_image(pixels.images.names[i]), pixels.mask(i)


def spread(length: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, length - 1, min(count, length)).round()]


def score(
    network: torch.nn.Module, examples: list[tuple[Image.Image, np.ndarray]], clusters: int, size: int, stability: bool
) -> list[dict[str, Any]]:
    """A row for each stage, head (and their mean) and partition: means over photos, and SEC's lead in purity."""
    table: dict[tuple[int, int | str, str], list[dict[str, float]]] = {}
    for image, mask in tqdm(examples, leave=False):
        rows = cluster_metrics(network, sized(image, size), mask, num_clusters=clusters, stability=stability)
        heads: dict[tuple[int, int | str, str], list[dict[str, float]]] = {}
        for row in rows:
            for head in (row["head"], "mean"):
                heads.setdefault((row["stage"], head, row["partition"]), []).append(row)
        for key, same in heads.items():
            known = [name for name in SCORES if name in same[0]]
            table.setdefault(key, []).append({name: float(np.mean([row[name] for row in same])) for name in known})
    out = []
    for (stage, head, partition), rows in table.items():
        lead = np.array([a["purity"] - b["purity"] for a, b in zip(table[stage, head, "sec"], rows, strict=True)])
        out.append({
            "stage": stage, "head": head, "partition": partition,
            **{name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]},
            "lead": round(float(lead.mean()), 4),
            "lead_error": round(float(lead.std(ddof=1) / len(lead) ** 0.5), 4),
        })  # fmt: skip
    return out


if __name__ == "__main__":
    main()
