"""Near and far, slowly: the tree and the attention of `tree` and `near_far`, for one image and one head.  Read first.

Nothing here is optimised and nothing here will be: the fast paths are tested against these loops in float64.
Tensors carry no batch and no heads: `q k v (L, D)`, clusters are lists of tokens.
"""

import math

import torch
from torch import Tensor

from secvit.ops.reference import cluster_slices, sort_by_similarity

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


def coordinates(blocks: list[Tensor], num_axes: int = 8, sample: int = 512, rounds: int = 3) -> Tensor:
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


def summary(mean_query: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a far cluster is to queries near `mean_query`: weights of its tokens, one key, one bias.  (N), (D), ().

    Its value is weights @ v.  log sum_i exp(q k_i) is, to first order in q around the mean query, bias + q key.
    """
    weights = torch.softmax(k @ mean_query * scale, dim=0)
    key = weights @ k
    return weights, key, mass(mean_query, k, scale) - mean_query @ key * scale


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
    clusters = behind_prefix(clusters, prefix)
    if prefix:
        out[:prefix] = full_weights(q[:prefix], k, clusters, scale, prefix) @ v
    for m, cluster in enumerate(clusters):
        for queries in halves(cluster):
            out[queries] = weights_of_half(q, k, clusters, m, queries, near, far, scale, prefix)[0] @ v
    return out


def weights_of_token(
    token: int, q: Tensor, k: Tensor, clusters: list[list[int]], near: int, far: bool, scale: float, prefix: int = 0
) -> tuple[Tensor, list[int]]:
    """What one token attends to in `near_far_attention`: its output is weights @ v.  q k (P + L, D) -> (P + L).

    token: its place among all P + L.  Second, the numbers of the clusters that it attends to exactly: its own first,
    then the other near ones; all of them for a prefix token.  A token of a far cluster has the weight of the cluster's
    summary times its own within the summary.  Weights sum to 1.  ValueError for a token that is in no cluster.
    """
    clusters = behind_prefix(clusters, prefix)
    if 0 <= token < prefix:
        return full_weights(q[token : token + 1], k, clusters, scale, prefix)[0], list(range(len(clusters)))
    own = next((m for m, cluster in enumerate(clusters) if token in cluster), None)
    if own is None:
        raise ValueError(f"token {token} is in no cluster; choose one of those that are")
    queries = next(half for half in halves(clusters[own]) if token in half)
    weights, chosen = weights_of_half(q, k, clusters, own, queries, near, far, scale, prefix)
    return weights[queries.index(token)], chosen


def weights_of_half(
    q: Tensor, k: Tensor, clusters: list[list[int]], own: int, queries: list[int], near: int, far: bool, scale: float,
    prefix: int,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """What the n queries of a half attend to, and the near clusters, its own first.  q k (P + L, D) -> (n, P + L).

    clusters: lists of places among all P + L tokens.
    """
    masses = [
        torch.stack([mass(q[half].mean(dim=0), k[tokens], scale).detach() for tokens in clusters])
        for half in halves(clusters[own])
    ]
    chosen = nearest([one.softmax(dim=0) for one in masses], own, near)
    exact = [*range(prefix), *(token for c in chosen for token in clusters[c])]
    others = [tokens for c, tokens in enumerate(clusters) if far and c not in chosen and tokens]
    summaries = [summary(q[queries].mean(dim=0), k[tokens], scale) for tokens in others]
    logits = [q[queries] @ k[exact].T * scale]
    logits += [(q[queries] @ key * scale + bias).unsqueeze(1) for _, key, bias in summaries]
    to_exact, *to_far = torch.softmax(torch.cat(logits, dim=1), dim=1).split([len(exact), *[1] * len(others)], dim=1)
    weights = [to_exact, *(share * within for share, (within, _, _) in zip(to_far, summaries, strict=True))]
    places = torch.tensor(exact + [token for tokens in others for token in tokens], device=q.device)
    return q.new_zeros(len(queries), len(q)).index_copy(1, places, torch.cat(weights, dim=1)), chosen


def full_weights(q: Tensor, k: Tensor, clusters: list[list[int]], scale: float, prefix: int) -> Tensor:
    """Full attention of n queries to the prefix and to all tokens that are in a cluster.  q (n, D) -> (n, P + L)."""
    places = torch.tensor([*range(prefix), *(token for tokens in clusters for token in tokens)], device=q.device)
    weights = torch.softmax(q @ k[places].T * scale, dim=1)
    return q.new_zeros(len(q), len(k)).index_copy(1, places, weights)


def behind_prefix(clusters: list[list[int]], prefix: int) -> list[list[int]]:
    """Clusters of patch tokens as places among all P + L."""
    return [[prefix + token for token in tokens] for tokens in clusters]


def halves(cluster: list[int]) -> list[list[int]]:
    """A cluster cut in the middle of its list, the first part one token more where the number is odd; none empty."""
    middle = (len(cluster) + 1) // 2
    return [half for half in (cluster[:middle], cluster[middle:]) if half]


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
