"""The operation and attention alone, over the number of tokens: SEC beside its rivals, and how each grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from secvit.connectors.tome import merge_groups
from secvit.measure.bench_results import LengthTimes
from secvit.measure.peak import peak_bytes
from secvit.measure.rounds import NULL, clock_for, interleave, is_quiet, speed_ratio
from secvit.measure.speed import made_up_images
from secvit.ops import cluster, sec_attention

CLUSTER_SIZE, HEADS, DIM = 98, 8, 32
# tokens beyond which a rival takes minutes, or gigabytes
LONGEST = {
    "Lloyd, 10 iterations": 12544,
    "balanced k-means": 3136,
    "scikit-learn's KMeans": 3136,
    "ToMe matching": 12544,
    "ToMe matching, each head": 3136,
    "global": 65536,
}
SLOW, FEW = 20000, 2  # tokens from which on global attention makes rounds last minutes, and the rounds then


def bench_operation(length: int, rounds: int = 7, threads: int = 1, progress: bool = False) -> LengthTimes:
    """Time of each way to group L tokens, 8 heads of 32 channels, as a multiple of SEC's scores and order.

    SEC, k-means and balanced k-means go from keys to clusters of 98 for each head.  ToMe's matching (Bolya et al.,
    ICLR 2023) is one round that halves the tokens, on the mean of the heads, as in its paper, an eighth of the numbers;
    and, to be compared at equal numbers, on each head.  scikit-learn's KMeans runs to convergence from one start.
    The copy of windows moves the keys once, and is the floor of any rearrangement.
    """
    num_clusters = max(1, length // CLUSTER_SIZE)
    side = _side(length)
    k = tokens(length, 1)[0][0]
    window = next(n for n in (7, 4, 2, 1) if side % n == 0)
    grid = k.view(HEADS, side // window, window, side // window, window, DIM)
    candidates: dict[str, Callable[[], object]] = {
        "sec": lambda: cluster(k, num_clusters),
        "window copy": lambda: grid.transpose(2, 3).contiguous(),
        "Lloyd, 10 iterations": lambda: cluster(k, num_clusters, partition="kmeans"),
        "balanced k-means": lambda: cluster(k, num_clusters, partition="balanced_kmeans"),
        "ToMe matching": lambda: merge_groups(k.mean(dim=0, keepdim=True), length - length // 2),
        "ToMe matching, each head": lambda: merge_groups(k, length - length // 2),
        "scikit-learn's KMeans": lambda: _scikit_kmeans(k.numpy(), num_clusters),
    }
    times = _compare("clustering", length, candidates, rounds, threads, progress)
    times.num_clusters = num_clusters
    return times


def bench_attention(
    length: int, heads: int = 2, rounds: int = 7, threads: int = 1, memory: bool = True, progress: bool = False
) -> LengthTimes:
    """Time of attention over L tokens of an image, float32, as a multiple of SEC's with clusters of 98.

    SEC's time holds all of it: scores, order, gathers, attention, the way back.  "windows" is Swin's, of 7x7 or 8x8
    tokens, with the cutting up and putting together.  "global" is torch's fused attention over all tokens.
    `peak_bytes` are those that a call needs over its inputs, in a process of its own.
    """
    calls = {name: attention_call(name, length, heads) for name in ("sec", "windows", "global")}
    rounds = rounds if length < SLOW else min(rounds, FEW)
    times = _compare("attention", length, calls, rounds, threads, progress)
    if memory:
        make, warm = "secvit.measure.scaling:attention_call", {"length": 196, "heads": heads}
        times.peak_bytes = {
            name: peak_bytes(make, {"name": name, "length": length, "heads": heads}, {"name": name, **warm}, threads)
            for name in ("sec", "windows", *(["global"] if length < SLOW else []))
        }
    return times


def attention_call(name: str, length: int, heads: int = 2) -> Callable[[], Tensor]:
    """One of the attentions of `bench_attention`, ready to be called.  -> (1, h, L, D)"""
    q, k, v = (x[:, :heads] for x in tokens(length, 3))
    if name == "sec":
        call = lambda: sec_attention(q, k, v, cluster_size=CLUSTER_SIZE)  # noqa: E731
    elif name == "windows":
        call = lambda: windows(q, k, v)  # noqa: E731
    else:
        call = lambda: F.scaled_dot_product_attention(q, k, v)  # noqa: E731

    def run() -> Tensor:
        with torch.inference_mode():
            return call()

    return run


def windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in square windows of 8x8 or 7x7 tokens of a square image.  (B, h, L, D) -> (B, h, L, D)"""
    batch, heads, length, dim = q.shape
    side = _side(length)
    size = next(n for n in (8, 7, 4, 2, 1) if side % n == 0)
    cut = (batch * heads, side // size, size, side // size, size, dim)
    q, k, v = (x.reshape(cut).transpose(2, 3).reshape(batch * heads, -1, size * size, dim) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    out = out.view(batch * heads, side // size, side // size, size, size, dim).transpose(2, 3)
    return out.reshape(batch, heads, length, dim)


def growth(measured: Sequence[LengthTimes], last: int = 3) -> dict[str, float]:
    """Exponent e of time ~ L^e for each candidate: the slope of log time over its `last` largest numbers of tokens."""
    exponents = {}
    for name in dict.fromkeys(name for one in measured for name in one.seconds if not name.endswith(NULL)):
        points = [(one.length, median(one.seconds[name])) for one in measured if name in one.seconds]
        if len(points) >= 3:
            lengths, times = np.log(np.array(sorted(points)[-last:])).T
            exponents[name] = float(np.polyfit(lengths, times, 1)[0])
    return exponents


def tokens(length: int, count: int) -> list[Tensor]:
    """Random projections of an image's patches: `count` times (1, 8, L, 32)."""
    patches = torch.nn.functional.pixel_unshuffle(made_up_images(1, 4 * _side(length)), 4).flatten(2).mT
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(patches.shape[-1], HEADS * DIM, generator=random) for _ in range(count)]
    return [(patches @ weight).unflatten(-1, (HEADS, DIM)).transpose(1, 2).contiguous() for weight in weights]


def _compare(
    what: str, length: int, candidates: Mapping[str, Callable[[], object]], rounds: int, threads: int, progress: bool
) -> LengthTimes:
    """Times of the candidates that so many tokens allow, and what they are in SEC's."""
    possible = {name: call for name, call in candidates.items() if length <= LONGEST.get(name, length)}
    if "scikit-learn's KMeans" in possible and not _has_scikit():
        del possible["scikit-learn's KMeans"]
    title = f"{what} of {length} tokens" if progress else None
    seconds = interleave(possible, "sec", rounds, clock_for(threads), title=title)
    times = {name: speed_ratio(seconds, "sec", name) for name in seconds}
    return LengthTimes(length, is_quiet(seconds, "sec"), times, seconds)


def _side(length: int) -> int:
    side = math.isqrt(length)
    if side * side != length:
        raise ValueError(f"lengths={length}; give square numbers of tokens")
    return side


def _has_scikit() -> bool:
    try:
        import sklearn.cluster  # noqa: F401
    except ImportError:
        return False
    return True


def _scikit_kmeans(keys: np.ndarray, num_clusters: int) -> None:
    from sklearn.cluster import KMeans

    for head in keys:
        KMeans(num_clusters, n_init=1, random_state=0).fit(head)
