"""Which connector lets a language model read small things: digits placed on photographs, questions of one word.

python benchmarks/glyphs.py --data PHOTOS --output runs/glyphs              # all, three seeds, 64 -> 16 tokens
python benchmarks/glyphs.py --data PHOTOS --output runs/glyphs --tokens 4   # 64 -> 4
python benchmarks/glyphs.py --data PHOTOS --output runs/glyphs --only sec random --seeds 0
python benchmarks/glyphs.py --data PHOTOS --output runs/glyphs --part 0/2   # every other job, for a second process
python benchmarks/glyphs.py --data NLVR --output runs/scenes --task scenes --tokens 36
python benchmarks/glyphs.py --data PHOTOS --output runs/large --large --device cuda

A vision tower is trained once, on what is in each patch, and frozen.  Then for every connector and seed a small
language model learns with it, from scratch, to answer: image tokens that see each other, then a question that sees
them.  The [cls] token is left out: alone it would answer "exist" and "count".  Steps, batches and learning rate are
the same for all; processor seconds are written down, so that equal time can be read off.  PHOTOS is a folder of
photos with train/ and val/ in it (no photo is in both), else a fifth of them are kept for the test.  Each job leaves
a JSON in the output folder and is not run again; a call ends by writing what there is to
results/connectors.<task>_<tokens>_<hardware>_<torch>_<date>.json.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from questions import TASKS, Recipe, Split, draw_task, majority
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from secvit import connectors
from secvit.files import write_atomically
from secvit.provenance import provenance, result_name
from secvit.weights import load_weights, weight_bytes

RESULTS = Path(__file__).parent / "results"
QUESTION_ONLY = "question only"
CONNECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "sec": ("sec", {"init": "random"}),
    "sec, sequential": ("sec", {"init": "random", "arrangement": "sequential"}),
    "random groups": ("random", {"init": "random"}),
    "random groups, redrawn": ("random", {"init": "random", "redraw": True}),
    "sec, coordinates": ("sec", {"init": "random", "positions": "coords"}),
    "mlp, all tokens": ("mlp", {}),
    "pool": ("pool", {}),
    "evit": ("evit", {}),
    "window": ("window", {"init": "random"}),
    "sec, spatial order": ("sec", {"init": "random", "order": "spatial"}),
    "sec, mean": ("sec", {"init": "random", "pooling": "mean"}),
    "resampler": ("resampler", {}),
    "pixel_shuffle": ("pixel_shuffle", {}),
    "tome": ("tome", {}),
    "c_abstractor": ("c_abstractor", {}),
    "tree": ("tree", {}),
    "tree, attentive": ("tree", {"init": "random", "pooling": "attentive"}),
    "tree, attentive, coordinates": ("tree", {"init": "random", "pooling": "attentive", "positions": "coords"}),
}
HOUR = Recipe()
SCENES = Recipe(train_images=5940, test_images=780, tower_steps=500, steps=1500, batch=32, lr=2e-3)
TINY = Recipe(
    image=32, font=(12, 14), glyphs=(1, 2), alphabet="012", train_images=24, test_images=8, tower_dim=16,
    tower_depth=1, tower_steps=2, dim=16, depth=1, steps=4, batch=8, evaluations=2,
)  # fmt: skip
LARGE = Recipe(
    image=96, glyphs=(4, 8), alphabet="ABCDEFGHJKLMNPRSTUVX", colours=8, train_images=60000, test_images=5000,
    tower_dim=192, tower_depth=6, tower_steps=8000, tower_lr=1e-3, dim=192, depth=4, steps=5000, batch=256, lr=1e-3,
)  # fmt: skip


# -- the vision tower --------------------------------------------------------------------------------


class Tower(nn.Module):
    """Strided convolutions to one token a patch, learned positions, [cls], transformer blocks.  Images (B, 3, H, W)."""

    def __init__(self, dim: int, depth: int, patch: int, length: int, symbols: int, colours: int):
        super().__init__()
        halvings = patch.bit_length() - 1
        widths = [3, *(max(16, dim >> (halvings - i)) for i in range(1, halvings)), dim]
        layers = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*layers[:-1])
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, length, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads=dim // 16, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.symbol, self.colour = nn.Linear(dim, symbols + 1), nn.Linear(dim, colours + 1)
        self.present = nn.Linear(dim, symbols)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patch tokens (B, L, C), [cls] (B, C), and the last layer's [cls] attention (B, L), mean over heads."""
        x = self.stem(images.float() / 255 - 0.5).flatten(2).mT + self.positions
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            before, x = x, block(x)
        attn, normed = block.attn, block.norm1(before)
        q, k, _ = attn.qkv(normed).unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        attention = (attn.scale * q[:, :, :1] @ k.mT).softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
        x = self.norm(x)
        return x[:, 1:], x[:, 0], attention

    def loss(self, images: Tensor, cells: Tensor, present: Tensor) -> Tensor:
        tokens, cls, _ = self(images)
        of_patches = [F.cross_entropy(head(tokens).mT, cells[..., i]) for i, head in enumerate(self._heads)]
        return sum(of_patches) + F.binary_cross_entropy_with_logits(self.present(cls), present)

    @property
    def _heads(self) -> tuple[nn.Linear, nn.Linear]:
        return self.symbol, self.colour

    @torch.no_grad()
    def accuracy(self, split: Split, device: str) -> list[float]:
        """Share of patches with something in them whose symbol, and whose colour, is named right."""
        right, total = [0, 0], 0
        for images, cells in zip(split.pixels.split(256), split.cells.split(256), strict=True):
            tokens = self(images.to(device))[0]
            filled = cells[..., 0] > 0
            total += int(filled.sum())
            for i, head in enumerate(self._heads):
                right[i] += int((head(tokens).argmax(-1).cpu() == cells[..., i])[filled].sum())
        return [count / total for count in right]


