"""Figure 1: SEC and its rivals behind one signature, tokens in, `Plan` out.

A rival is here to be compared with, at the same cluster sizes: window and raster know only places,
random knows nothing, a random projection and the first principal component sort by another axis.
k-means is the one whose clusters are not equal; balanced k-means pays for making them so.
A partition of one's own is a function too (`register_partition`).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secvit.ops.order import (
    Plan,
    check_mask,
    equal_sizes,
    full_precision,
    inverse_order,
    largest_size,
    mean_key,
    order_by,
    partition_sizes,
    resolve_num_clusters,
    scoring_dtype,
    sec_scores,
    similarity,
)
from secvit.ops.tree import tree_plan

KMEANS_ITERATIONS = 10
Grid = tuple[int, int]
Score = Callable[[Tensor, int, "Tensor | None", "Grid | None", "torch.Generator | None"], Tensor]
Partition = str | Score


def cluster(
    tokens: Tensor,
    num_clusters: int | None = None,
    cluster_size: int | None = None,
    mask: Tensor | None = None,
    *,
    partition: Partition = "sec",
    centre: str | Tensor = "mean",
    descending: bool = False,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
) -> Plan:
    """Eqs. 1 to 3: a partition of tokens (B, L, C), or per head (B, h, L, D), into clusters.

    num_clusters | cluster_size: M clusters, or as many as keep each at `cluster_size` tokens or fewer.
    mask (B, L): True for real tokens; padded ones are in no cluster (label -1).
    partition: "sec"; "tree", a balanced tree of principal components (`secvit.ops.tree`); or a rival: "window",
        "raster", "random", "random_projection", "pc1", "kmeans", "balanced_kmeans".  Window needs `grid` = (H, W)
        unless the grid is square.  Or a function of your own, or the name it is registered by
        (`secvit.register_partition`).
    centre: what SEC, and no rival, compares with: "mean" (Eq. 1), "cls" (the first token), "pc1" (first
        principal component instead of a cosine), or a tensor (..., D).
    descending: Eq. 2 as printed; the authors' code sorts ascending, which is the default here.
    Tokens with NaN or inf sort last in SEC, and crash no rival.  Raises ValueError for counts, sizes
    or masks that cannot be.
    """
    if tokens.dim() < 2:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}; give (B, L, C) or (B, h, L, D)")
    check_partition(partition)
    if partition != "sec" and (isinstance(centre, Tensor) or centre != "mean"):
        raise ValueError(f"partition={shown_name(partition)!r} has no centre; drop centre=")
    num_clusters = resolve_num_clusters(tokens.shape[-2], num_clusters, cluster_size)
    mask = check_mask(mask, tokens)
    k = scoring_dtype(tokens)
    if mask is not None:
        k = k.masked_fill(~mask.unsqueeze(-1), 0)
    if partition == "kmeans":
        return _plan_of_labels(_kmeans(k, num_clusters, mask), num_clusters, mask)
    if partition == "tree":
        return tree_plan([k], num_clusters, mask)
    if partition == "sec":
        score = _score_to_centre(k, centre, mask)
    elif isinstance(partition, str) and partition in PARTITIONS:
        score = SCORES[partition](k, num_clusters, mask, grid, generator)
    else:
        score = _own_score(partition, k, num_clusters, mask, grid, generator)
    order = order_by(score, None if mask is None else mask.expand(score.shape), descending)
    return Plan.equal(order, num_clusters, mask)


def _score_to_centre(k: Tensor, centre: str | Tensor, mask: Tensor | None) -> Tensor:
    if isinstance(centre, Tensor):
        return similarity(k, scoring_dtype(centre))
    if centre == "mean":
        return sec_scores(k, mask)
    if centre == "cls":
        return similarity(k, torch.nan_to_num(k[..., 0, :]))
    if centre == "pc1":
        return first_component(k, 1, mask)
    raise ValueError(f"centre={centre!r}; choose 'mean', 'cls', 'pc1' or give a tensor (..., D)")


def first_component(
    k: Tensor,
    num_clusters: int,
    mask: Tensor | None = None,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Coordinate of each token on the first principal component; its sign makes the largest entry positive."""
    k = torch.nan_to_num(k, posinf=0.0, neginf=0.0)
    centred = k - mean_key(k, mask).unsqueeze(-2)
    if mask is not None:
        centred = centred.masked_fill(~mask.unsqueeze(-1), 0)
    axis = torch.linalg.eigh(_product(centred.mT, centred)).eigenvectors[..., -1]
    largest = axis.gather(-1, axis.abs().argmax(dim=-1, keepdim=True))
    return (centred * (axis * largest.sign()).unsqueeze(-2)).sum(dim=-1)


