"""Which library computes float32 products on a CPU: the one that torch takes, or oneDNN.

torch's wheels for x86 send `F.linear` to MKL, which on AMD processors runs at about half the rate of oneDNN.  The road
is chosen by what the machine is, never by a measurement: the two round differently, which swaps tokens that are nearly
tied, so that a choice by the clock could give two results in two runs.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secvit.ops.order import exporting

ROADS = ("auto", "onednn", "torch")
VARIABLE = "SECVIT_CPU_ROAD"
PLAIN = (Tensor, nn.Parameter)  # no subclass, quantised, distributed or fake, nor a proxy of torch.fx


def objection() -> str | None:
    """Why "auto" leaves this machine to torch; None where it takes oneDNN."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the processor is {platform.machine() or 'unknown'}, not x86-64"
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    if not torch.backends.mkl.is_available():
        return "this torch has no MKL, which oneDNN would stand in for"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "the processor, or ATEN_CPU_CAPABILITY, has no AVX-512"
    if "AuthenticAMD" not in _vendor():
        return f"the processor is of {_vendor()}, not of AMD"
    return None


def _vendor() -> str:
    """The vendor_id of the processor, or a line that contains it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        return platform.processor() or "an unknown vendor"


def _resolved(choice: str, source: str) -> str:
    """The road of a choice; ValueError for what is none, or cannot be had here."""
    if choice not in ROADS:
        raise ValueError(f"{source}={choice!r}; choose one of {', '.join(ROADS)}")
    if choice == "onednn" and not torch.backends.mkldnn.is_available():
        raise ValueError(f'{source}="onednn", and this torch has no oneDNN; choose "auto" or "torch"')
    if choice == "auto":
        return "onednn" if objection() is None else "torch"
    return choice


_choice = os.environ.get(VARIABLE) or "auto"
_road = _resolved(_choice, VARIABLE)


def road() -> str:
    """The road in force: "onednn" or "torch"."""
    return _road


def set_road(choice: str) -> None:
    """Choose the road of this process: "auto" (the rule), "onednn" or "torch" (what torch takes, bit for bit).

    The environment variable SECVIT_CPU_ROAD is the choice that a process begins with.  ValueError for other words, and
    for "onednn" where torch has none.
    """
    global _choice, _road
    _choice, _road = choice, _resolved(choice, "road")


@contextmanager
def using_road(choice: str) -> Iterator[None]:
    """`set_road` while entered, in all threads of the process."""
    before = _choice
    set_road(choice)
    try:
        yield
    finally:
        set_road(before)


def road_line() -> str:
    """The road in force and why, in one line."""
    why = objection() or "by rule: x86-64, AVX-512, MKL, oneDNN, AMD"
    if _choice != "auto":
        why = f"chosen by {VARIABLE} or set_road"
    return f"Float32 products of secvit's layers on the CPU: {_road} ({why})"


def takes_onednn(*tensors: Tensor) -> bool:
    """Whether products of these tensors go to oneDNN: all plain, float32, on a CPU, not exported, not autocast."""
    if _road != "onednn":
        return False
    if torch.is_autocast_enabled("cpu") or exporting() or torch.jit.is_tracing():
        return False
    if not torch.compiler.is_compiling() and not torch.backends.mkldnn.enabled:
        return False
    return all(type(x) in PLAIN and x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)


# -- products that torch has no public call for ------------------------------------------------------

_lock = threading.Lock()
_inside = 0  # products in flight, of all threads
_before = "none"
_exact: bool | None = None


@contextmanager
def matmul_on_onednn() -> Iterator[None]:
    """torch's matmul of float32 on a CPU goes to oneDNN while entered; only where `has_exact_matmul`.

    The switch is torch's precision "bf16", which lets oneDNN round.  It is one for all threads, and makes sdpa on short
    sequences four times as slow, so it is on for one product at a time; the last thread to leave puts back what was.
    """
    global _inside, _before
    settings: Any = torch.backends.mkldnn
    with _lock:
        if _inside == 0:
            _before = settings.matmul.fp32_precision
            if _before == settings.fp32_precision:
                _before = "none"  # it was inherited, and is to be again
            settings.matmul.fp32_precision = "bf16"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                settings.matmul.fp32_precision = _before


def has_exact_matmul() -> bool:
    """Whether `matmul_on_onednn` is there and keeps float32: on x86-64 without AMX, and seen to on a small product."""
    global _exact
    if _exact is None:
        _exact = _find_exact_matmul()
    return _exact


def _find_exact_matmul() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    old = not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")
    if old or platform.machine().lower() not in ("x86_64", "amd64") or capabilities.get("amx_tile", True):
        return False
    with torch.no_grad():
        a, b = torch.arange(2.0 * 128 * 128, device="cpu").sin().view(2, 128, 128).unbind()
        with matmul_on_onednn():
            product = a @ b
        truth = a.double() @ b.double()
        return float((product - truth).abs().max() / truth.abs().max()) < 1e-5  # bfloat16's is 3e-3, float32's 3e-7
