"""What a trained ViT's features are still good for when its attention sees less: linear probes.

python benchmarks/probes.py WEIGHTS classes DATA --size 224 --clusters 16
python benchmarks/probes.py WEIGHTS masks DATA --size 336 448 --clusters 16

"classes": logistic regression on [cls] and the mean patch token, accuracy on val.  "masks": one on every patch token,
for the shares of classes in the patch, mIoU of its logits, resized to the mask.  A probe is learned on the unpatched
network's features of train and meets those of a variant (trained.py) on val; with --refit another one is learned on
the variant's own.  Beside each figure stands its difference to the unpatched network's on the same images, with the
95 % interval of 2,000 resamplings of the images.  Writes results/probes.<data>.<size>_<hardware>_<torch>_<date>.json.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from trained import PLAIN, VARIANTS, as_input, change, features, network

from secvit.images import load_split
from secvit.measure.results import head, save_result, using_threads
from secvit.provenance import result_name
from secvit.segmentation.data import load as load_masks

RESULTS = Path(__file__).parent / "results"
DECAY = 1e-3  # of the probes' weights, on features of variance 1
RESAMPLED = 2000
IGNORED = 255


@dataclass
class Part:
    """Images of one split.  targets: a class, or a mask (H, W), of each."""

    names: list[str]
    read: Callable[[int], Image.Image]
    target: Callable[[int], Any]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a weight file for the network, in timm's or its publisher's form")
    parser.add_argument("task", choices=list(TASKS), help="what the images have")
    parser.add_argument("data", type=Path, help="a folder as `secvit train` takes it, with train and val")
    parser.add_argument("--called", default="ViT-S/14", help="what results call the network and its weights")
    parser.add_argument("--network", default="vit_small_patch14_dinov2", help="timm's name of it")
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="px of a side, or height and width")
    parser.add_argument("--clusters", type=int, default=16, help="number of clusters")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="variants")
    parser.add_argument("--refit", action="store_true", help="learn another probe on each variant's own features")
    parser.add_argument("--train", type=int, help="so many images of train, spread evenly over the classes; all else")
    parser.add_argument("--val", type=int, help="so many images of val, likewise")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    asked = parser.parse_args(words)
    size = (asked.size[0], asked.size[-1])
    model = network(asked.network, asked.weights, size)
    with using_threads(1):
        result = measure(model, size, asked)
    asked.results.mkdir(exist_ok=True)
    pixels = "x".join(map(str, dict.fromkeys(size)))
    path = asked.results / f"{result_name(f'probes.{asked.data.name}.{pixels}', result)}.json"
    save_result(result, path)
    print(f"wrote {path}")


@torch.no_grad()
def measure(model: nn.Module, size: tuple[int, int], asked: argparse.Namespace) -> dict[str, Any]:
    """Every variant on val, by a probe of the unpatched network and by one of its own."""
    task = TASKS[asked.task]
    train, val = task.load(asked.data, "train", asked.train), task.load(asked.data, "val", asked.val)
    rows: list[dict[str, Any]] = []
    probe, plain = None, {}
    for name, variant in {PLAIN: {}, **{name: VARIANTS[name] for name in asked.only}}.items():
        undo = change(model, variant, asked.clusters)
        outs = list(seen(model, val, size, variant, f"{name}: val"))
        own = None
        if probe is None or asked.refit:
            own = task.learn(list(seen(model, train, size, variant, f"{name}: train")), train)
        undo()
        probe = probe or own
        scores = {"frozen": task.score(probe, outs, val)}
        if asked.refit:
            scores["refitted"] = task.score(own, outs, val)
        plain = plain or scores
        rows.append({"variant": name})
        for kind, score in scores.items():
            figure, difference = task.figure(score.sum(axis=0)), resampled(score, plain[kind], task.figure)
            rows[-1][kind] = {"score": figure, "difference": difference}
            low, high = difference["interval"]
            print(f"{name:40} {kind:9} {figure:.4f}  {difference['mean']:+.4f} ({low:+.4f} .. {high:+.4f})")
        if asked.task == "classes":
            answers = [task.answer(probe, out).item() for out in outs]
            rows[0].setdefault("answers", answers)
            rows[-1]["same"] = float(np.mean(np.equal(answers, rows[0]["answers"])))
    rows[0].pop("answers", None)
    recipe = {
        "network": asked.called, "architecture": asked.network, "size": list(size), "clusters": asked.clusters,
        "data": asked.data.name, "task": asked.task, "images": {"train": len(train), "val": len(val)},
        "decay": DECAY, "resampled": RESAMPLED, "variants": {name: VARIANTS[name] for name in asked.only},
    }  # fmt: skip
    return {**head("probes", recipe, threads=1), "rows": rows}


def seen(
    model: nn.Module, part: Part, size: tuple[int, int], variant: dict[str, Any], title: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """[cls] and patch tokens of each image."""
    for i in range(len(part)):
        print(f"\r{title} {i + 1} of {len(part)}", end="\r", flush=True)
        yield features(model, as_input(model, part.read(i), size), variant)


def resampled(score: np.ndarray, plain: np.ndarray, figure: Callable[[np.ndarray], float]) -> dict[str, Any]:
    """Difference to the unpatched network's figure, with the interval of resampled images.

    score, plain: counts of each image, which a figure is made of when summed.
    """
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLED):
        counts = np.bincount(generator.integers(len(score), size=len(score)), minlength=len(score))
        differences.append(figure(np.tensordot(counts, score, 1)) - figure(np.tensordot(counts, plain, 1)))
    low, high = np.quantile(differences, (0.025, 0.975)).tolist()
    return {"mean": figure(score.sum(axis=0)) - figure(plain.sum(axis=0)), "interval": [low, high]}


# -- probes --------------------------------------------------------------------------------------


@dataclass
class Probe:
    """A linear map of features whose mean and deviation are those of what it learned on."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return ((x.double() - self.mean) / self.deviation) @ self.weight + self.bias


