"""How many clusters, and how many near ones, where nobody gives a number: a rule on the tokens of each call.

A model may see images of several sizes, so M is found at each call.  Cost and error of a cluster's near and far parts
balance where a cluster has a few times sqrt(L) tokens; M is a power of two, so that sizes close by go by the same tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secvit.ops.order import exporting


@dataclass(frozen=True)
class Quality:
    """What a word stands for.

    break_even: tokens below which clusters save no time, as tree and summaries then cost what attention to all
        does.  Fewer tokens attend to all.  Measured for 6 heads of 64 channels on one thread of a Cascade Lake CPU,
        lengths that do not fill clusters evenly among them, which are slower.
    finer: clusters, as a multiple of 2^round(log2(sqrt(L) / 2)).
    near: r, the clusters that each attends to exactly, itself among them.
    """

    break_even: int
    finer: int
    near: int


QUALITIES = {
    "fast": Quality(break_even=1536, finer=1, near=1),
    "balanced": Quality(break_even=2048, finer=1, near=2),
    "faithful": Quality(break_even=4096, finer=2, near=4),
}
DEFAULT_QUALITY = "balanced"


def chosen_quality(
    quality: str | None, num_clusters: int | None, cluster_size: int | None, near: int | None, far: bool | None
) -> str | None:
    """The name of the quality that decides, the default where nothing is given; None where numbers decide.

    Raises ValueError for an unknown name, and for a number beside a name; a None is not given.
    """
    if quality is not None and quality not in QUALITIES:
        raise ValueError(f"quality={quality!r}; choose one of {', '.join(QUALITIES)}")
    numbers = {"num_clusters": num_clusters, "cluster_size": cluster_size}
    counts = [f"{name}={value}" for name, value in numbers.items() if value is not None]
    if quality is None and counts:
        return None
    sight = [f"{name}={value}" for name, value in {"near": near, "far": far}.items() if value is not None]
    if quality is not None and counts:
        raise ValueError(f"quality={quality!r} chooses the number of clusters; drop {' and '.join(counts)}, or quality")
    quality = quality or DEFAULT_QUALITY
    if sight:
        raise ValueError(
            f"quality={quality!r} chooses near and far; drop {' and '.join(sight)}, or give num_clusters or "
            "cluster_size instead of a quality"
        )
    return quality


def clusters_of(quality: str, num_tokens: int) -> int:
    """M for L tokens: 1, which is attention to all, below the break-even; else 2^round(log2(sqrt(L) / 2)), or finer.

    Raises ValueError in an exported program that leaves L open: the depth of its tree is fixed.
    """
    if exporting() and isinstance(num_tokens, torch.SymInt):
        raise ValueError(
            f"quality={quality!r} finds the number of clusters from the number of tokens, which an export for any "
            'size leaves open; export one size, or patch with numbers: num_clusters=16, partition="tree", near=2, '
            "far=True"
        )
    chosen = QUALITIES[quality]
    if num_tokens < chosen.break_even:
        return 1
    clusters = 1
    while num_tokens >= 8 * clusters**2:  # comparisons alone: they compile for a range of lengths
        clusters *= 2
    return clusters * chosen.finer
