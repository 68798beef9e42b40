"""The number stream and the fill rule of the conformance data (shared/golden/README.md): same numbers everywhere."""

import zlib

import numpy as np
import torch


def uniform(key: str, n: int) -> np.ndarray:
    """n numbers in [-1, 1) from SplitMix64 seeded by crc32 of the key, in float64."""
    mask = np.uint64(0xFFFFFFFFFFFFFFFF)
    seed = np.uint64(zlib.crc32(key.encode()))
    with np.errstate(over="ignore"):
        z = (seed + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) & mask
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1


def fill(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of one entry of the authors' state dict."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    v = uniform(key, int(np.prod(shape))).reshape(shape)
    if last == "running_var":
        v = 1 + 0.5 * v
    elif last == "running_mean" or last == "bias":
        v = 0.1 * v
    elif last in ("gamma_1", "gamma_2"):
        v = 0.5 + 0.25 * v
    elif v.ndim == 1:
        v = 1 + 0.2 * v
    else:
        gain = 1.5 if ".qkv." in key else 0.3 if ".pos." in key or ".dwconv." in key else 1.0
        v = gain * np.sqrt(3 / np.prod(shape[1:])) * v
    return torch.from_numpy(np.asarray(v, dtype=np.float32))


def image(batch: int, height: int, width: int) -> torch.Tensor:
    """The input image (B, 3, H, W): coarse squares of 16 px plus noise."""
    rows, columns = -(-height // 16), -(-width // 16)
    coarse = uniform(f"input.coarse.{batch}x3x{rows}x{columns}", batch * 3 * rows * columns)
    coarse = coarse.reshape(batch, 3, rows, columns).repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    fine = uniform(f"input.fine.{batch}x3x{height}x{width}", batch * 3 * height * width)
    return torch.from_numpy((1.5 * coarse + 0.5 * fine.reshape(coarse.shape)).astype(np.float32))
