"""How an attention clusters: the one object that every attention here carries, and what it clusters.

An attention that clusters, of this package or your own, is a module with

    clustering: Clustering            # may be replaced at any time; the next forward pass goes by the new one
    keys(*inputs) -> Keys             # what it clusters, of the same inputs as its forward
    plan(*inputs) -> Plan             # the partition that its forward makes: `clustering.plan(self.keys(*inputs))`
    num_heads: int
    projections(*inputs) -> Projections   # what its forward computes attention of; for pictures of attention alone

and no base class.  With these, pictures, the page and the measurements work on it (docs/extending.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secvit.ops.backends import BACKENDS, check_near
from secvit.ops.order import Plan, check_mask, resolve_num_clusters
from secvit.ops.partitions import Partition, check_partition, cluster, shown_name
from secvit.ops.quality import QUALITIES, chosen_quality, clusters_of
from secvit.ops.tree import tree_plan

SCORES = ("keys", "queries", "values")
CENTRES = ("mean", "cls", "pc1")


@dataclass(frozen=True)
class Keys:
    """What an attention clusters, prefix tokens left out.

    tokens (B, h, L, D), or (B, L, h D) where all heads go by one order: what is scored, after norms and positions.
    grid: (H, W) of the L tokens; None where the attention does not know.
    centre: what tokens are compared with, as in `secvit.cluster`.
    unturned: tokens before rotary positions, where the attention has those.
    queries: of the same tokens, in the shape of `tokens`; a tree is grown from both.
    """

    tokens: Tensor
    grid: tuple[int, int] | None = None
    centre: str | Tensor = "mean"
    unturned: Tensor | None = None
    queries: Tensor | None = None


@dataclass(frozen=True)
class Projections:
    """What attention is computed of: queries, keys and values of all tokens, prefix tokens in front.

    q, k, v (B, h, P + L, D): after norms and positions.  scale: factor of the products of queries and keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


@dataclass(frozen=True)
class Clustering:
    """How the tokens of an attention are clustered; what `secvit.patch` is told.

    num_clusters | cluster_size | quality: M, never more than there are tokens; or the most tokens of a cluster; or
        "fast", "balanced" or "faithful", which finds M, near and far from the number of tokens of each call, and has
        few tokens attend to all (`secvit.ops.quality`).
    num_prefix_tokens: tokens in front ([cls], registers) that every cluster attends to and that attend
        to all tokens.
    score: what is compared with the centre, "keys" (the paper), "queries" or "values".
    centre: the mean of it, that of the first prefix token, "cls", or "pc1", its first principal component.
    partition: as in `secvit.cluster`: "sec", "tree" (of queries and keys), a rival, or a function of your own;
        "auto" is "tree" with a quality, else "sec".
    shared: one order for all heads.
    grid: (H, W) of the tokens for windows, where it is not square and the attention does not know.
    backend: of `secvit.sec_attention`.
    near, far: what each cluster attends to, as in `secvit.sec_attention`; near is never more than there are clusters.
    """

    num_clusters: int | None = None
    cluster_size: int | None = None
    num_prefix_tokens: int = 0
    score: str = "keys"
    centre: str = "mean"
    partition: Partition = "auto"
    shared: bool = False
    grid: tuple[int, int] | None = None
    backend: str = "auto"
    near: int = 1
    far: bool = False
    quality: str | None = None

    def __post_init__(self) -> None:
        if self.quality is None:
            resolve_num_clusters(sys.maxsize, self.num_clusters, self.cluster_size)
        else:
            near, far = None if self.near == 1 else self.near, self.far or None
            chosen_quality(self.quality, self.num_clusters, self.cluster_size, near, far)
        if self.partition == "auto":
            object.__setattr__(self, "partition", "sec" if self.quality is None else "tree")
        for name, choices in (("score", SCORES), ("centre", CENTRES), ("backend", BACKENDS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value!r}; choose one of {', '.join(choices)}")
        check_partition(self.partition)
        check_near(self.near, self.far)
        if self.num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens={self.num_prefix_tokens}; choose num_prefix_tokens >= 0")
        if self.centre == "cls" and self.num_prefix_tokens == 0:
            raise ValueError('centre="cls" needs a [cls] token, and this model has no prefix tokens; use centre="mean"')
        if self.score != "keys" and self.partition == "tree":
            raise ValueError(f"a tree is grown from queries and keys; drop score={self.score!r}")
        if self.centre != "mean" and self.partition != "sec":
            raise ValueError(f"partition={shown_name(self.partition)!r} has no centre; drop centre={self.centre!r}")
        plain = (self.shared, self.score, self.centre) == (False, "keys", "mean")
        if self.backend == "reference" and not (plain and self.partition in ("sec", "tree")):
            raise ValueError(
                'backend="reference" is the paper\'s partition per head, or a tree per head; '
                "leave the other options alone"
            )

    def clusters_for(self, num_tokens: int) -> int:
        """M for L tokens, prefix tokens not counted; never more clusters than tokens."""
        if self.quality is not None:
            return clusters_of(self.quality, num_tokens)
        if self.num_clusters is not None:
            return min(self.num_clusters, num_tokens)
        return resolve_num_clusters(num_tokens, None, self.cluster_size)

    def sight(self, num_clusters: int) -> dict[str, Any]:
        """`near` and `far` for M clusters, as arguments of `secvit.sec_attention`."""
        if self.quality is not None:
            return {"near": min(QUALITIES[self.quality].near, num_clusters), "far": True}
        return {"near": min(self.near, num_clusters), "far": self.far}

    def plan(self, keys: Keys, mask: Tensor | None = None) -> Plan:
        """Eqs. 1 to 3: the partition of what an attention clusters.  mask (B, L): True for real tokens."""
        num_clusters = self.clusters_for(keys.tokens.shape[-2])
        if num_clusters == 1:  # an attention does not ask for one either: no centre, no grid, no random numbers
            return cluster(keys.tokens, 1, mask=mask)
        if self.partition == "tree":
            blocks = [keys.tokens] if keys.queries is None else [keys.queries, keys.tokens]
            return tree_plan(blocks, num_clusters, check_mask(mask, keys.tokens))
        grid = self.grid or keys.grid
        return cluster(
            keys.tokens, num_clusters, mask=mask, partition=self.partition, centre=keys.centre, grid=grid
        )  # fmt: skip
