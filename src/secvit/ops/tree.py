"""A balanced tree of clusters: sort by the first principal component, halve, repeat in each half.

SEC's one sort, done log2 M times, each time by the axis along which the tokens of a node differ most.  Every
leaf is a cluster, and sizes differ by at most one token for any L and any M: a node of an odd number of
clusters is cut in unequal parts.  Components are those of a few principal coordinates of each token
(`principal_coordinates`), which is what makes the tree cheap.  No gradient flows through them or the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from secvit.ops.order import Plan, equal_sizes, full_precision, largest_size, order_by, scoring_dtype

COORDINATES = 8  # of a token; fewer lose fidelity in a trained ViT, 16 gain nothing
SAMPLE = 512  # tokens whose principal axes are taken; with 256, some photos of 4,096 tokens lose .007 of cosine
ROUNDS = 3  # orthogonal iterations for these axes
LEAST = 1e-5  # of the first axis, below which another one is rounding


def tree_plan(blocks: Sequence[Tensor], num_clusters: int, mask: Tensor | None = None) -> Plan:
    """M leaves of the tree on what `blocks` say of a token.  blocks (..., L, C_i), mask (..., L) -> plan of (..., L).

    Attention gives (q, k): tokens of a cluster then ask alike and answer alike.
    """
    num_clusters = int(num_clusters)  # in an exported program, too: the number of levels is its own
    if mask is not None:
        mask = mask.expand(blocks[0].shape[:-1])
        blocks = [block.masked_fill(~mask.unsqueeze(-1), 0) for block in blocks]
    order = tree_order(principal_coordinates(blocks, mask), num_clusters, mask)
    return Plan.equal(order, num_clusters, mask)


def principal_coordinates(blocks: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Few principal coordinates of each token, every block scaled to total variance 1.  (..., L, C_i) -> (..., L, 8).

    Mean, variance and axes are those of `SAMPLE` evenly spaced tokens; axes by orthogonal iteration that starts at
    eight of them.  Channels come before tokens in here, which products on a CPU are several times as fast for.
    """
    blocks = [scoring_dtype(block) for block in blocks]
    length, device = blocks[0].shape[-2], blocks[0].device
    count = length if mask is None else mask.sum(dim=-1, keepdim=True)
    index = torch.arange(SAMPLE, device=device) * count // SAMPLE
    if mask is None:
        samples = [_finite(block.index_select(-2, index)).mT for block in blocks]
    else:
        index = _real_first(mask).gather(-1, index).unsqueeze(-1)
        samples = [_finite(block.gather(-2, index.expand(*index.shape[:-1], block.shape[-1]))).mT for block in blocks]
    means = [sample.mean(dim=-1, keepdim=True) for sample in samples]
    samples = [sample - mean for sample, mean in zip(samples, means)]
    totals = [(sample * sample).sum(dim=(-2, -1), keepdim=True) for sample in samples]
    least = [LEAST**2 * SAMPLE * (mean * mean).sum(dim=(-2, -1), keepdim=True) for mean in means]
    scales = [torch.where(total > small, total.rsqrt(), 0) for total, small in zip(totals, least)]
    sample = torch.cat([sample * scale for sample, scale in zip(samples, scales)], dim=-2)
    axes = sample[..., :: SAMPLE // COORDINATES].mT
    with full_precision(device):
        for _ in range(ROUNDS):
            axes = _orthonormal((axes @ sample) @ sample.mT, few=length < 2 * COORDINATES)
        parts = axes.split([block.shape[-1] for block in blocks], dim=-1)
        parts = [part * scale for part, scale in zip(parts, scales)]
        x = sum(part @ block.mT for part, block in zip(parts, blocks))
        centre = sum(part @ mean for part, mean in zip(parts, means))
    return _finite(x - centre).mT


def tree_order(x: Tensor, num_clusters: int, mask: Tensor | None = None) -> Tensor:
    """Token indices leaf by leaf, for `Plan.equal`; padded tokens last.  x (..., L, d), mask (..., L) -> (..., L)."""
    lead, length, dim = x.shape[:-2], x.shape[-2], x.shape[-1]
    x = x.detach().mT.reshape(-1, dim, length)
    order, count = torch.arange(length, device=x.device).expand(x.shape[0], -1), None
    if mask is not None:
        mask = mask.expand(*lead, length).reshape(-1, length)
        order = _real_first(mask)
        x = x.gather(2, order.unsqueeze(1).expand(x.shape))
        count = mask.sum(dim=-1, keepdim=True)
    with full_precision(x.device):
        for bounds in tree_levels(num_clusters):
            ranks = _sort_nodes(x, bounds, count)
            order = order.gather(1, ranks)
            if len(bounds) <= num_clusters:
                x = x.gather(2, ranks.unsqueeze(1).expand(x.shape))
    return order.view(*lead, length)


def tree_levels(num_clusters: int) -> list[list[int]]:
    """Nodes of each level, as bounds in clusters: M = 3 -> [0, 3], [0, 2, 3], [0, 1, 2, 3].

    The last level are the leaves: they are sorted, too, so that halves of a cluster are alike (`near_far`).
    """
    levels = [[0, num_clusters]]
    while len(bounds := levels[-1]) <= num_clusters:
        middles = [start + (stop - start + 1) // 2 for start, stop in pairwise(bounds)]
        levels.append(sorted({*bounds, *middles}))
    return levels


def _sort_nodes(x: Tensor, bounds: list[int], count: Tensor | None) -> Tensor:
    """Ranks that sort every node by its own axis.  x (S, d, L) node by node -> (S, L).

    bounds: of the nodes, in clusters.  count (S, 1): real tokens, which come first; None for all.
    """
    length, nodes, num_clusters = x.shape[2], len(bounds) - 1, bounds[-1]
    if count is None and not torch.compiler.is_exporting():
        if length % num_clusters == 0 and all((b - a) * nodes == num_clusters for a, b in pairwise(bounds)):
            size = length // nodes
            ranks = order_by(_coordinate(x.unflatten(2, (nodes, size)).transpose(1, 2), size))
            return (ranks + torch.arange(0, length, size, device=x.device).unsqueeze(-1)).flatten(1)
    if count is None:
        count = torch.full_like(x[:1, :1, 0], length, dtype=torch.long)
    sizes = equal_sizes(count, num_clusters)
    stops = F.pad(sizes.cumsum(dim=-1), (1, 0))[:, bounds]  # in tokens, (S | 1, nodes + 1)
    widest = max(b - a for a, b in pairwise(bounds)) * largest_size(length, num_clusters)
    place = torch.arange(widest, device=x.device)
    held = (stops[:, 1:] - stops[:, :-1]).unsqueeze(-1)
    inside = place < held
    rank = (stops[:, :-1].unsqueeze(-1) + place).clamp_max(length - 1).expand(x.shape[0], -1, -1)
    members = x.gather(2, rank.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)).unflatten(2, (nodes, widest))
    members = members.transpose(1, 2).masked_fill(~inside.unsqueeze(2), 0)
    within = order_by(_coordinate(members, held.clamp_min(1).unsqueeze(-1)), inside.expand(rank.shape))
    # from padded nodes back to one sequence, in which padded tokens of a mask stay behind all nodes
    token = torch.arange(length, device=x.device).expand(x.shape[0], -1)
    node = (token.unsqueeze(-1) >= stops[:, 1:].unsqueeze(1)).sum(dim=-1)
    last = node.clamp_max(nodes - 1)
    slot = (last * widest + token - stops.expand(x.shape[0], -1).gather(1, last)).clamp_max(nodes * widest - 1)
    return torch.where(node < nodes, rank.gather(2, within).flatten(1).gather(1, slot), token)


def _coordinate(x: Tensor, count: int | Tensor) -> Tensor:
    """Place of each token on the first principal axis of its node.  x (S, nodes, d, n) -> (S, nodes, n).

    count: tokens of a node, (S, nodes, 1, 1) or the same for all; x is zero behind them.
    Four power iterations, as two squares, from the coordinate of largest variance, whose sign the axis has.
    """
    x = x.contiguous()
    mean = x.sum(dim=-1, keepdim=True) / count
    covariance = x @ x.mT - mean @ mean.mT * count
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    power = covariance / variance.sum(dim=-1).clamp_min(1e-37)[..., None, None]
    power = power @ power
    power = power @ power
    largest = variance.argmax(dim=-1)[..., None, None].expand(*variance.shape[:-1], 1, variance.shape[-1])
    return (power.gather(-2, largest) @ x).squeeze(-2)


def _orthonormal(axes: Tensor, few: bool) -> Tensor:
    """Gram and Schmidt; zero where an axis has next to nothing of its own.  axes (..., d, C) -> the same.

    few: axes are of few tokens, and some the same.  QR puts any direction in the place of a second one, and those after
    it would lose that.
    """
    if not few and not torch.compiler.is_exporting():
        basis, triangle = torch.linalg.qr(axes.mT)
        own = triangle.diagonal(dim1=-2, dim2=-1)
        sign = torch.where(own.abs() > LEAST * own[..., :1].abs(), own.sign(), 0)
        basis = (basis * sign.unsqueeze(-2)).mT
        return F.pad(basis, (0, 0, 0, axes.shape[-2] - basis.shape[-2]))
    done: list[Tensor] = []  # written out, for ONNX has no QR
    least = LEAST * axes[..., :1, :].norm(dim=-1, keepdim=True)
    for i in range(axes.shape[-2]):
        axis = axes[..., i : i + 1, :]
        if done:
            basis = torch.cat(done, dim=-2)
            axis = axis - (axis @ basis.mT) @ basis
        norm = axis.norm(dim=-1, keepdim=True)
        done.append(torch.where(norm > least, axis / norm.clamp_min(1e-37), 0))
    return torch.cat(done, dim=-2)


def _real_first(mask: Tensor) -> Tensor:
    """Places in the sequence, padded tokens behind the real ones.  mask (..., L) -> (..., L)"""
    place = torch.arange(mask.shape[-1], dtype=torch.float32, device=mask.device)
    return order_by(place.expand(mask.shape), mask)


def _finite(x: Tensor) -> Tensor:
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
