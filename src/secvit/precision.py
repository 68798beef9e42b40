"""Half precision on a GPU, where networks are only looked at."""

from __future__ import annotations

import contextlib

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def on_gpu_autocast(device: torch.device | str, precision: str) -> contextlib.AbstractContextManager[object]:
    """Autocast to "bf16" or "fp16" on a GPU; nothing for "no", and nothing on a CPU, where it gains little."""
    kind = torch.device(device).type
    if kind == "cpu" or precision not in DTYPES:
        return contextlib.nullcontext()
    return torch.autocast(kind, DTYPES[precision])
