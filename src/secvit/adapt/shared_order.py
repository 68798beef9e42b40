"""One order for several layers (`share_order_every` of `secvit.patch`), and tokens that travel in it between blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secvit.adapt.attend import SharedOrder


class Owner(Protocol):
    """A network of timm's whose blocks pass on sorted tokens.  secvit_tapped: somebody looks between them."""

    blocks: Sequence[nn.Module]
    secvit_tapped: bool
    forward_intermediates: Callable[..., Any]


def carry_order(
    model: nn.Module, names: Sequence[str], order: SharedOrder, prefix: int
) -> tuple[list[RemovableHandle], str | None]:
    """Hooks that end a group's order, and let tokens travel in it where blocks allow that; and who owns the blocks."""
    places = [re.fullmatch(r"(.*?)\.?\bblocks\.(\d+)(?:\.attn)?", name) for name in names]
    numbers = [int(place[2]) for place in places if place]
    if places[0] and len(numbers) == len(names) and numbers == list(range(numbers[0], numbers[0] + len(names))):
        owner_name = places[0][1]
        network = model.get_submodule(owner_name)
        if hasattr(network, "forward_intermediates"):
            owner = cast(Owner, network)
            stream = _Stream(owner, order, prefix)
            first, last = owner.blocks[numbers[1]], owner.blocks[numbers[-1]]
            return [
                first.register_forward_pre_hook(stream.enter, with_kwargs=True),
                last.register_forward_hook(stream.leave),
            ], owner_name
    return [model.get_submodule(names[-1]).register_forward_hook(partial(_forget, order))], None


class _Stream:
    """Tokens travel in the leading layer's order through the blocks that follow it."""

    def __init__(self, owner: Owner, order: SharedOrder, prefix: int) -> None:
        self.owner, self.order, self.prefix = owner, order, prefix
        self.depth = len(owner.blocks)

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the block after the leading one."""
        plan = self.order.plan
        alone = len(args) == 1 and all(value is None or value is False for value in kwargs.values())
        # a shortened model never reaches the block that puts tokens back
        unbroken = len(self.owner.blocks) == self.depth and not self.owner.secvit_tapped
        if plan is None or plan.unequal_sizes is not None or not (alone and unbroken):
            return None
        self.order.sorted_stream = True
        return (self._patches(plan.take, args[0]),), kwargs

    def leave(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """After the last block of the group."""
        plan, travelled = self.order.plan, self.order.sorted_stream
        self.order.plan, self.order.sorted_stream = None, False
        return self._patches(plan.put_back, out) if travelled and plan is not None else None

    def _patches(self, move: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.prefix], move(x[:, self.prefix :])], dim=1)


def _forget(order: SharedOrder, module: nn.Module, args: Any, out: Any) -> None:
    order.plan = None


def refuse_recomputing(model: nn.Module, leader: nn.Module) -> RemovableHandle:
    """See that no part of the model recomputes layers in a backward, at each forward of the leading one."""
    recomputing = [
        m for m in model.modules() if hasattr(m, "grad_checkpointing") or hasattr(m, "gradient_checkpointing")
    ]
    return leader.register_forward_pre_hook(partial(_refuse_recomputing, recomputing))


def _refuse_recomputing(modules: Sequence[nn.Module], module: nn.Module, args: Any) -> None:
    """Already in the forward: an error in the middle of a backward can crash torch when the process ends."""
    if torch.is_grad_enabled() and any(
        getattr(m, "grad_checkpointing", False) or (m.training and getattr(m, "gradient_checkpointing", False))
        for m in modules
    ):
        raise ValueError(
            "gradient checkpointing recomputes layers without the order they share; use share_order_every=1"
        )


def let_tap(owner: Owner) -> None:
    """`forward_intermediates` of a network whose blocks pass on sorted tokens still shows them in their places."""
    owner.secvit_tapped = False
    owner.forward_intermediates = partial(_tapped_intermediates, owner)


def _tapped_intermediates(owner: Owner, *args: Any, **kwargs: Any) -> Any:
    """forward_intermediates shows the tokens between blocks, so they stay where they are."""
    owner.secvit_tapped = True
    try:
        return type(owner).forward_intermediates(owner, *args, **kwargs)
    finally:
        owner.secvit_tapped = False
