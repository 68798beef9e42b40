"""Arguments that make a small network of each family, for the digits and for a recipe's `--tiny`."""

from __future__ import annotations

from typing import Any

HALF_WIDTH: dict[str, Any] = {
    "depths": [1, 1, 2, 1],
    "embed_dims": [32, 64, 96, 128],
    "num_heads": [2, 4, 6, 8],
    "head_hidden_size": 256,
}
SMALL: dict[str, dict[str, Any]] = {  # by the beginning of the name
    "secvit_": HALF_WIDTH,
    "sec_swin_": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 8]},
    "sec_deit_": {"embed_dim": 48, "depth": 3, "num_heads": 4},
    "swin_": {"img_size": 64, "embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 8]},
    "deit_": {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 4},
    "evit_deit_": {"img_size": 64, "embed_dim": 48, "depth": 5, "num_heads": 4},
}


def small(name: str) -> dict[str, Any]:
    """The arguments for a network of that name; none for a family that no recipe of the paper has."""
    return next((dict(arguments) for beginning, arguments in SMALL.items() if name.startswith(beginning)), {})
