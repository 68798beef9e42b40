"""Eqs. 1 to 3: score every token, sort once, cut the sorted sequence into clusters of equal size.

The score is the cosine of a key to the mean key; a sort by it is a partition.  Everything that can
be put as "a score, then a sort, then equal cuts" goes through here (see `partitions` for the rivals).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DYNAMO_ALWAYS_EXPORTS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)


def partition_sizes(num_tokens: int, num_clusters: int) -> list[int]:
    """Eq. 3 for any L: N of each cluster; the first L mod M clusters hold one token more than the rest."""
    size, remainder = divmod(num_tokens, num_clusters)
    return [size + 1] * remainder + [size] * (num_clusters - remainder)


def largest_size(num_tokens: int, num_clusters: int) -> int:
    """N of the largest of M equal clusters of L tokens."""
    return (num_tokens + num_clusters - 1) // num_clusters  # not -(-L // M): ONNX rounds towards zero


def resolve_num_clusters(num_tokens: int, num_clusters: int | None, cluster_size: int | None) -> int:
    """M for L tokens, from a number of clusters or from the largest size a cluster may have."""
    if (num_clusters is None) == (cluster_size is None):
        raise ValueError(
            f"give either num_clusters or cluster_size, not {'both' if num_clusters is not None else 'neither'} "
            f"(num_clusters={num_clusters}, cluster_size={cluster_size})"
        )
    for name, value in (("num_clusters", num_clusters), ("cluster_size", cluster_size)):
        if isinstance(value, float | str | bool):  # not `not int`: numpy's and symbolic numbers are whole, too
            raise ValueError(f"{name}={value!r}; choose a whole number >= 1")
    if cluster_size is not None:
        if cluster_size < 1:
            raise ValueError(f"cluster_size={cluster_size}; choose cluster_size >= 1")
        return max(1, (num_tokens + cluster_size - 1) // cluster_size)
    assert num_clusters is not None
    if num_clusters < 1:
        raise ValueError(f"num_clusters={num_clusters}; choose num_clusters >= 1")
    if num_clusters > num_tokens:
        raise ValueError(
            f"{num_tokens} tokens cannot fill {num_clusters} clusters; choose num_clusters <= {num_tokens}"
        )
    return num_clusters


def mean_key(k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Eq. 1: the centre k_c.  k (..., L, D), mask (..., L) -> (..., D).

    A channel that a NaN or inf spoils leaves the centre, so that one bad token cannot tie all scores.
    """
    if mask is None:
        centre = k.mean(dim=-2)
    else:
        count = mask.sum(dim=-1, keepdim=True).clamp_min(1)
        centre = k.masked_fill(~mask.unsqueeze(-1), 0).sum(dim=-2) / count
    return torch.nan_to_num(centre, nan=0.0, posinf=0.0, neginf=0.0)


def similarity(k: Tensor, centre: Tensor) -> Tensor:
    """Eq. 2: cosine of each key to the centre, up to the factor |k_c|.  k (..., L, D), centre (..., D) -> (..., L).

    Float32 (float64 for float64 keys) whatever the autocast dtype: bf16 scores would tie, and move
    up to 59 % of 16,384 tokens to another cluster.  Products and sums, no matmul: autocast leaves
    those alone.  No gradient.
    """
    k = scoring_dtype(k)
    if k.device.type == "cpu":
        k = k.contiguous()  # a product of strided rows and a broadcast centre takes several times as long as a copy
    squared = (k * k).sum(dim=-1)
    least, factor = _SMALL[k.dtype]
    small = squared < least**2
    if _has_values(k, small):
        k = k * torch.ones_like(squared).masked_fill(small, factor).unsqueeze(-1)
        squared = (k * k).sum(dim=-1)
    dot = (k * raised(centre).unsqueeze(-2)).sum(dim=-1)
    return dot * squared.clamp_min(torch.finfo(k.dtype).tiny).rsqrt()  # a zero key scores 0


# norms whose squares would lose digits or vanish, and the power of two that lifts them, which changes no digit
_SMALL = {torch.float32: (2.0**-50, 2.0**100), torch.float64: (2.0**-400, 2.0**800)}