def tower_of(split: Split, test: Split, recipe: Recipe, output: Path, device: str) -> Tower:
    """The tower trained on a split, or the one that an earlier call left in the output folder."""
    symbols, colours, length = split.present.shape[1], split.colours, split.cells.shape[1]
    torch.manual_seed(0)
    tower = Tower(recipe.tower_dim, recipe.tower_depth, recipe.patch, length, symbols, colours).to(device)
    weights, about = output / "tower.safetensors", output / "tower.json"
    if about.is_file():
        load_weights(tower, weights)
        return tower.eval()
    clock, start = clock_of(device), clock_of(device)()
    fields = (split.pixels, split.cells, split.present)

    def loss(rows: Tensor) -> Tensor:
        return tower.loss(*(field[rows].to(device) for field in fields))

    for step in learn(tower, loss, len(split.pixels), recipe.tower_steps, recipe.batch, recipe.tower_lr, 0.5, 0):
        if step % 100 == 0:
            print(f"tower: step {step} of {recipe.tower_steps}, {clock() - start:.0f} s", flush=True)
    found = dict(zip(("symbol", "colour"), tower.eval().accuracy(test, device), strict=True))
    result = {"patch_accuracy": found, "steps": recipe.tower_steps, "seconds": clock() - start}
    write_atomically(weights, weight_bytes(tower.state_dict()))
    about.write_text(json.dumps(result))
    print("tower:", result, flush=True)
    return tower