def random_projection(
    k: Tensor,
    num_clusters: int,
    mask: Tensor | None = None,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Coordinate of each token on a random axis; the same axis every time unless a generator is given."""
    generator = generator or torch.Generator().manual_seed(0)
    axis = torch.randn(k.shape[-1], generator=generator, device=generator.device).to(k)
    return (k * axis).sum(dim=-1)


def random_score(
    k: Tensor,
    num_clusters: int,
    mask: Tensor | None = None,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random number per token: a new partition at every call, from torch's generator unless one is given."""
    device = k.device if generator is None else generator.device
    return torch.rand(k.shape[:-1], generator=generator, device=device).to(k.device)


def raster(
    k: Tensor,
    num_clusters: int,
    mask: Tensor | None = None,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Place in the sequence: clusters are runs of neighbouring tokens, row by row."""
    return torch.arange(k.shape[-2], device=k.device, dtype=k.dtype).expand(k.shape[:-1])


def window(
    k: Tensor,
    num_clusters: int,
    mask: Tensor | None = None,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
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


def _kmeans(k: Tensor, num_clusters: int, mask: Tensor | None, iterations: int = KMEANS_ITERATIONS) -> Tensor:
    """Lloyd's algorithm on unit keys, started at evenly spaced tokens of SEC's order.  -> labels (..., L)."""
    points, centres = _start(k, num_clusters, mask)
    for _ in range(iterations):
        labels = _product(points, centres.mT).argmax(dim=-1)
        centres = _means(points, labels, centres, mask)
    return _product(points, centres.mT).argmax(dim=-1)


def balanced_kmeans(
    k: Tensor,
    num_clusters: int,
    mask: Tensor | None = None,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
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
        asked = torch.zeros(*lead, affinity.shape[-1] + 1, dtype=torch.long, device=affinity.device)
        asked.scatter_add_(-1, wish, torch.ones_like(wish))
        place = torch.arange(wish.shape[-1], device=wish.device) - (asked.cumsum(-1) - asked).gather(-1, wished)
        limit = torch.cat([room, room.new_zeros(*lead, 1)], dim=-1)
        accepted = place < limit.gather(-1, wished)
        labels.scatter_(-1, ranked, torch.where(accepted, wished, labels.gather(-1, ranked)))
        room = (room - asked[..., :-1]).clamp_min(0)
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


def _plan_of_labels(labels: Tensor, num_clusters: int, mask: Tensor | None) -> Plan:
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


SCORES: dict[str, Score] = {
    "window": window,
    "raster": raster,
    "random": random_score,
    "random_projection": random_projection,
    "pc1": first_component,
    "balanced_kmeans": balanced_kmeans,
}
PARTITIONS = ("sec", *SCORES, "kmeans", "tree")


# -- a partition of one's own --------------------------------------------------------------------


def register_partition(name: str, function: Score) -> Score:
    """Let `partition=name` stand for a function of your own, in this process; returns the function.

    name: a word of letters, digits and underscores; no built-in name, and no other function's.
    function: of (tokens, num_clusters, mask, grid, generator), all by position; a score or a label for each token
        (docs/extending.md).
    Registering a function again replaces its earlier version, as in a notebook.  Raises ValueError otherwise.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"register_partition({name!r}, ...): give a name of letters, digits and underscores")
    if name in PARTITIONS:
        raise ValueError(f"register_partition({name!r}, ...): a built-in partition has this name; choose another one")
    if not callable(function):
        raise ValueError(f"register_partition({name!r}, {function!r}): give a function")
    check_partition(function)
    if name in SCORES and _place(SCORES[name]) != _place(function):
        other = ".".join(_place(SCORES[name]))
        raise ValueError(f"register_partition({name!r}, ...): {other} is registered by this name; choose another one")
    SCORES[name] = function
    return function


def _place(function: Score) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function))