def raised(centre: Tensor) -> Tensor:
    """The centre, or its multiple by a power of two where products with small keys would vanish.  (..., D)

    Scores of one sequence keep their ratios, so the order is the same.
    """
    least, factor = _SMALL[centre.dtype]
    small = centre.abs().amax(dim=-1, keepdim=True) < least
    return torch.where(small, centre * factor, centre)


def _has_values(k: Tensor, rows: Tensor) -> bool:
    """Whether any of these rows is not zero; also True where to look costs more than to assume it, or cannot be."""
    if k.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    try:
        return bool(k[rows].any())
    except RuntimeError:  # under torch.func.vmap there is no one answer
        return True


def scoring_dtype(k: Tensor) -> Tensor:
    """What scores are computed from: no gradient, float32 or float64."""
    k = k.detach()
    return k if k.dtype == torch.float64 else k.float()


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Products inside are of the type that their factors have, under autocast too."""
    if device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def sec_scores(k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Eqs. 1, 2: similarity of each key to the mean key.  k (..., L, D), mask (..., L) -> (..., L)."""
    k = scoring_dtype(k)
    return similarity(k, mean_key(k, mask))


def exporting() -> bool:
    """Whether torch.export is at work.

    Before torch 2.14 Dynamo says so under torch.compile, too; there a strict export is taken for torch.compile.
    What must hold for any length in each of them asks torch.compiler.is_exporting.
    """
    return torch.compiler.is_exporting() and not (DYNAMO_ALWAYS_EXPORTS and torch.compiler.is_dynamo_compiling())


def order_by(score: Tensor, mask: Tensor | None = None, descending: bool = False) -> Tensor:
    """Eq. 2: token indices by rising (or falling) score, ties in token order.  score (..., L) -> idx (..., L).

    NaN scores sort last, padded tokens (mask False) behind them.
    """
    if descending:
        score = -score
    if mask is not None:
        last = torch.finfo(score.dtype).max
        score = torch.nan_to_num(score, nan=last, posinf=last).masked_fill(~mask, float("inf"))
    if exporting():  # ONNX has no stable sort, but the TopK that it sorts by keeps the order of ties
        return torch.sort(score, dim=-1).indices
    # no operator of ours in any export
    if score.device.type == "cpu" and score.dtype == torch.float32 and not torch.compiler.is_exporting():
        return sort_packed(score)
    return torch.sort(score, dim=-1, stable=True).indices


@torch.library.custom_op("secvit::sort_packed", mutates_args=(), device_types="cpu")
def sort_packed(score: Tensor) -> Tensor:
    """`torch.sort(score, stable=True).indices`, NaN last, and about twice as fast.  score float32 (..., L) -> (..., L).

    Score and index are packed into one integer, so ties keep their order under any sort, and numpy's sort of integers
    is vectorised where torch's is not.
    """
    bits = torch.where(score.isnan(), torch.nan, score + 0.0).view(torch.int32)  # one NaN, one zero
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32  # as integers, negative floats would fall
    key = (key | torch.arange(score.shape[-1])).contiguous()
    key.numpy().sort(axis=-1)
    return key & 0xFFFFFFFF


@sort_packed.register_fake
def _(score: Tensor) -> Tensor:
    return torch.empty_like(score, dtype=torch.int64, memory_format=torch.contiguous_format)


@sort_packed.register_vmap
def _(info, in_dims, score: Tensor):
    return sort_packed(score.movedim(in_dims[0], 0)), 0


