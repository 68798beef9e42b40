"""The partitions that SEC is compared with, at the same cluster sizes (Figure 1): a score or label for each token.

Window and raster know only places, random knows nothing, a random projection and the first principal component sort
by another axis.  k-means is the one whose clusters are not equal; balanced k-means pays for making them so.  Each is
called with the five values of `Score`, and names those that it uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from secvit.ops.order import (
    Plan,
    full_precision,
    largest_size,
    mean_key,
    order_by,
    partition_sizes,
    sec_scores,
)

KMEANS_ITERATIONS = 10
Grid = tuple[int, int]
Score = Callable[[Tensor, int, "Tensor | None", "Grid | None", "torch.Generator | None"], Tensor]


def first_component(k: Tensor, num_clusters: int, mask: Tensor | None = None, *_: Any) -> Tensor:
    """Coordinate of each token on the first principal component; its sign makes the largest entry positive."""
    k = torch.nan_to_num(k, posinf=0.0, neginf=0.0)
    centred = k - mean_key(k, mask).unsqueeze(-2)
    if mask is not None:
        centred = centred.masked_fill(~mask.unsqueeze(-1), 0)
    axis = torch.linalg.eigh(_product(centred.mT, centred)).eigenvectors[..., -1]
    largest = axis.gather(-1, axis.abs().argmax(dim=-1, keepdim=True))
    return (centred * (axis * largest.sign()).unsqueeze(-2)).sum(dim=-1)


def random_projection(
    k: Tensor, num_clusters: int, mask: Tensor | None, grid: Grid | None, generator: Generator | None
) -> Tensor:
    """Coordinate of each token on a random axis; the same axis every time unless a generator is given."""
    generator = generator or torch.Generator().manual_seed(0)
    axis = torch.randn(k.shape[-1], generator=generator, device=generator.device).to(k)
    return (k * axis).sum(dim=-1)


def random_score(
    k: Tensor, num_clusters: int, mask: Tensor | None, grid: Grid | None, generator: Generator | None
) -> Tensor:
    """A random number per token: a new partition at every call, from torch's generator unless one is given."""
    device = k.device if generator is None else generator.device
    return torch.rand(k.shape[:-1], generator=generator, device=device).to(k.device)


def raster(k: Tensor, *_: Any) -> Tensor:
    """Place in the sequence: clusters are runs of neighbouring tokens, row by row."""
    return torch.arange(k.shape[-2], device=k.device, dtype=k.dtype).expand(k.shape[:-1])


