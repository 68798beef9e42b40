"""The method, slowly: Eqs. 1 to 6 of the paper for one image and one head.  Read this first.

Nothing here is optimised and nothing here will be: the fast paths are tested against these loops in
float64.  Tensors carry no batch and no heads: `x (L, C)`, `q k v (L, D)`.
"""

import math

import torch
from torch import Tensor


def project(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 1: queries, keys, values and the centre, the mean key.  x (L, C), w (D, C) -> q k v (L, D), k_c (D)."""
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    return q, k, v, k.mean(dim=0)


def sort_by_similarity(k: Tensor, k_c: Tensor, descending: bool = False) -> Tensor:
    """Eq. 2: token indices by cosine to the centre.  k (L, D), k_c (D) -> idx (L).

    Equal scores keep the order of the tokens.  Eq. 2 prints a descending sort, the authors' code
    sorts ascending: with equal clusters the partition is the same.  The order has no gradient.
    """
    k_c = near_one(k_c.detach())
    sim = []
    for token in k.detach():
        token = near_one(token)
        norms = token.norm() * k_c.norm()
        sim.append(float(token @ k_c / norms) if norms > 0 else 0.0)
    sign = -1.0 if descending else 1.0
    ranked = sorted(range(len(sim)), key=lambda token: (sign * sim[token], token))
    return torch.tensor(ranked, dtype=torch.long, device=k.device)


def near_one(x: Tensor) -> Tensor:
    """x times the power of two that brings its largest entry near 1: same digits, and no square of it vanishes."""
    largest = float(x.abs().max())
    return x * 2.0 ** -math.frexp(largest)[1] if 0 < largest < math.inf else x


def cluster_slices(num_tokens: int, num_clusters: int) -> list[slice]:
    """Eq. 3 for any L: ranks of each cluster; the first L mod M clusters hold one token more."""
    size, remainder = divmod(num_tokens, num_clusters)
    slices, start = [], 0
    for m in range(num_clusters):
        stop = start + size + (1 if m < remainder else 0)
        slices.append(slice(start, stop))
        start = stop
    return slices


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Eq. 4: softmax attention inside one cluster.  q (Nq, D), k v (N, D) -> (Nq, D)."""
    return torch.softmax(q @ k.T * scale, dim=-1) @ v


def group_ranks(num_tokens: int, num_groups: int, arrangement: str = "interleaved") -> list[list[int]]:
    """Eq. 5: ranks of each group n = 0..T-1 of the connector.

    interleaved (Eq. 5): ranks n, n+T, n+2T, ...; sequential (supplement Table 3): ranks from
    floor(n L / T) to floor((n+1) L / T).
    """
    if arrangement == "interleaved":
        return [list(range(n, num_tokens, num_groups)) for n in range(num_groups)]
    bounds = [n * num_tokens // num_groups for n in range(num_groups + 1)]
    return [list(range(bounds[n], bounds[n + 1])) for n in range(num_groups)]


def pooled_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Eq. 6: one output per group, the attention of the mean query.  q k v (N, D) -> (D)."""
    return attention(q.mean(dim=0, keepdim=True), k, v, scale)[0]


def sec_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_clusters: int,
    mask: Tensor | None = None,
    scale: float | None = None,
    num_prefix_tokens: int = 0,
) -> Tensor:
    """Eqs. 1 to 4 for a batch with heads, by loops.  q k v (B, h, L, D), mask (B, L) -> (B, h, L, D).

    Padded tokens (mask False) are no part of the centre and of no cluster; their output is zero.
    The first `num_prefix_tokens` are no part of the centre either: every cluster attends to them, and
    they attend to all tokens.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out = torch.zeros_like(v)
    prefix = torch.arange(num_prefix_tokens)
    for b in range(q.shape[0]):
        real = torch.arange(q.shape[2]) if mask is None else mask[b].nonzero()[:, 0]
        real = real[num_prefix_tokens:]
        everything = torch.cat([prefix, real])
        for head in range(q.shape[1]):
            q1, k1, v1 = q[b, head], k[b, head], v[b, head]
            if num_prefix_tokens:
                out[b, head, prefix] = attention(q1[prefix], k1[everything], v1[everything], scale)
            idx = real[sort_by_similarity(k1[real], k1[real].mean(dim=0))]
            for ranks in cluster_slices(len(real), num_clusters):
                m = idx[ranks]
                if len(m):
                    keys = torch.cat([prefix, m])
                    out[b, head, m] = attention(q1[m], k1[keys], v1[keys], scale)
    return out


def sec_pool(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_tokens: int,
    arrangement: str = "interleaved",
    mask: Tensor | None = None,
    scale: float | None = None,
    shared: bool = True,
) -> Tensor:
    """Eqs. 1, 2, 5, 6 for a batch with heads, by loops.  q k v (B, h, L, D), mask (B, L) -> (B, h, T, D).

    `shared`: one order for all heads, from the keys of all heads side by side.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out = torch.zeros(*q.shape[:2], num_tokens, v.shape[-1], dtype=v.dtype, device=v.device)
    for b in range(q.shape[0]):
        real = torch.arange(q.shape[2]) if mask is None else mask[b].nonzero()[:, 0]
        for head in range(q.shape[1]):
            ranked = k[b][:, real].transpose(0, 1).flatten(1) if shared else k[b, head, real]
            idx = real[sort_by_similarity(ranked, ranked.mean(dim=0), descending=True)]
            for n, ranks in enumerate(group_ranks(len(real), num_tokens, arrangement)):
                if ranks:
                    group = idx[ranks]
                    out[b, head, n] = pooled_attention(q[b, head, group], k[b, head, group], v[b, head, group], scale)
    return out
