"""2-D rotary positions: the first half of each head's channels turns by the row, the second by the column."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

_tables: dict[tuple[int, int, int, torch.dtype, torch.device], Tensor] = {}
_MAX_TABLES = 64


def rotary_table(height: int, width: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(cos, sin) of each token's angles.  -> (H W, D / 2, 2)

    Angles are 1 / 10000 ** linspace(0, 1, D / 4) in float32, whatever the dtype they are used in.
    """
    angle = 1.0 / (10000.0 ** torch.linspace(0, 1, head_dim // 4, dtype=torch.float32, device=device))
    angle = angle.to(dtype)
    rows = torch.arange(height, device=device, dtype=dtype).unsqueeze(1) * angle
    columns = torch.arange(width, device=device, dtype=dtype).unsqueeze(1) * angle
    turns = torch.cat(
        [rows.unsqueeze(1).expand(-1, width, -1), columns.unsqueeze(0).expand(height, -1, -1)], dim=-1
    ).reshape(height * width, head_dim // 2)
    return torch.stack([turns.cos(), turns.sin()], dim=-1)


def rotate_packed_(qkv: Tensor, table: Tensor) -> Tensor:
    """Turn q and k of packed rows, in place.  qkv (B, L, h, 3, D), table (L, D / 2, 2)."""
    length, half = table.shape[0], table.shape[1]
    turned = qkv[:, :, :, :2].unflatten(-1, [half, 2])
    table = table.view(1, length, 1, 1, half, 2)
    # the same memory unless qkv is in half precision; torch 2.7 exports no write to what `to` gave
    pairs = turned if turned.dtype == table.dtype else turned.to(table.dtype)
    if torch.compiler.is_compiling():  # the compiler cannot fuse complex numbers
        cos, sin = table.unbind(-1)
        even, odd = pairs.unbind(-1)
        turned.copy_(torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1))
        return qkv
    torch.view_as_complex(pairs).mul_(torch.view_as_complex(table))  # one product, no copies
    if pairs is not turned:
        turned.copy_(pairs)
    return qkv


@register_notrace_module
class RotaryTable(nn.Module):
    """The table for a feature map (B, C, H, W), kept per grid, device and dtype."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"{head_dim} channels per head; 2-D rotary positions need a multiple of 4")
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        height, width = x.shape[2], x.shape[3]
        if not torch.compiler.is_compiling() and type(x) is Tensor:
            return self._kept(height, width, dtype, x.device)
        return rotary_table(height, width, self.head_dim, dtype, x.device)

    def _kept(self, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (height, width, self.head_dim, dtype, device)
        table = _tables.get(key)
        if table is None:
            with torch.inference_mode(False):  # a table made under inference mode could not train later
                table = rotary_table(height, width, self.head_dim, dtype, device)
            if type(table) is Tensor:
                if len(_tables) >= _MAX_TABLES:
                    _tables.pop(next(iter(_tables)))
                _tables[key] = table
        return table