def window(k: Tensor, num_clusters: int, mask: Tensor | None, grid: Grid | None, *_: Any) -> Tensor:
    """Windows of the grid: bands of rows, cut along columns.  Exact windows where the grid divides,
    and equal sizes with ragged edges where it does not."""
    length = k.shape[-2]
    height, width = grid or (int(length**0.5), int(length**0.5))
    if height * width != length:
        raise ValueError(f"{length} tokens are no {height} x {width} grid; give grid=(H, W) of the tokens")
    bands = _window_rows(height, width, num_clusters)
    token = torch.arange(length, device=k.device)
    row, column = token // width, token % width
    score = (row * bands // height * width + column) * height + row
    return score.to(k.dtype).expand(k.shape[:-1])


def _window_rows(height: int, width: int, num_clusters: int) -> int:
    """Number of window rows: the divisor of M that makes windows most nearly square."""
    best, least = 1, float("inf")  # a loop: torch 2.7 cannot compile min(..., key=)
    for n in range(1, min(num_clusters, height) + 1):
        off = abs(height / n - width * n / num_clusters)
        if num_clusters % n == 0 and off < least:
            best, least = n, off
    return best


def kmeans_labels(k: Tensor, num_clusters: int, mask: Tensor | None, iterations: int = KMEANS_ITERATIONS) -> Tensor:
    """Lloyd's algorithm on unit keys, started at evenly spaced tokens of SEC's order.  -> labels (..., L)."""
    points, centres = _start(k, num_clusters, mask)
    for _ in range(iterations):
        labels = _product(points, centres.mT).argmax(dim=-1)
        centres = _means(points, labels, centres, mask)
    return _product(points, centres.mT).argmax(dim=-1)


def balanced_kmeans(k: Tensor, num_clusters: int, mask: Tensor | None, *others: Any) -> Tensor:
    """Lloyd's algorithm with room for L / M tokens in each cluster.  k (..., L, D) -> labels (..., L) as a score.

    Each round every token without a cluster asks for the nearest that has room; a cluster takes
    those nearest to it.  Needs equal counts in all samples: a mask is refused.
    """
    if mask is not None:
        raise ValueError("balanced k-means takes no mask; choose another partition for padded tokens")
    points, centres = _start(k, num_clusters, mask)
    room = torch.tensor(partition_sizes(k.shape[-2], num_clusters), device=k.device)
    for _ in range(KMEANS_ITERATIONS):
        labels = _fill_clusters(_product(points, centres.mT), room)
        centres = _means(points, labels, centres, mask)
    return _fill_clusters(_product(points, centres.mT), room).to(k.dtype)


def _fill_clusters(affinity: Tensor, room: Tensor) -> Tensor:
    """Assign tokens to clusters within their room, best offers first.  affinity (..., L, M) -> labels (..., L)."""
    lead = affinity.shape[:-2]
    labels = torch.full(affinity.shape[:-1], -1, dtype=torch.long, device=affinity.device)
    room = room.expand(*lead, -1).clone()
    while bool((labels < 0).any()):
        waiting = labels < 0
        offer = affinity.masked_fill((room == 0).unsqueeze(-2), float("-inf"))
        value, wish = offer.max(dim=-1)
        wish = torch.where(waiting, wish, affinity.shape[-1])
        # tokens by wish, then by affinity: two stable sorts
        first = torch.sort(value, dim=-1, descending=True, stable=True).indices
        ranked = first.gather(-1, torch.sort(wish.gather(-1, first), dim=-1, stable=True).indices)
        wished = wish.gather(-1, ranked)
        requests = torch.zeros(*lead, affinity.shape[-1] + 1, dtype=torch.long, device=affinity.device)
        requests.scatter_add_(-1, wish, torch.ones_like(wish))
        place = torch.arange(wish.shape[-1], device=wish.device) - (requests.cumsum(-1) - requests).gather(-1, wished)
        limit = torch.cat([room, room.new_zeros(*lead, 1)], dim=-1)
        accepted = place < limit.gather(-1, wished)
        labels.scatter_(-1, ranked, torch.where(accepted, wished, labels.gather(-1, ranked)))
        room = (room - requests[..., :-1]).clamp_min(0)
    return labels


def _start(k: Tensor, num_clusters: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    points = torch.nn.functional.normalize(torch.nan_to_num(k, posinf=0.0, neginf=0.0), dim=-1)
    order = order_by(sec_scores(k, mask), None if mask is None else mask.expand(k.shape[:-1]))
    count = k.shape[-2] if mask is None else mask.sum(dim=-1, keepdim=True)
    middle = (torch.arange(num_clusters, device=k.device) * 2 + 1) * count // (2 * num_clusters)
    seeds = order.gather(-1, middle.expand(*order.shape[:-1], num_clusters))
    return points, points.gather(-2, seeds.unsqueeze(-1).expand(*seeds.shape, k.shape[-1]))


def _means(points: Tensor, labels: Tensor, centres: Tensor, mask: Tensor | None) -> Tensor:
    """Unit mean of each cluster; an empty one keeps its centre."""
    member = torch.nn.functional.one_hot(labels, centres.shape[-2]).to(points)
    if mask is not None:
        member = member * mask.unsqueeze(-1)
    total = _product(member.mT, points)
    filled = (member.sum(dim=-2) > 0).unsqueeze(-1)
    return torch.where(filled, torch.nn.functional.normalize(total, dim=-1), centres)


def plan_of_labels(labels: Tensor, num_clusters: int, mask: Tensor | None) -> Plan:
    """A plan whose sizes are what the labels say.  labels (..., L)"""
    if mask is not None:
        labels = labels.masked_fill(~mask, num_clusters)
    sizes = torch.nn.functional.one_hot(labels, num_clusters + 1).sum(dim=-2)[..., :num_clusters]
    order = torch.sort(labels, dim=-1, stable=True).indices
    largest = int(sizes.max()) if sizes.numel() else largest_size(labels.shape[-1], num_clusters)
    return Plan(order, num_clusters, largest, sizes)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their own dtype, under autocast too."""
    with full_precision(a.device):
        return a @ b
