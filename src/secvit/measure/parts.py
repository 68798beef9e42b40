"""Where the time of a forward pass goes: scoring and sorting, gathering, restoring, attention, the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from tqdm import trange

from secvit.measure.rounds import Clock
from secvit.measure.wrap import Function, wrapped

ATTENTION = "secvit.ops.attention"
PARTS = ("score and sort", "gather", "inverse", "restore", "indices", "attention")


@contextmanager
def timed_parts(clock: Clock) -> Iterator[dict[str, float]]:
    """Seconds of each of PARTS, summed over all calls inside the context.  Eager mode only.

    "indices" is what `sec_attention_packed` spends outside all others: index arithmetic, joining of remainders.
    """
    seconds: dict[str, float] = defaultdict(float)

    def timing(function: Function) -> Function:
        def timed(*args: object, **kwargs: object) -> object:
            start = clock()
            result = function(*args, **kwargs)
            seconds[function.__name__] += clock() - start
            return result

        return timed

    def timing_rows(permute_rows: Function) -> Function:
        def timed(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
            start = clock()
            result = permute_rows(rows, index, inverse)
            moved.append(clock() - start)
            return result

        return timed

    moved: list[float] = []  # calls come in pairs: rows into clusters, rows back into place
    with (
        wrapped(timing, f"{ATTENTION}:token_order", f"{ATTENTION}:inverse_order", f"{ATTENTION}:_attend"),
        wrapped(timing, "secvit.models.secvit:sec_attention_packed"),
        wrapped(timing_rows, f"{ATTENTION}:permute_rows"),
    ):
        parts: dict[str, float] = {}
        yield parts
    parts["score and sort"] = seconds["token_order"]
    parts["gather"] = sum(moved[0::2])
    parts["inverse"] = seconds["inverse_order"]
    parts["restore"] = sum(moved[1::2])
    parts["attention"] = seconds["_attend"]
    parts["indices"] = max(0.0, seconds["sec_attention_packed"] - sum(parts.values()))


def forward_parts(
    model: nn.Module, images: Tensor, rounds: int, clock: Clock, title: str | None = None
) -> dict[str, float]:
    """Share of each part in a forward pass, the median over rounds.  "partition" sums all but the attention."""
    shares: dict[str, list[float]] = {part: [] for part in PARTS}
    with torch.inference_mode():
        model(images)
        for _ in trange(rounds, desc=title, disable=title is None, leave=False):
            with timed_parts(clock) as parts:
                start = clock()
                model(images)
                total = clock() - start
            for part in PARTS:
                shares[part].append(parts[part] / total)
    found = {part: median(values) for part, values in shares.items()}
    partition = [sum(values) for values in zip(*(shares[part] for part in PARTS if part != "attention"))]
    return {**found, "partition": median(partition)}