def cluster_order(k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Eqs. 1, 2: token indices by rising similarity to the mean key.  k (..., L, D) -> idx (..., L)."""
    return order_by(sec_scores(k, mask), mask)


def inverse_order(order: Tensor) -> Tensor:
    """Rank of each token, by one scatter and no second sort.  order (..., L) -> inverse (..., L)."""
    ranks = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
    return torch.empty_like(order).scatter(-1, order, ranks)


class _Derived:
    """An attribute of a plan that is computed from the others at its first use, and kept.

    A compiled graph computes it again: there equal expressions become one anyway.
    """

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, plan: Any, owner: type | None = None) -> Any:
        if plan is None:
            return self
        if torch.compiler.is_compiling():
            return self.compute(plan)
        with torch.inference_mode(False):  # a plan used under inference mode first may train later
            value = vars(plan)[self.name] = self.compute(plan)
        return value


@dataclass(frozen=True)
class Plan:
    """A partition of L tokens into M clusters, one per leading index (batch, or batch and head).

    order (..., L): tokens cluster by cluster, padded tokens last.
    num_clusters: M.
    max_size: no cluster holds more tokens than this.
    unequal_sizes (..., M): only where sizes depend on the sample (masks, k-means); else sizes are
        those of `partition_sizes`.
    """

    order: Tensor
    num_clusters: int
    max_size: int
    unequal_sizes: Tensor | None = None

    @classmethod
    def equal(cls, order: Tensor, num_clusters: int, mask: Tensor | None = None) -> Plan:
        """Cut an order into M clusters whose sizes differ by at most one, per sample under a mask (..., L)."""
        max_size = largest_size(order.shape[-1], num_clusters)
        if mask is None:
            return cls(order, num_clusters, max_size)
        count = mask.expand(order.shape).sum(dim=-1, keepdim=True)
        return cls(order, num_clusters, max_size, equal_sizes(count, num_clusters))

    @_Derived
    def sizes(self) -> Tensor:
        """Tokens in each cluster.  (..., M)"""
        if self.unequal_sizes is not None:
            return self.unequal_sizes
        count = torch.full_like(self.order[..., :1], self.order.shape[-1])
        return equal_sizes(count, self.num_clusters)

    @_Derived
    def inverse(self) -> Tensor:
        """Rank of each token: `inverse[order[t]] == t`.  (..., L)"""
        return inverse_order(self.order)

    @_Derived
    def labels(self) -> Tensor:
        """Cluster of each token, 0 = least like the centre; -1 for padded tokens.  (..., L)"""
        tokens, real = self.slots
        clusters = torch.arange(self.num_clusters, device=tokens.device).view(-1, 1).expand(tokens.shape)
        return self._scatter_to_tokens(clusters, tokens, real, -1)

    @_Derived
    def slots(self) -> tuple[Tensor, Tensor]:
        """Token in each slot of each cluster, and whether the slot is filled.  (..., M, N), N = max_size."""
        slot = torch.arange(self.max_size, device=self.order.device)
        starts = self.sizes.cumsum(dim=-1) - self.sizes
        filled = slot < self.sizes.unsqueeze(-1)
        # slots to spare repeat the cluster's first token: a NaN of the next cluster stays there
        ranks = (starts.unsqueeze(-1) + slot * filled).clamp_max(self.order.shape[-1] - 1)
        return self.order.gather(-1, ranks.flatten(-2)).view(ranks.shape), filled

    @_Derived
    def slot_of_token(self) -> Tensor:
        """Slot m N + i of each token; padded tokens point at slot 0.  (..., L)"""
        tokens, real = self.slots
        index = torch.arange(self.num_clusters * self.max_size, device=tokens.device)
        return self._scatter_to_tokens(index.view(tokens.shape[-2:]).expand(tokens.shape), tokens, real, 0)

    def _scatter_to_tokens(self, values: Tensor, tokens: Tensor, real: Tensor, empty: int) -> Tensor:
        length = self.order.shape[-1]
        target = self.order.new_full((*self.order.shape[:-1], length + 1), empty)
        index = torch.where(real, tokens, length).flatten(-2)  # empty slots write to a place that is cut off
        return target.scatter(-1, index, values.flatten(-2))[..., :length]

    def per_head(self, k: Tensor) -> Plan:
        """The same partition with an order for each head of k (B, h, L, D), where one (B, L) was for all."""
        if self.order.shape == k.shape[:3]:
            return self
        if self.order.shape != (k.shape[0], k.shape[2]):
            raise ValueError(f"a plan for tokens {tuple(self.order.shape)} does not fit keys of shape {tuple(k.shape)}")

        def widen(x: Tensor) -> Tensor:
            return x.unsqueeze(1).expand(-1, k.shape[1], -1)

        sizes = self.unequal_sizes
        return Plan(widen(self.order), self.num_clusters, self.max_size, None if sizes is None else widen(sizes))

    def take(self, x: Tensor) -> Tensor:
        """Eq. 2: x[idx], tokens in sorted order.  x (..., L, D) -> (..., L, D)."""
        return x.gather(-2, self._index(x, self.order))

    def put_back(self, x: Tensor) -> Tensor:
        """Undo `take`.  x (..., L, D) -> (..., L, D)."""
        return x.gather(-2, self._index(x, self.inverse))

    def group(self, x: Tensor) -> Tensor:
        """Eq. 3: tokens cluster by cluster, zeros in slots that are not filled.  x (..., L, D) -> (..., M, N, D)."""
        tokens, real = self.slots
        grouped = x.gather(-2, self._index(x, tokens.flatten(-2))).unflatten(-2, tokens.shape[-2:])
        return torch.where(self._lead(x, real, 2).unsqueeze(-1), grouped, 0)

    def ungroup(self, grouped: Tensor) -> Tensor:
        """Undo `group`; padded tokens are zero.  grouped (..., M, N, D) -> (..., L, D)."""
        flat = grouped.flatten(-3, -2)
        out = flat.gather(-2, self._index(flat, self.slot_of_token))
        return torch.where(self._lead(out, self.labels >= 0, 1).unsqueeze(-1), out, 0)

    def merge(self, x: Tensor) -> Tensor:
        """Mean token of each cluster, zero where a cluster is empty.  x (..., L, D) -> (..., M, D)."""
        sizes = self._lead(x, self.sizes, 1).clamp_min(1)
        return self.group(x).sum(dim=-2) / sizes.unsqueeze(-1).to(x.dtype)

    def unmerge(self, merged: Tensor) -> Tensor:
        """Give each token its cluster's vector; padded tokens get zero.  merged (..., M, D) -> (..., L, D)."""
        out = merged.gather(-2, self._index(merged, self.labels.clamp_min(0)))
        return torch.where(self._lead(out, self.labels >= 0, 1).unsqueeze(-1), out, 0)

    def _lead(self, x: Tensor, index: Tensor, tail: int) -> Tensor:
        """Give a shared plan's index (B, ...) the leading axes of x (B, h, ...)."""
        own, lead = index.shape[:-tail] if tail else index.shape, x.shape[: x.dim() - 2]
        if len(own) > len(lead):
            raise ValueError(f"a plan for {tuple(own)} does not fit tokens of shape {tuple(x.shape)}")
        shape = (*own, *([1] * (len(lead) - len(own))), *index.shape[len(own) :])
        return index.view(shape).expand(*lead, *index.shape[len(own) :])

    def _index(self, x: Tensor, index: Tensor) -> Tensor:
        return self._lead(x, index, 1).unsqueeze(-1).expand(*x.shape[:-2], index.shape[-1], x.shape[-1])


def equal_sizes(count: Tensor, num_clusters: int) -> Tensor:
    """Sizes of `partition_sizes` for counts that differ from sample to sample.  count (..., 1) -> (..., M)."""
    clusters = torch.arange(num_clusters, device=count.device)
    size = count // num_clusters
    return size + (clusters < count - size * num_clusters)  # no %, which ONNX lacks for a number it does not know


def check_mask(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    """A padding mask (B, L), True = real token, with the axes of tokens (B, L, C) or (B, h, L, D)."""
    if mask is None:
        return None
    expected = (*tokens.shape[:1], tokens.shape[-2]) if tokens.dim() > 2 else (tokens.shape[-2],)
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} for tokens of shape {tuple(tokens.shape)}; "
            f"give one of shape {expected}, True for real tokens"
        )
    mask = mask.bool()
    return mask.unsqueeze(1) if tokens.dim() == 4 else mask