def check_partition(partition: Any) -> None:
    """A ValueError for a name that nobody registered, with the nearest ones, or a function of other arguments."""
    if isinstance(partition, str):
        names = [*PARTITIONS, *(name for name in SCORES if name not in PARTITIONS)]
        if partition not in names:
            near = difflib.get_close_matches(partition, names, 1)
            raise ValueError(
                f"partition={partition!r}; choose one of {', '.join(names)}"
                + (f" (near it: {near[0]})" if near else "")
                + "; for one of your own first call secvit.register_partition(name, function)"
            )
    elif not callable(partition):
        raise ValueError(f"partition={partition!r}; choose one of {', '.join(PARTITIONS)}, or give a function")
    elif not torch.compiler.is_compiling():
        try:
            inspect.signature(partition).bind(None, 1, None, None, None)
        except TypeError:
            raise ValueError(
                f"partition={shown_name(partition)} cannot be called as function(tokens, num_clusters, mask, grid, "
                "generator); give it these five parameters, or *args for those that it does not use"
            ) from None
        except ValueError:  # built in C: no signature to look at
            pass


def shown_name(partition: Partition) -> str:
    """What a picture or a table calls a partition."""
    if isinstance(partition, str):
        return partition
    for name, function in SCORES.items():
        if function is partition:
            return name
    return getattr(partition, "__name__", type(partition).__name__)


def written(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model or of `secvit.patch` for a file: a registered function becomes its name.

    Raises ValueError for a function that is not registered.
    """
    partition = arguments.get("partition")
    if not callable(partition):
        return dict(arguments)
    name = shown_name(partition)
    if SCORES.get(name) is not partition:
        raise ValueError(
            f"partition={name} is a function, which cannot be written to a file; first call "
            'secvit.register_partition("my_name", function), and give partition="my_name"'
        )
    return {**arguments, "partition": name}


def _own_score(
    partition: Partition,
    k: Tensor,
    num_clusters: int,
    mask: Tensor | None,
    grid: Grid | None,
    generator: torch.Generator | None,
) -> Tensor:
    """What a function of the user's returns, checked.  -> (..., L), ready for the sort."""
    score = (SCORES[partition] if isinstance(partition, str) else partition)(k, num_clusters, mask, grid, generator)
    where = f"partition={shown_name(partition)}"
    if not isinstance(score, Tensor):
        raise ValueError(f"{where} returned {type(score).__name__}; return a tensor with a value for each token")
    lead, shape = tuple(k.shape[:-1]), tuple(score.shape)
    fits = len(shape) <= len(lead) and all(a in (1, b) for a, b in zip(shape[::-1], lead[::-1]))
    if not fits or shape[-1:] != lead[-1:]:
        raise ValueError(
            f"{where} returned shape {shape} for tokens of shape {tuple(k.shape)}; return a value for each token, "
            f"{lead}, or ({lead[-1]},) where it is the same for all"
        )
    if score.device != k.device:
        raise ValueError(f"{where} returned a tensor on {score.device} for tokens on {k.device}; return one there")
    score = score.detach().expand(lead)
    if score.is_floating_point():
        return score
    if score.is_complex() or score.dtype == torch.bool:
        raise ValueError(f"{where} returned {score.dtype}; return floats, a score, or integers, a label of each token")
    return _equal_labels(where, score.long(), num_clusters, mask).to(k.dtype)


def _equal_labels(where: str, labels: Tensor, num_clusters: int, mask: Tensor | None) -> Tensor:
    """Labels (..., L), numbered so that clusters of one token more come first, as everywhere here.

    A ValueError where sizes differ by more than one token.  A compiled graph cannot look.
    """
    if mask is not None:
        labels = labels.masked_fill(~mask, num_clusters)
    if not torch.compiler.is_compiling():
        last = num_clusters - (mask is None)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high > last:
            raise ValueError(
                f"{where} returned integers from {low} to {high}, and labels of {num_clusters} clusters go from 0 to "
                f"{num_clusters - 1}; return a score as floats"
            )
    sizes = torch.nn.functional.one_hot(labels, num_clusters + 1).sum(dim=-2)[..., :num_clusters]
    by_size = torch.sort(sizes, dim=-1, descending=True, stable=True)
    if not torch.compiler.is_compiling():
        equal = equal_sizes(sizes.sum(dim=-1, keepdim=True), num_clusters)
        if not bool((by_size.values == equal).all()):
            raise ValueError(
                f"{where} returned clusters of {int(sizes.min())} to {int(sizes.max())} tokens, and sizes may differ "
                "by one token only; return labels of equal clusters, or scores (floats), which are sorted and cut"
            )
    rank = torch.nn.functional.pad(inverse_order(by_size.indices), (0, 1), value=num_clusters)  # padded tokens last
    return rank.gather(-1, labels)