@torch.no_grad()
def features_of(tower: Tower, split: Split, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, [cls] and its attention for all images: float32, on the device."""
    parts = [tower(images.to(device)) for images in split.pixels.split(256)]
    return tuple(torch.cat(found) for found in zip(*parts, strict=True))


def learn(
    model: nn.Module, loss: Callable[[Tensor], Tensor], count: int, steps: int, batch: int, lr: float, decay: float,
    seed: int,
) -> Iterator[int]:  # fmt: skip
    """AdamW over shuffled rows: 5 % warm-up, a plateau, a linear fall over the last part `decay`.  Yields each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(rows) < batch:
            rows = torch.randperm(count, generator=generator)
        share = min(1, step / (0.05 * steps), (steps - step + 1) / (decay * steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        optimizer.zero_grad()
        loss(rows[:batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rows = rows[batch:]
        yield step


def clock_of(device: str) -> Callable[[], float]:
    """Processor time of this process, which other load hardly moves; the wall clock of a GPU that has finished."""
    if torch.device(device).type != "cuda":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


# -- the language model ------------------------------------------------------------------------------


class Answerer(nn.Module):
    """A connector and a prefix language model: image tokens see each other, a question sees them and its own past."""

    def __init__(self, connector: nn.Module | None, recipe: Recipe, words: int, length: int, tokens: int):
        super().__init__()
        dim = recipe.dim
        self.connector, self.tokens = connector, tokens
        self.words = nn.Embedding(words, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens + length, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads=dim // 16, qkv_bias=True) for _ in range(recipe.depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, words)

    def forward(self, seen: Sequence[Tensor], words: Tensor, grid: tuple[int, int]) -> Tensor:
        """Logits (B, Q, vocabulary) at the last word of each of Q questions (B, Q, W); they do not see each other."""
        count, length = words.shape[1:]
        x = (self.words(words) + self.positions[self.tokens :]).flatten(1, 2)
        if self.connector is not None:
            tokens, cls, attention = seen
            image = self.connector(tokens, cls=cls, cls_attention=attention, grid=grid)
            x = torch.cat([image + self.positions[: self.tokens], x], dim=1)
        mask = prefix_mask(self.tokens, count, length, x.device)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        asked = x[:, self.tokens :].unflatten(1, (count, length))
        last = (words > 0).sum(dim=-1).sub(1)[..., None, None].expand(-1, -1, 1, x.shape[-1])
        return self.head(self.norm(asked.gather(2, last).squeeze(2)))


def prefix_mask(tokens: int, questions: int, length: int, device: torch.device) -> Tensor:
    """True where a row may look at a column: all at the image, a word also at its question up to itself."""
    word = torch.arange(questions * length, device=device)
    own = (word[:, None] // length == word // length) & (word[:, None] >= word)
    mask = torch.zeros(tokens + len(word), tokens + len(word), dtype=torch.bool, device=device)
    mask[:, :tokens] = True
    mask[tokens:, tokens:] = own
    return mask


def run_job(
    name: str, num_tokens: int, seed: int, splits: Sequence[Split], features: Sequence[Sequence[Tensor]],
    grid: tuple[int, int], recipe: Recipe, device: str,
) -> dict[str, Any]:  # fmt: skip
    """Train one connector with one seed; the test accuracy of each kind of question over steps and seconds."""
    train, test = splits
    torch.manual_seed(seed)
    connector, tokens = None, 0
    if name != QUESTION_ONLY:
        kind, options = CONNECTORS[name]
        if kind == "random":
            options = {**options, "seed": seed}
        length = features[0][0].shape[1]
        tokens = length if kind == "mlp" else num_tokens
        size = {"in_dim": features[0][0].shape[-1], "out_dim": recipe.dim, "num_tokens": tokens}
        connector = connectors.create(kind, **size, num_patches=length, extra_token=None, **options)
    model = Answerer(connector, recipe, len(train.vocabulary), train.words.shape[-1], tokens).to(device)
    words, answers = train.words.to(device), train.answers.to(device)

    def loss(rows: Tensor) -> Tensor:
        rows = rows.to(device)
        logits = model([feature[rows] for feature in features[0]], words[rows], grid)
        return F.cross_entropy(logits.flatten(0, 1), answers[rows].flatten())

    clock, spent, curve = clock_of(device), 0.0, []
    every = max(1, recipe.steps // recipe.evaluations)
    start = clock()
    for step in learn(model, loss, len(words), recipe.steps, recipe.batch, recipe.lr, recipe.decay, seed):
        if step % every == 0 or step == recipe.steps:
            spent += clock() - start
            curve.append({"step": step, "seconds": spent, **accuracy(model, test, features[1], grid, device)})
            start = clock()
    return {
        "connector": name, "tokens": tokens, "seed": seed, "steps": recipe.steps, "seconds": spent,
        "parameters": sum(p.numel() for p in connector.parameters()) if connector is not None else 0,
        "test": {kind: curve[-1][kind] for kind in test.names}, "curve": curve,
    }  # fmt: skip


@torch.no_grad()
def accuracy(
    model: Answerer, test: Split, features: Sequence[Tensor], grid: tuple[int, int], device: str
) -> dict[str, float]:
    """Share of right answers among each kind of question."""
    model.eval()
    parts = zip(*(feature.split(250) for feature in features), test.words.to(device).split(250), strict=True)
    said = torch.cat([model(seen, words, grid).argmax(-1) for *seen, words in parts]).cpu()
    model.train()
    right = (said == test.answers).float()
    return {name: float(right[test.kinds == i].mean()) for i, name in enumerate(test.names)}


# -- jobs ----------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photos, or the folder of the scenes")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tower and a JSON a job")
    parser.add_argument("--task", choices=TASKS, default="glyphs")
    parser.add_argument("--tokens", type=int, default=16, help="what the connectors give")
    parser.add_argument("--only", nargs="+", choices=[*CONNECTORS, QUESTION_ONLY], help="these connectors")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: write what there is, run nothing"
    )
    parser.add_argument("--steps", type=int, help="of the language model, if not the recipe's")
    parser.add_argument("--part", default="0/1", help="I/N: of N processes that share the jobs, this is number I")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result goes")
    parser.add_argument("--picture", type=Path, help="only draw test images with their questions, to this file")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="seconds, to see that it runs")
    size.add_argument("--large", action="store_true", help="for an accelerator")
    found = parser.parse_args(argv)
    recipe = TINY if found.tiny else LARGE if found.large else SCENES if found.task == "scenes" else HOUR
    if found.steps:
        recipe = replace(recipe, steps=found.steps)
    if found.picture:
        print(draw_task(found.data, recipe, found.picture))
        return
    found.output.mkdir(parents=True, exist_ok=True)
    names = found.only or [QUESTION_ONLY, *CONNECTORS]
    part, parts = (int(number) for number in found.part.split("/"))
    jobs = [(name, seed, kept_at(found, name, seed)) for seed in found.seeds for name in names][part::parts]
    missing = [job for job in jobs if not job[-1].is_file()]
    if missing:
        run_jobs(missing, found, recipe)
    print(write_result(found, recipe))


def kept_at(found: argparse.Namespace, name: str, seed: int) -> Path:
    return found.output / f"{found.tokens}_{re.sub(r'[, ]+', '-', name)}_{seed}.json"


def run_jobs(jobs: Sequence[tuple[str, int, Path]], found: argparse.Namespace, recipe: Recipe) -> None:
    """Make the images, train the tower or take it from the output folder, then run each job."""
    splits = [TASKS[found.task](found.data, split, recipe, seed) for seed, split in enumerate(("train", "val"))]
    test, device = splits[1], found.device
    grid = tuple(edge // recipe.patch for edge in test.pixels.shape[2:])
    about = {
        "task": found.task, "data": found.data.name, "images": [len(split.pixels) for split in splits],
        "length": grid[0] * grid[1], "kinds": test.names, "majority": majority(test),
    }  # fmt: skip
    (found.output / "task.json").write_text(json.dumps(about))
    tower = tower_of(splits[0], test, recipe, found.output, device)
    features = [features_of(tower, split, device) for split in splits]
    for name, seed, path in jobs:
        result = run_job(name, found.tokens, seed, splits, features, grid, recipe, device)
        path.write_text(json.dumps(result))
        shares = {kind: round(share, 3) for kind, share in result["test"].items()}
        print(name, seed, shares, f"{result['seconds']:.0f} s", flush=True)


def write_result(found: argparse.Namespace, recipe: Recipe) -> Path:
    """All jobs in the output folder, as one file among the results."""
    order = [QUESTION_ONLY, *CONNECTORS]
    jobs = [json.loads(path.read_text()) for path in found.output.glob(f"{found.tokens}_*.json")]
    jobs.sort(key=lambda job: (order.index(job["connector"]), job["seed"]))
    task, tower = (json.loads((found.output / f"{name}.json").read_text()) for name in ("task", "tower"))
    seconds = at_equal_time(jobs, task["kinds"], recipe.decay)
    about = provenance()
    result = {
        "kind": "connectors by task", **task, "num_tokens": found.tokens, "recipe": asdict(recipe), "tower": tower,
        "equal_seconds": seconds, "runs": jobs, **about,
    }  # fmt: skip
    name = result_name(f"connectors.{task['task']}_{found.tokens}", about)
    path = found.results / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def at_equal_time(jobs: Sequence[dict[str, Any]], kinds: Sequence[str], decay: float) -> float:
    """Add to each job its accuracy after the same processor seconds, which are returned.

    They end when the fastest connector's learning rate begins to fall.  A connector's seconds a step are the least of
    its seeds': other load on the machine slows a processor down.
    """
    pace: dict[str, float] = {}
    for job in jobs:
        pace[job["connector"]] = min(pace.get(job["connector"], np.inf), job["seconds"] / job["steps"])
    plateaus = [(1 - decay) * job["steps"] * pace[job["connector"]] for job in jobs if job["tokens"]]
    seconds = min(plateaus, default=0.0)
    for job in jobs:
        step = seconds / pace[job["connector"]]
        steps = [0, *(point["step"] for point in job["curve"])]
        curves = {kind: [0.0, *(point[kind] for point in job["curve"])] for kind in kinds}
        job["equal_time"] = {kind: float(np.interp(step, steps, curve)) for kind, curve in curves.items()}
    return seconds


if __name__ == "__main__":
    main()
