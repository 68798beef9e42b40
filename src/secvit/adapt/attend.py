"""Clustered attention with the signature of `torch.nn.functional.scaled_dot_product_attention`.

The one adapter that everything here goes through: whatever computes attention by a call of that
shape, over image tokens with some prefix tokens in front, can call this instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops import (
    BACKENDS,
    Partition,
    Plan,
    attend_sorted,
    check_partition,
    cluster,
    resolve_num_clusters,
    sec_attention,
    shown_name,
)

SCORES = ("keys", "queries", "values")
CENTRES = ("mean", "cls", "pc1")


@dataclass(frozen=True)
class Clustering:
    """How the tokens of a layer are clustered; what `secvit.patch` is told.

    num_clusters | cluster_size: M, never more than there are tokens, or the most tokens of a cluster.
    num_prefix_tokens: tokens in front ([cls], registers) that every cluster attends to and that attend
        to all tokens.
    score: what is compared with the centre, "keys" (the paper), "queries" or "values".
    centre: the mean of it, that of the first prefix token, "cls", or "pc1", its first principal component.
    partition: as in `secvit.cluster`: "sec", a rival, or a function of your own.
    shared: one order for all heads.
    grid: (H, W) of the tokens for windows, where it is not square.
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


class SharedOrder:
    """The partition of one layer, for the layers after it that go by the same order.

    sorted_stream: the tokens travel in cluster order at the moment, so nobody needs to move them.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.sorted_stream = False


class ClusteredAttention:
    """Eqs. 1 to 4 in place of `scaled_dot_product_attention`: q k v (B, h, P + L, D) -> (B, h, P + L, D).

    For attention modules of your own:

        self.attend = ClusteredAttention(Clustering(cluster_size=98, num_prefix_tokens=1))
        x = self.attend(q, k, v, scale=self.scale)  # was F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    attn_mask: only padding, (B | 1, h | 1, P + L | 1, P + L), boolean or additive: keys that some query may
        see are real.  A mask or bias that depends on the pair of tokens is refused, is_causal too (a compiled
        graph cannot look: there every mask is taken for padding).  M follows from the padded length.
    order, leads: a `SharedOrder` that this layer writes (leads) or goes by.
    """

    def __init__(self, clustering: Clustering, order: SharedOrder | None = None, leads: bool = True) -> None:
        self.clustering = clustering
        self.order = order
        self.leads = leads

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        c = self.clustering
        prefix = c.num_prefix_tokens
        if is_causal:
            raise ValueError(
                "SEC cannot be causal: the centre and every token's rank depend on later tokens; "
                "patch the vision tower, or other layers"
            )
        if query.dim() != 4 or query.shape[2] != key.shape[2] or key.shape[2] <= prefix:
            raise ValueError(
                f"queries {tuple(query.shape)} and keys {tuple(key.shape)} with {prefix} prefix tokens are no "
                "self-attention of image tokens (B, h, L, D); leave this layer out (layers=, modules=)"
            )
        if self.order is not None and self.leads:
            # a forward that failed midway may have left its own
            self.order.plan, self.order.sorted_stream = None, False
        if enable_gqa and key.shape[1] != query.shape[1]:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        num_clusters = c.clusters_for(key.shape[2] - prefix)
        if num_clusters == 1 and c.backend == "auto":
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, scale=scale)
        mask = None if attn_mask is None else padding_mask(attn_mask, key)
        if c.backend == "reference":
            return sec_attention(
                query, key, value, num_clusters, mask=mask, scale=scale, backend=c.backend,
                num_prefix_tokens=prefix, dropout_p=dropout_p,
            )  # fmt: skip
        if self.order is not None and self.order.sorted_stream:
            return attend_sorted(query, key, value, num_clusters, scale, prefix, dropout_p)
        plan = self.plan(query, key, value, num_clusters, None if mask is None else mask[:, prefix:])
        return sec_attention(
            query, key, value, scale=scale, backend=c.backend, plan=plan, num_prefix_tokens=prefix, dropout_p=dropout_p
        )

    def plan(self, query: Tensor, key: Tensor, value: Tensor, num_clusters: int, mask: Tensor | None) -> Plan:
        """Eqs. 1 to 3, or the leading layer's partition.  mask (B, L), prefix tokens left out."""
        c = self.clustering
        if self.order is not None and not self.leads:
            if self.order.plan is None:
                raise RuntimeError(
                    "this layer goes by the order of one that has not run: recomputing activations (gradient "
                    "checkpointing) needs share_order_every=1"
                )
            return self.order.plan
        scored = {"keys": key, "queries": query, "values": value}[c.score]
        if c.shared:
            scored = scored.transpose(1, 2).flatten(2)
        prefix = c.num_prefix_tokens
        centre: str | Tensor = scored[..., 0, :] if c.centre == "cls" else c.centre
        plan = cluster(
            scored[..., prefix:, :], num_clusters, mask=mask, partition=c.partition, centre=centre, grid=c.grid
        )
        if self.order is not None:
            self.order.plan = plan
        return plan


def padding_mask(attn_mask: Tensor, key: Tensor) -> Tensor:
    """The real tokens (B, P + L) of an attention mask (B | 1, h | 1, Lq | 1, P + L); a ValueError if it says more."""
    allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -1e4
    while allowed.dim() < 4:
        allowed = allowed.unsqueeze(0)
    if not torch.compiler.is_compiling():
        some_query, some_key = allowed.any(dim=-1, keepdim=True), allowed.any(dim=-2, keepdim=True)
        bias = attn_mask.dtype != torch.bool and bool(((attn_mask != 0) & (attn_mask > -1e4)).any())
        same = bool((allowed == (some_query & some_key)).all()) and bool((allowed == allowed[:, :1]).all())
        if bias or not same:
            raise ValueError(
                f"an attention mask {tuple(attn_mask.shape)} that depends on the pair of tokens "
                f"({'a bias' if bias else 'a causal or block mask'}) has no meaning once tokens are clustered; "
                "only padding can be masked: leave this layer out (layers=, modules=)"
            )
    real = allowed[:, 0].any(dim=-2)
    return real.expand(key.shape[0], key.shape[2])
