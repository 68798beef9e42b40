"""Where the time of a forward pass goes: scoring and sorting, gathering, restoring, attention, the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from tqdm import trange

from secvit.measure.rounds import Clock
from secvit.measure.wrap import Function, wrapped

PARTS = ("score and sort", "gather", "inverse", "restore", "indices", "attention")
# "indices" is what the functions of that row do outside all others: index arithmetic, joining of groups; and of
# clusters that see each other, the choice of near ones and the summaries of far ones
SPENT_IN = {
    "score and sort": (
        "secvit.ops.attention:packed_order",
        "secvit.ops.clustering:cluster",
        "secvit.ops.clustering:tree_plan",
    ),
    "gather": (
        "secvit.ops.rows:sort_packed_rows",
        "secvit.ops.rows:permute_rows",
        "secvit.ops.near_far:permute_rows",
        "secvit.ops.slots:gather_slots",
        "secvit.ops.order:Plan.take",
    ),
    "inverse": ("secvit.ops.rows:inverse_order", "secvit.ops.order:inverse_order"),
    "restore": ("secvit.ops.order:Plan.put_back",),
    "indices": (
        "secvit.models.blocks:packed_attention_and_values",
        "secvit.adapt.attend:sec_attention",
        "secvit.adapt.attend:attend_sorted",
    ),
    "attention": (
        *(f"secvit.ops.{room}:softmax_attention" for room in ("attention", "rows", "slots", "near_far")),
        "secvit.ops.rows:prefix_attention",
    ),
}


@contextmanager
def timed_parts(clock: Clock) -> Iterator[dict[str, float]]:
    """Seconds of each of PARTS, summed over all calls inside the context, in our models and patched ones.  Eager only.

    A function's time is its own: what it spends in another of SPENT_IN counts there.
    """
    seconds = dict.fromkeys(PARTS, 0.0)
    inner: list[float] = [0.0]  # time that the running functions have spent in others, the outermost first
    attended = False

    def timing(part: str) -> Callable[[Function], Function]:
        def wrapper(function: Function) -> Function:
            def timed(*args: object, **kwargs: object) -> object:
                nonlocal attended
                # the same function gathers rows before the attention and restores them after it
                own = "restore" if part == "gather" and attended else part
                attended = attended and part != "indices"
                inner.append(0.0)
                start = clock()
                result = function(*args, **kwargs)
                spent = clock() - start
                seconds[own] += spent - inner.pop()
                inner[-1] += spent
                attended = part == "attention" or (attended and part != "gather")
                return result

            return timed

        return wrapper

    with ExitStack() as stack:
        for part, places in SPENT_IN.items():
            stack.enter_context(wrapped(timing(part), *places))
        yield seconds


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
    medians = {part: median(values) for part, values in shares.items()}
    partition = [sum(values) for values in zip(*(shares[part] for part in PARTS if part != "attention"))]
    return {**medians, "partition": median(partition)}
