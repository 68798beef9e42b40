"""The attention that a patched model should have, said without clusters: all tokens, and a mask L x L from labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import secvit


class ExplicitMask:
    """In place of `scaled_dot_product_attention`: each token sees its cluster and the prefix, the prefix sees all.

    every: so many layers of `calls` calls each go by the labels of the first one's last call, shared by heads.
    """

    def __init__(
        self, attention: Callable[..., Tensor], num_clusters: int, prefix: int, every: int = 1, calls: int = 1
    ) -> None:
        self.attention, self.num_clusters, self.prefix = attention, num_clusters, prefix
        self.every, self.calls, self.seen = every, calls, 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **kwargs) -> Tensor:
        if q.shape[2] != k.shape[2]:  # a pooling head
            return self.attention(q, k, v, attn_mask, **kwargs)
        if self.seen // self.calls % self.every == 0:
            self.labels = self.label(k[:, :, self.prefix :])
        self.seen += 1
        labels = F.pad(self.labels, (self.prefix, 0), value=-1)
        allowed = labels.unsqueeze(-1) == labels.unsqueeze(-2)
        allowed[..., : self.prefix, :] = True
        allowed[..., : self.prefix] = True
        return self.attention(q, k, v, allowed, **kwargs)

    def label(self, k: Tensor) -> Tensor:
        if self.every == 1:
            return secvit.cluster(k, min(self.num_clusters, k.shape[2])).labels
        return secvit.cluster(k.transpose(1, 2).flatten(2), self.num_clusters).labels.unsqueeze(1)


def explicitly(forward: Callable[[], Tensor], num_clusters: int, prefix: int, every: int = 1, calls: int = 1) -> Tensor:
    """What a model that is not patched gives under `ExplicitMask`."""
    mask = ExplicitMask(F.scaled_dot_product_attention, num_clusters, prefix, every, calls)
    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(F, "scaled_dot_product_attention", mask)
        out = forward()
    assert mask.seen > 0
    return out