def fitted(x: Tensor, shares: Tensor) -> Probe:
    """Softmax regression in float64.  x (n, C), shares (n, K) of classes; a row weighs as much as its sum."""
    x = x.double()
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    z, shares = (x - mean) / deviation, shares.double()
    weight = torch.zeros(x.shape[1], shares.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(shares.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = -(shares * (z @ weight + bias).log_softmax(dim=-1)).sum() / shares.sum()
        total = fit + DECAY / 2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return Probe(mean, deviation, weight.detach(), bias.detach())


class ByClass:
    """One class an image."""

    @staticmethod
    def load(data: Path, split: str, count: int | None) -> Part:
        images = load_split(str(data), split)
        indices = evenly(images.labels.tolist(), count or len(images))
        names = [images.names[i] for i in indices]
        return Part(names, lambda i: images.image(indices[i]), lambda i: int(images.labels[indices[i]]), images.classes)

    @staticmethod
    def vector(out: tuple[Tensor, Tensor]) -> Tensor:
        cls, patches = out
        return torch.cat([cls[0], patches[0].mean(dim=(0, 1))])

    def learn(self, outs: Sequence[tuple[Tensor, Tensor]], part: Part) -> Probe:
        labels = torch.tensor([part.target(i) for i in range(len(part))])
        return fitted(torch.stack([self.vector(out) for out in outs]), F.one_hot(labels, len(part.classes)))

    def answer(self, probe: Probe, out: tuple[Tensor, Tensor]) -> Tensor:
        return probe(self.vector(out)).argmax()

    def score(self, probe: Probe, outs: Sequence[tuple[Tensor, Tensor]], part: Part) -> np.ndarray:
        right = [self.answer(probe, out).item() == part.target(i) for i, out in enumerate(outs)]
        return np.array([[hit, 1] for hit in right], dtype=np.float64)

    @staticmethod
    def figure(counts: np.ndarray) -> float:
        """Accuracy."""
        return float(counts[0] / counts[1])


class ByMask:
    """A mask an image."""

    @staticmethod
    def load(data: Path, split: str, count: int | None) -> Part:
        part = load_masks(data, split)
        indices = evenly([0] * len(part), count or len(part))
        names = [part.images.names[i] for i in indices]
        return Part(names, lambda i: part.images.image(indices[i]), lambda i: part.mask(indices[i]), part.classes)

    def learn(self, outs: Sequence[tuple[Tensor, Tensor]], part: Part) -> Probe:
        grid = outs[0][1].shape[1:3]
        shares = [self.shares(part.target(i), len(part.classes), grid) for i in range(len(part))]
        x = torch.cat([patches.flatten(0, 2) for _, patches in outs])
        return fitted(x, torch.cat(shares))

    @staticmethod
    def shares(mask: np.ndarray, classes: int, grid: torch.Size) -> Tensor:
        """Shares of the classes in every cell of a grid.  -> (H W, K)"""
        one_hot = F.one_hot(torch.from_numpy(mask).long().clamp_max(classes), classes + 1)[..., :classes]
        pooled = F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float().unsqueeze(0), tuple(grid))
        return pooled[0].flatten(1).T

    def score(self, probe: Probe, outs: Sequence[tuple[Tensor, Tensor]], part: Part) -> np.ndarray:
        """Confusion of each image, (n, K, K)."""
        counts, classes = [], len(part.classes)
        for i, (_, patches) in enumerate(outs):
            mask = torch.from_numpy(part.target(i)).long()
            logits = F.interpolate(probe(patches).permute(0, 3, 1, 2), mask.shape, mode="bilinear")
            known = mask != IGNORED
            pairs = mask[known] * classes + logits.argmax(dim=1)[0][known]
            counts.append(torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy())
        return np.stack(counts).astype(np.float64)

    @staticmethod
    def figure(counts: np.ndarray) -> float:
        """mIoU over the classes that occur."""
        hit = counts.diagonal()
        union = counts.sum(axis=0) + counts.sum(axis=1) - hit
        return float((hit[union > 0] / union[union > 0]).mean())


TASKS: dict[str, Any] = {"classes": ByClass(), "masks": ByMask()}


def evenly(labels: Sequence[int], count: int) -> list[int]:
    """Indices of `count` images, as many of each class as there are, evenly spaced within it."""
    kinds = sorted(set(labels))
    chosen: list[int] = []
    for at, kind in enumerate(kinds):
        own = [i for i, label in enumerate(labels) if label == kind]
        wanted = min(len(own), count * (at + 1) // len(kinds) - count * at // len(kinds))
        chosen += [own[i * len(own) // wanted] for i in range(wanted)]
    return sorted(chosen)


if __name__ == "__main__":
    main()
