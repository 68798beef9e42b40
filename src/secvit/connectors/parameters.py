"""Parameters that know how they start."""

from __future__ import annotations

import torch
from torch import nn

STARTS = {"identity": nn.init.eye_, "zero": nn.init.zeros_, "random": nn.init.xavier_uniform_}


class InitialisedLinear(nn.Linear):
    """A linear layer whose `reset_parameters()` gives the start it was made for, also after `to_empty`.

    start: "identity", "zero" or "random" (Xavier).  A bias starts at zero.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, start: str = "random"):
        self.start = start
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        STARTS[self.start](self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LearnedTokens(nn.Module):
    """Queries or positions that are learned.  weight (n, dim), from a normal of deviation 0.02."""

    def __init__(self, n: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
