"""Clustered attention with the signature of `torch.nn.functional.scaled_dot_product_attention`.

The one adapter that everything here goes through: whatever computes attention by a call of that
shape, over image tokens with some prefix tokens in front, can call this instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secvit.ops import QUALITIES, Clustering, Keys, Plan, Projections, attend_sorted, sec_attention, shown_name


class SharedOrder:
    """The partition of one layer, for the layers after it that go by the same order.

    sorted_stream: the tokens travel in cluster order at the moment, so nobody needs to move them.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.sorted_stream = False


class ClusteredAttention(nn.Module):
    """Eqs. 1 to 4 in place of `scaled_dot_product_attention`: q k v (B, h, P + L, D) -> (B, h, P + L, D).

    For attention modules of your own:

        self.attend = ClusteredAttention(Clustering(cluster_size=98, num_prefix_tokens=1))
        x = self.attend(q, k, v, scale=self.scale)  # was F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    `Clustering(quality="balanced", ...)` for clusters that see each other, and as many as the tokens ask for.
    attn_mask: only padding, (B | 1, h | 1, P + L | 1, P + L), boolean or additive: keys that some query may
        see are real.  A mask or bias that depends on the pair of tokens is refused, is_causal too (a compiled
        graph cannot look: there every mask is taken for padding).  M follows from the padded length.
    order, leads: a `SharedOrder` that this layer writes (leads) or goes by.
    """

    def __init__(self, clustering: Clustering, order: SharedOrder | None = None, leads: bool = True) -> None:
        super().__init__()
        self.clustering = clustering
        self.order = order
        self.leads = leads

    def forward(
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
        if is_causal:
            raise ValueError(
                "SEC cannot be causal: the centre and every token's rank depend on later tokens; "
                "patch the vision tower, or other layers"
            )
        if enable_gqa:
            key, value = (_for_each_query(x, query) for x in (key, value))
        if self.order is None:
            return attend(self.clustering, query, key, value, attn_mask, dropout_p, scale)
        if self.leads:  # a forward that failed midway may have left its own
            self.order.plan, self.order.sorted_stream = None, False
        if self.order.sorted_stream:
            prefix = self.clustering.num_prefix_tokens
            num_clusters = self.clustering.clusters_for(key.shape[2] - prefix)
            sight = self.clustering.sight(num_clusters)
            return attend_sorted(query, key, value, num_clusters, scale, prefix, dropout_p, **sight)
        return attend(self.clustering, query, key, value, attn_mask, dropout_p, scale, plan=self._shared_plan)

    def _shared_plan(self, keys: Keys, mask: Tensor | None) -> Plan:
        """This layer's partition for the others, or that of the one that leads."""
        assert self.order is not None
        if self.leads:
            self.order.plan = self.clustering.plan(keys, mask)
        if self.order.plan is None:
            raise RuntimeError(
                "this layer goes by the order of one that has not run: recomputing activations (gradient "
                "checkpointing) needs share_order_every=1"
            )
        return self.order.plan

    def keys(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Keys:
        """What `forward` clusters of the same inputs."""
        key, value = (_for_each_query(x, query) for x in (key, value))
        return scored(self.clustering, query, key, value)

    def plan(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Plan:
        """Eqs. 1 to 3: the partition that `forward` makes of the same inputs, or goes by."""
        if self.order is not None and not self.leads and self.order.plan is not None:
            return self.order.plan
        return self.clustering.plan(self.keys(query, key, value))

    def projections(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Projections:  # fmt: skip
        """What `forward` computes attention of, of the same inputs."""
        key, value = (_for_each_query(x, query) for x in (key, value))
        return Projections(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)

    def extra_repr(self) -> str:
        settings = {f.name: (getattr(self.clustering, f.name), f.default) for f in fields(self.clustering)}
        quality = self.clustering.quality
        settings["partition"] = (shown_name(self.clustering.partition), "sec" if quality is None else "tree")
        shown = [f"{name}={value!r}" for name, (value, default) in settings.items() if value != default]
        if quality is not None:
            shown.append(f"all tokens below {QUALITIES[quality].break_even}")
        return ", ".join(shown)


def _for_each_query(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values that several heads of queries share, once for each of these.  (B, h, L, D)"""
    return x if x.shape[1] == query.shape[1] else x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def attend(
    clustering: Clustering,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    grid: tuple[int, int] | None = None,
    plan: Callable[[Keys, Tensor | None], Plan] | None = None,
) -> Tensor:
    """Attention in clusters.  q k v (B, h, P + L, D) -> (B, h, P + L, D).

    grid: (H, W) of the L tokens.  plan: makes the partition of keys under a mask (B, L); `clustering.plan` if None.
    """
    prefix, backend = clustering.num_prefix_tokens, clustering.backend
    if query.dim() != 4 or query.shape[2] != key.shape[2] or key.shape[2] <= prefix:
        raise ValueError(
            f"queries {tuple(query.shape)} and keys {tuple(key.shape)} with {prefix} prefix tokens are no "
            "self-attention of image tokens (B, h, L, D); leave this layer out (layers=, modules=)"
        )
    num_clusters = clustering.clusters_for(key.shape[2] - prefix)
    if num_clusters == 1 and (backend == "auto" or clustering.quality is not None):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, scale=scale)
    mask = None if attn_mask is None else padding_mask(attn_mask, key)
    options: dict[str, Any] = {"scale": scale, "backend": backend, "num_prefix_tokens": prefix, "dropout_p": dropout_p}
    options |= clustering.sight(num_clusters)
    if backend == "reference":
        return sec_attention(query, key, value, num_clusters, mask=mask, partition=clustering.partition, **options)
    keys = scored(clustering, query, key, value, grid)
    make = clustering.plan if plan is None else plan
    made = make(keys, None if mask is None else mask[:, prefix:])
    return sec_attention(query, key, value, plan=made, **options)


def scored(
    clustering: Clustering, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int] | None = None
) -> Keys:  # fmt: skip
    """What `attend` clusters: keys, queries or values of one head or of all, and what they are compared with."""
    tokens = {"keys": key, "queries": query, "values": value}[clustering.score]
    if clustering.shared:
        tokens, query = (x.transpose(1, 2).flatten(2) for x in (tokens, query))
    centre = tokens[..., 0, :] if clustering.centre == "cls" else clustering.centre
    tokens, query = (x[..., clustering.num_prefix_tokens :, :] for x in (tokens, query))
    return Keys(tokens, clustering.grid or grid, centre, queries=query)


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
