"""Peak memory of one call of a model, in a process of its own, over what weights and images take.

On a CPU this is resident memory, sampled by the kernel, with an allocator that gives freed blocks
back at once; on a GPU it is what torch has allocated.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secvit.measure.speed import DTYPES, inference, made_up_images
from secvit.measure.variants import variant

# blocks of 64 KiB and more come from the kernel and go back to it, so that none is counted after it was freed
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_memory(
    model: nn.Module, name: str, size: int, options: Mapping[str, Any], batch_size: int = 1, mode: str = "inference",
    dtype: str = "float32", device: str = "cpu", threads: int = 1, warm_size: int | None = None,
) -> int | None:  # fmt: skip
    """Bytes that a forward pass, or with mode="training" a training step, needs at its peak.

    name, options: of `variants.variant`.  warm_size: of the images of a first call, which loads code and is
    not measured.  None is returned if the process was killed, as it is for want of memory.
    """
    same: dict[str, Any] = {
        "model": model, "name": name, "options": options, "batch_size": batch_size, "mode": mode, "dtype": dtype,
        "device": device,
    }  # fmt: skip
    make = "secvit.measure.peak:prepared"
    return peak_bytes(make, {**same, "size": size}, {**same, "size": warm_size or size}, threads, device)


def peak_bytes(
    make: str, arguments: Mapping[str, Any], warm: Mapping[str, Any], threads: int = 1, device: str = "cpu"
) -> int | None:
    """Bytes that a call needs at its peak, over what was there before it.

    make: "module:function" which of the arguments makes the call.  warm: arguments of a first call, which loads code
    and is not measured.  None is returned if the process was killed, as it is for want of memory.
    """
    job = {"make": make, "arguments": arguments, "warm": warm, "threads": threads, "device": device}
    try:
        sent = pickle.dumps(job)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ValueError(f"the arguments of {make} cannot be sent to another process ({error})") from None
    command = [sys.executable, "-m", "secvit.measure.peak"]
    done = subprocess.run(command, input=sent, capture_output=True, env={**os.environ, **ALLOCATOR}, check=False)
    message = done.stderr.decode(errors="replace").strip()
    if done.returncode < 0 or "out of memory" in message:
        return None
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {message.splitlines()[-1]}")
    return int(done.stdout)


def measure(job: Mapping[str, Any]) -> int:
    """What `peak_bytes` asks of the other process."""
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    module, _, function = job["make"].partition(":")
    make = getattr(importlib.import_module(module), function)
    make(**job["warm"])()
    call = make(**job["arguments"])
    gc.collect()
    before = _start(device)
    call()
    return _peak(device) - before


def prepared(
    model: nn.Module, name: str, size: int, options: Mapping[str, Any], batch_size: int, mode: str, dtype: str,
    device: str,
) -> Callable[[], object]:  # fmt: skip
    """The call that `peak_memory` measures."""
    network = variant(model, name, size, options).to(device)
    images = made_up_images(batch_size, size).to(device)
    return (training if mode == "training" else inference)(network, images, dtype)


def training(model: nn.Module, images: Tensor, dtype: str) -> Callable[[], object]:
    """Forward, loss and backward onto gradients that are there already; autocast for bfloat16."""
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def call() -> None:
        with torch.autocast(images.device.type, DTYPES[dtype], enabled=dtype != "float32"):
            loss = model(images).float().square().mean()
        loss.backward()

    return call


def _start(device: torch.device) -> int:
    """Bytes in use now; the peak starts from here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return _peak(device)
    return _resident("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if Path("/proc/self/status").is_file():
        return _resident("VmHWM")  # ru_maxrss would start from what the parent process had
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name + ":")))


if __name__ == "__main__":
    print(measure(pickle.load(sys.stdin.buffer)))
