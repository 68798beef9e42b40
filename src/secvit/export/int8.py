"""Weights of linear layers in 8 bits, kept where that is of use."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secvit.export.comparison import same_class
from secvit.export.exported import Exported, Run, quiet
from secvit.export.onnx import open_session
from secvit.export.tracing import random_images

logger = logging.getLogger(__name__)
# below these int8 is not worth its error: of the float file's size, and of the classes that stay the same
SMALLER, SAME_CLASS = 0.8, 0.9


@torch.no_grad()
def quantise(
    path: Path, network: nn.Module, made: Exported, images: Tensor | None, sides: tuple[int, int]
) -> dict[str, Any]:
    """Put weights of linear layers in 8 bits, in place, and say what that does; a ValueError where it is no use."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger.info("export: to 8 bits")
    files = sorted(path.parent.iterdir())
    smaller = path.parent / "int8" / path.name
    smaller.parent.mkdir()
    model = onnx.load(path, load_external_data=False)
    # ONNX Runtime infers them; 1.22 transposes weights and then trips over their old shapes
    del model.graph.value_info[:]
    onnx.save(model, path)
    with quiet():
        quantize_dynamic(
            path, smaller, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
            use_external_data_format=len(files) > 1,
        )  # fmt: skip
    sample = random_images(32, sides) if images is None else images.float().cpu()
    run = open_session(smaller)
    logits, expected = (torch.cat([one(part) for part in sample.split(4)]) for one in (run, network))
    report: dict[str, Any] = {
        "layers": "weights of linear layers in 8 bits, the rest in float32",
        "size": _bytes(smaller.parent.iterdir()) / _bytes(files),
        "time": _relative_time(run, made.run, sample[:1]),
        "same_class": same_class(logits, expected),
        "rms_difference": ((logits - expected).square().mean() / expected.square().mean()).sqrt().item(),
        "judged_on": f"{len(sample)} {'random images, which say little' if images is None else 'given images'}",
    }
    logger.info(
        "export: int8 on %s: %.1f %% keep their class, logits differ by %.2g (rms), %.2f of the size, %.2f of the time",
        report["judged_on"], 100 * report["same_class"], report["rms_difference"], report["size"], report["time"],
    )  # fmt: skip
    if report["size"] > SMALLER:
        raise ValueError(
            f"int8 leaves {report['size']:.0%} of the file's size, as most of this network is convolutions or tables, "
            "which stay in float32; nothing was written.  Export without int8"
        )
    if not report["same_class"] >= SAME_CLASS:
        raise ValueError(
            f"int8 keeps the class of {report['same_class']:.1%} of {report['judged_on']}, and {SAME_CLASS:.0%} is "
            "asked for; nothing was written.  Export without int8" + (", or give images" if images is None else "")
        )
    for file in files:
        file.unlink()
    for file in smaller.parent.iterdir():
        os.replace(file, path.parent / file.name)
    smaller.parent.rmdir()
    return report


def _bytes(files: Iterator[Path] | Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _relative_time(run: Run, other: Run, sample: Tensor) -> float:
    """Time of one image by `run` over that by `other`, the median of turns."""
    ratios = []
    for turn in range(6):
        times = []
        for one in (run, other):
            start = time.perf_counter()
            one(sample)
            times.append(time.perf_counter() - start)
        ratios += [times[0] / times[1]] if turn else []  # the first warms up
    return statistics.median(ratios)
