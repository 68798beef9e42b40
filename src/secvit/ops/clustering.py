"""How an attention clusters: the one object that every attention here carries, and what it clusters.

An attention that clusters, of this package or your own, is a module with

    clustering: Clustering            # may be replaced at any time; the next forward pass goes by the new one
    keys(*inputs) -> Keys             # what it clusters, of the same inputs as its forward
    plan(*inputs) -> Plan             # the partition that its forward makes: `clustering.plan(self.keys(*inputs))`
    num_heads: int

and no base class.  With these, pictures, the page and the measurements work on it (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secvit.ops.backends import BACKENDS
from secvit.ops.order import Plan, resolve_num_clusters
from secvit.ops.partitions import Partition, check_partition, cluster, shown_name

SCORES = ("keys", "queries", "values")
CENTRES = ("mean", "cls", "pc1")


@dataclass(frozen=True)
class Keys:
    """What an attention clusters, prefix tokens left out.

    tokens (B, h, L, D), or (B, L, h D) where all heads go by one order: what is scored, after norms and positions.
    grid: (H, W) of the L tokens; None where the attention does not know.
    centre: what tokens are compared with, as in `secvit.cluster`.
    unturned: tokens before rotary positions, where the attention has those.
    """

    tokens: Tensor
    grid: tuple[int, int] | None = None
    centre: str | Tensor = "mean"
    unturned: Tensor | None = None


@dataclass(frozen=True)
class Clustering:
    """How the tokens of an attention are clustered; what `secvit.patch` is told.

    num_clusters | cluster_size: M, never more than there are tokens, or the most tokens of a cluster.
    num_prefix_tokens: tokens in front ([cls], registers) that every cluster attends to and that attend
        to all tokens.
    score: what is compared with the centre, "keys" (the paper), "queries" or "values".
    centre: the mean of it, that of the first prefix token, "cls", or "pc1", its first principal component.
    partition: as in `secvit.cluster`: "sec", a rival, or a function of your own.
    shared: one order for all heads.
    grid: (H, W) of the tokens for windows, where it is not square and the attention does not know.
    backend: of `secvit.sec_attention`.
    """

    num_clusters: int | None = None
    cluster_size: int | None = None
    num_prefix_tokens: int = 0
    score: str = "keys"
    centre: str = "mean"
    partition: Partition = "sec"
    shared: bool = False
    grid: tuple[int, int] | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        resolve_num_clusters(max(self.num_clusters or 1, 1), self.num_clusters, self.cluster_size)
        for name, known in (("score", SCORES), ("centre", CENTRES), ("backend", BACKENDS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}; choose one of {', '.join(known)}")
        check_partition(self.partition)
        if self.num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens={self.num_prefix_tokens}; choose num_prefix_tokens >= 0")
        if self.centre == "cls" and self.num_prefix_tokens == 0:
            raise ValueError('centre="cls" needs a [cls] token, and this model has no prefix tokens; use centre="mean"')
        if self.centre != "mean" and self.partition != "sec":
            raise ValueError(f"partition={shown_name(self.partition)!r} has no centre; drop centre={self.centre!r}")
        if self.backend == "reference" and (self.shared, self.score, self.centre, self.partition) != (
            False, "keys", "mean", "sec",
        ):  # fmt: skip
            raise ValueError('backend="reference" is the paper\'s partition per head; leave the other options alone')

    def clusters_for(self, num_tokens: int) -> int:
        """M for L tokens, prefix tokens not counted; never more clusters than tokens."""
        if self.num_clusters is not None:
            return min(self.num_clusters, num_tokens)
        return resolve_num_clusters(num_tokens, None, self.cluster_size)

    def plan(self, keys: Keys, mask: Tensor | None = None) -> Plan:
        """Eqs. 1 to 3: the partition of what an attention clusters.  mask (B, L): True for real tokens."""
        num_clusters = self.clusters_for(keys.tokens.shape[-2])
        if num_clusters == 1:  # an attention does not ask for one either: no centre, no grid, no random numbers
            return cluster(keys.tokens, 1, mask=mask)
        grid = self.grid or keys.grid
        return cluster(
            keys.tokens, num_clusters, mask=mask, partition=self.partition, centre=keys.centre, grid=grid
        )  # fmt: skip
