"""What all connectors share: T tokens out of L, an extra one in front, and LLaVA's two-layer MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from secvit.connectors.positions import Grid, Merged, Position, grid_of, locate

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": lambda: nn.GELU("tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class Mlp(Protocol):
    """LLaVA's projector, as far as a connector takes it over."""

    linear_1: nn.Linear
    act: nn.Module
    linear_2: nn.Linear


class Connector(nn.Module):
    """Tokens (B, L, in_dim) of a vision tower -> tokens (B, T (+1), out_dim) for a language model.

    A connector reduces L tokens to T and projects them with LLaVA's two-layer MLP, in this order or the other.
    The MLP has LLaVA's names (`linear_1`, `act`, `linear_2`), all else is under `pool`: standing where a LLaVA has
    its `multi_modal_projector`, it lacks nothing but `multi_modal_projector.pool.*` of a stock checkpoint.

    num_tokens: T.
    extra_token: "cls", "mean" (of all tokens) or None.  Merged with nothing, through the MLP, first.
    where: "before" the MLP merge tokens of in_dim channels, "after" it such of out_dim; None: there is no MLP, and the
        tokens are as wide as the language model's already.
    act, bias: of the MLP.
    positions: "coords" adds to each of the T tokens a learned embedding of where it comes from; it starts at zero.
    num_patches: L, if it is known: what cannot be done with it is then said at once.
    Each module that owns parameters can start again by `reset_parameters()`.
    """

    name: ClassVar[str]
    needs_cls_attention: ClassVar[bool] = False
    merges_on_grid: ClassVar[bool] = False

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_tokens: int,
        extra_token: str | None = "cls",
        where: str | None = "before",
        act: str = "gelu",
        bias: bool = True,
        positions: str | None = None,
        num_patches: int | None = None,
        *,
        pooled_dim: int | None = None,
    ):
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"num_tokens={num_tokens}; choose num_tokens >= 1")
        if where is None and in_dim != out_dim:
            raise ValueError(f"where=None, {in_dim} channels for {out_dim}: choose where='before', which has the MLP")
        _check_choice("extra_token", extra_token, ("cls", "mean", None))
        _check_choice("where", where, ("before", "after", None))
        _check_choice("act", act, tuple(ACTIVATIONS))
        _check_choice("positions", positions, (None, "coords"))
        self.in_dim, self.out_dim, self.num_tokens = in_dim, out_dim, num_tokens
        self.extra_token, self.where, self.positions = extra_token, where, positions
        self.needs_cls = extra_token == "cls"
        self.needs_grid = self.merges_on_grid or positions is not None
        self.options: dict[str, Any] = dict(
            name=self.name, in_dim=in_dim, out_dim=out_dim, num_tokens=num_tokens, extra_token=extra_token, where=where,
            act=act, bias=bias, positions=positions, num_patches=num_patches,
        )  # fmt: skip
        self.pool_dim = (pooled_dim or in_dim) if where == "before" else out_dim
        self.pool = nn.ModuleDict()
        if positions:
            self.pool["position"] = Position(self.pool_dim)
        if where is not None:
            self.linear_1 = nn.Linear(self.pool_dim if where == "before" else in_dim, out_dim, bias=bias)
            self.act: nn.Module = ACTIVATIONS[act]()
            self.linear_2 = nn.Linear(out_dim, out_dim, bias=bias)
        if num_patches is not None:
            self.check_length(num_patches)

    def reduce(self, x: Tensor, cls_attention: Tensor | None, grid: Grid | None, weigh: bool) -> tuple[Tensor, Any]:
        """(B, L, pool_dim) -> (B, T, pool_dim), and the weights (B, T, L) of what was merged if `weigh`, else None."""
        raise NotImplementedError

    def check_length(self, length: int) -> None:
        """ValueError where T tokens cannot be had from L."""
        if self.num_tokens > length:
            raise ValueError(f"{length} tokens cannot give {self.num_tokens}; choose num_tokens <= {length}")

    def num_output_tokens(self, length: int | None = None) -> int:
        """T, and the extra one if there is one: placeholders an image takes.  With a length, checked against it."""
        if length is not None:
            self.check_length(length)
        return self.num_tokens + (self.extra_token is not None)

    def project(self, x: Tensor) -> Tensor:
        """LLaVA's two-layer MLP.  (..., in_dim) -> (..., out_dim)"""
        return self.linear_2(self.act(self.linear_1(x)))

    def take_mlp(self, projector: Mlp) -> None:
        """Go on with a trained LLaVA projector's own `linear_1`, `act` and `linear_2`, quantised or not."""
        widths = (projector.linear_1.in_features, projector.linear_2.out_features)
        own = (self.linear_1.in_features, self.linear_2.out_features)
        if widths != own:
            raise ValueError(
                f"an MLP from {widths[0]} to {widths[1]} channels for a connector from {own[0]} to {own[1]}"
            )
        self.linear_1, self.act, self.linear_2 = projector.linear_1, projector.act, projector.linear_2

    def forward(
        self,
        tokens: Tensor,
        cls: Tensor | None = None,
        cls_attention: Tensor | None = None,
        grid: Grid | None = None,
        return_merged: bool = False,
    ) -> Tensor | tuple[Tensor, Merged]:
        """tokens (B, L, in_dim) without [cls] -> (B, T (+1), out_dim); with `return_merged`, `Merged` beside it.

        cls (B, in_dim): the tower's [cls] token, where `needs_cls`.
        cls_attention (B, L): attention of [cls] to each token, mean over heads, where `needs_cls_attention`.
        grid (H, W): of the tokens, row by row; a square if None.
        """
        self._check(tokens, cls, cls_attention)
        located = return_merged or self.positions is not None
        if located or self.needs_grid:
            grid = grid_of(tokens.shape[1], grid)
        extra = tokens[:, :0]
        if self.extra_token is not None:
            one = cls if self.extra_token == "cls" and cls is not None else tokens.mean(dim=1)
            extra = one.to(tokens.dtype).unsqueeze(1)
        if self.where == "after":
            both = self.project(torch.cat([extra, tokens], dim=1))
            extra, tokens = both[:, : extra.shape[1]], both[:, extra.shape[1] :]
        out, weights = self.reduce(tokens, cls_attention, grid, located)
        merged = locate(weights, grid) if located and grid is not None else None
        if self.positions is not None:
            out = out + self.pool["position"](merged).to(out.dtype)
        out = torch.cat([extra.repeat(1, 1, out.shape[-1] // extra.shape[-1]), out], dim=1)
        if self.where == "before":
            out = self.project(out)
        return (out, merged) if return_merged and merged is not None else out

    @torch.no_grad()
    def merged(
        self, tokens: Tensor, cls: Tensor | None = None, cls_attention: Tensor | None = None, grid: Grid | None = None
    ) -> Merged:
        """What each output token is made of, without gradients: for pictures and for grounding."""
        return self(tokens, cls, cls_attention, grid, return_merged=True)[1]

    def _check(self, tokens: Tensor, cls: Tensor | None, cls_attention: Tensor | None) -> None:
        if tokens.dim() != 3 or tokens.shape[-1] != self.in_dim:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)}; give (B, L, {self.in_dim}), without [cls]")
        self.check_length(tokens.shape[1])
        expected: tuple[int, ...] = (tokens.shape[0], self.in_dim)
        if self.needs_cls and (cls is None or tuple(cls.shape) != expected):
            actual = "none was given" if cls is None else f"this one is {tuple(cls.shape)}"
            raise ValueError(
                f'extra_token="cls" needs the tower\'s [cls] token, cls={expected}, and {actual}; keep it when '
                'features are selected (vision_feature_select_strategy="full"), or choose extra_token="mean" or None'
            )
        expected = tuple(tokens.shape[:2])
        if self.needs_cls_attention and (cls_attention is None or tuple(cls_attention.shape) != expected):
            actual = "none was given" if cls_attention is None else f"this one is {tuple(cls_attention.shape)}"
            raise ValueError(
                f"{self.name} needs cls_attention={expected}, how much [cls] attends to each token in the layer the "
                f'tokens come from, mean over heads, and {actual}; load the tower with attn_implementation="eager" and '
                "call it with output_attentions=True (SDPA returns none), then attentions[layer].mean(1)[:, 0, 1:]"
            )


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}; choose one of {', '.join(map(repr, choices))}")
