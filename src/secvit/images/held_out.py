"""The fixed part of an undivided set that is held out as "val", whatever the task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

HELD_OUT = 0.15


def held_out(names: Iterable[str], labels: np.ndarray | None = None) -> np.ndarray:
    """Rising indices of the 15 % of some names with the lowest SHA-1: at least one, never all.

    labels (n): of each class 15 %.
    """
    digests = [hashlib.sha1(name.encode("utf-8", "surrogatepass")).digest() for name in names]
    order = np.array(digests, "S20").argsort(kind="stable")
    groups = [order] if labels is None else [order[labels[order] == label] for label in np.unique(labels)]
    counts = [max(0, min(len(group) - 1, max(1, round(HELD_OUT * len(group))))) for group in groups]
    return np.sort(np.concatenate([group[:count] for group, count in zip(groups, counts, strict=True)]))
