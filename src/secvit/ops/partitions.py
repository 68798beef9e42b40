"""Figure 1: SEC and its rivals behind one signature, tokens in, `Plan` out.

A partition of one's own is a function too (`register_partition`).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secvit.ops.order import (
    Plan,
    check_mask,
    equal_sizes,
    inverse_order,
    order_by,
    resolve_num_clusters,
    scoring_dtype,
    sec_scores,
    similarity,
)
from secvit.ops.rivals import (
    Grid,
    Score,
    balanced_kmeans,
    first_component,
    kmeans_labels,
    plan_of_labels,
    random_projection,
    random_score,
    raster,
    window,
)
from secvit.ops.tree import tree_plan

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
        return plan_of_labels(kmeans_labels(k, num_clusters, mask), num_clusters, mask)
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
