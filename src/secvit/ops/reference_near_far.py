"""Near and far, slowly: the tree and the attention of `tree` and `near_far`, for one image and one head.  Read first.

Nothing here is optimised and nothing here will be: the fast paths are tested against these loops in float64.
Tensors carry no batch and no heads: `q k v (L, D)`, clusters are lists of tokens.
"""

import math

import torch
from torch import Tensor

from secvit.ops.reference import attention, cluster_slices, sort_by_similarity

# -- the tree ----------------------------------------------------------------------------------------


def principal_axes(x: Tensor, num_axes: int, rounds: int) -> Tensor:
    """Orthogonal iteration, from evenly spaced tokens of x, which is centred.  x (L, C) -> (C, num_axes)."""
    axes = x[:: len(x) // num_axes][:num_axes].T
    for _ in range(rounds):
        axes = orthonormal(x.T @ x @ axes)
    return axes


def orthonormal(axes: Tensor) -> Tensor:
    """Gram and Schmidt; an axis with nothing of its own becomes zero.  axes (C, d) -> (C, d)."""
    done: list[Tensor] = []
    for axis in axes.T:
        for other in done:
            axis = axis - (other @ axis) * other
        done.append(axis / axis.norm() if axis.norm() > 1e-5 * axes[:, 0].norm() else torch.zeros_like(axis))
    return torch.stack(done, dim=1)


def coordinates(blocks: list[Tensor], num_axes: int = 8, sample: int = 256, rounds: int = 3) -> Tensor:
    """Principal coordinates of each token: every block at total variance 1, side by side.  (L, C_i) -> (L, num_axes).

    Mean, variance and axes are those of `sample` evenly spaced tokens.
    """
    chosen = [i * len(blocks[0]) // sample for i in range(sample)]
    parts = []
    for block in blocks:
        centre = block[chosen].mean(dim=0)
        spread = (block[chosen] - centre).norm()
        constant = spread <= 1e-5 * math.sqrt(sample) * centre.norm()  # what differs is rounding
        parts.append(torch.zeros_like(block) if constant else (block - centre) / spread)
    x = torch.cat(parts, dim=1)
    return x @ principal_axes(x[chosen], num_axes, rounds)


def first_axis(x: Tensor, rounds: int = 4) -> Tensor:
    """First principal axis of centred tokens, by power iteration from the axis of largest variance.  (n, d) -> (d)."""
    covariance = x.T @ x
    axis = torch.zeros_like(x[0])
    axis[covariance.diagonal().argmax()] = 1
    for _ in range(rounds):
        axis = covariance @ axis
        axis = axis / axis.norm() if axis.norm() > 0 else axis
    return axis


def tree(x: Tensor, num_clusters: int) -> list[list[int]]:
    """Balanced tree: sort by the first principal component, cut in the middle, repeat.  x (L, d) -> clusters.

    Sizes are those of `cluster_slices`, and tokens of a cluster are sorted, too.  A node of m clusters is cut
    behind ceil(m / 2) of them.
    """
    sizes = [ranks.stop - ranks.start for ranks in cluster_slices(len(x), num_clusters)]

    def grow(tokens: list[int], sizes: list[int]) -> list[list[int]]:
        if not tokens:
            return [[] for _ in sizes]
        node = x[tokens] - x[tokens].mean(dim=0)
        place = (node @ first_axis(node)).tolist()
        ranked = [tokens[i] for i in sorted(range(len(tokens)), key=lambda i: (place[i], i))]
        if len(sizes) == 1:
            return [ranked]
        half = (len(sizes) + 1) // 2
        cut = sum(sizes[:half])
        return grow(ranked[:cut], sizes[:half]) + grow(ranked[cut:], sizes[half:])

    return grow(list(range(len(x))), sizes)


# -- attention ---------------------------------------------------------------------------------------


def mass(mean_query: Tensor, k: Tensor, scale: float) -> Tensor:
    """Log of the weight that a query gives to a cluster, before the softmax's denominator.  (D), k (N, D) -> ()."""
    return torch.logsumexp(k @ mean_query * scale, dim=0)


def summary(mean_query: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a far cluster is to queries near `mean_query`: one key, one value, one bias.  k v (N, D) -> (D), (D), ().

    log sum_i exp(q k_i) is, to first order in q around the mean query, bias + q key.
    """
    weights = torch.softmax(k @ mean_query * scale, dim=0)
    key, value = weights @ k, weights @ v
    return key, value, mass(mean_query, k, scale) - mean_query @ key * scale


def nearest(shares: list[Tensor], own: int, near: int) -> list[int]:
    """A cluster itself, and the near - 1 others to which its halves together give the largest shares of attention.

    shares: of each half, (M), at its mean query.
    """
    share = torch.stack(shares).sum(dim=0).tolist()
    others = sorted((c for c in range(len(share)) if c != own), key=lambda c: -share[c])
    return [own, *others[: near - 1]]


def near_far_attention(
    q: Tensor, k: Tensor, v: Tensor, clusters: list[list[int]], near: int, far: bool, scale: float, prefix: int = 0
) -> Tensor:
    """Attention of a cluster to near clusters, and of each half to summaries of the others.  q k v (P + L, D) -> same.

    A cluster is cut in the middle of its list.  The first P tokens are keys of every query, and their own queries
    attend to all tokens that are in a cluster.
    Tokens in no cluster (padding) get zeros.
    """
    out = torch.zeros_like(v)
    lead = list(range(prefix))
    clusters = [[prefix + token for token in tokens] for tokens in clusters]
    everything = lead + [token for tokens in clusters for token in tokens]
    if prefix:
        out[lead] = attention(q[lead], k[everything], v[everything], scale)
    for m, cluster in enumerate(clusters):
        half = (len(cluster) + 1) // 2
        halves = [tokens for tokens in (cluster[:half], cluster[half:]) if tokens]
        means = [q[tokens].mean(dim=0) for tokens in halves]
        masses = [torch.stack([mass(mean, k[tokens], scale).detach() for tokens in clusters]) for mean in means]
        chosen = nearest([one.softmax(dim=0) for one in masses], m, near) if halves else []
        exact = lead + [token for c in chosen for token in clusters[c]]
        for queries, mean in zip(halves, means, strict=True):
            keys, values, biases = [k[exact]], [v[exact]], [torch.zeros_like(k[exact, 0])]
            for c, tokens in enumerate(clusters):
                if far and c not in chosen and tokens:
                    key, value, bias = summary(mean, k[tokens], v[tokens], scale)
                    keys.append(key[None])
                    values.append(value[None])
                    biases.append(bias[None])
            logits = q[queries] @ torch.cat(keys).T * scale + torch.cat(biases)
            out[queries] = torch.softmax(logits, dim=-1) @ torch.cat(values)
    return out


def sec_attention(
    q: Tensor, k: Tensor, v: Tensor, num_clusters: int, grow_tree: bool, near: int, far: bool,
    mask: Tensor | None, scale: float, prefix: int = 0,
) -> Tensor:  # fmt: skip
    """`near_far_attention` for a batch with heads, in a tree or in the clusters of Eqs. 1 to 3.  q k v (B, h, L, D).

    mask (B, L): True for real tokens; padded ones are in no cluster.
    """
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        real = torch.arange(q.shape[2]) if mask is None else mask[b].nonzero()[:, 0]
        for head in range(q.shape[1]):
            q1, k1, v1 = (x[b, head, real] for x in (q, k, v))
            patches, keys = q1[prefix:].detach(), k1[prefix:].detach()
            if grow_tree:
                clusters = tree(coordinates([patches, keys]), num_clusters)
            else:
                order = sort_by_similarity(keys, keys.mean(dim=0)).tolist()
                clusters = [order[ranks] for ranks in cluster_slices(len(order), num_clusters)]
            out[b, head, real] = near_far_attention(q1, k1, v1, clusters, near, far, scale, prefix)
    return out
