"""`secvit bench`: our models beside a literal transcription of the paper and beside timm's, interleaved.

Ratios, not seconds, are the result: see `rounds` for the protocol.  No speed is given while the
outputs of a model and its literal twin differ.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import timm
import torch

from secvit.draw.picture import check_output
from secvit.measure.bench_picture import draw_speeds
from secvit.measure.bench_results import BenchResult, PartShares
from secvit.measure.parts import forward_parts
from secvit.measure.report import report
from secvit.measure.results import head, save_result, using_threads
from secvit.measure.rounds import clock_for, clock_name
from secvit.measure.scaling import bench_attention, bench_operation
from secvit.measure.speed import (
    MODELS,
    bench_models,
    check_settings,
    compiler,
    find_literal,
    is_ours,
    made_up_images,
)

__all__ = ["bench_attention", "bench_models", "bench_operation", "bench_parts", "report", "run"]


def run(
    models: Sequence[str] = MODELS,
    base: str | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    training: bool = True,
    compiled: bool = False,
    parts: bool = True,
    operation: bool = True,
    attention: bool = True,
    batch_size: int = 8,
    image_size: int = 224,
    large: tuple[int, int] = (800, 1280),
    lengths: Sequence[int] = (196, 784, 3136, 12544, 16384, 65536),
    rounds: int = 7,
    threads: int = 1,
    literal: str | None = None,
    json: str | None = None,
    plot: str | None = None,
    progress: bool = True,
) -> BenchResult:
    """Compare models, say where their time goes, and time the clustering alone; on the CPU, in this process.

    Args:
        models: names timm can create; each SECViT also runs as a literal twin where there is one.
        base: the model that others are compared with; Swin-T if it is there, else the first.
        dtypes: float32, bfloat16 (weights in it for inference, autocast for training).
        training: time training steps too (forward, loss, backward, AdamW).
        compiled: time torch.compile'd inference too; needs a C++ compiler and minutes.
        parts: shares of scoring, sorting, gathering and restoring in a forward pass.
        operation: clustering against k-means, balanced k-means, ToMe's matching and the copy of windows.
        attention: attention in clusters of 98 against windows and all tokens, time and memory.
        batch_size: images in a batch.
        image_size: height and width of the images in pixels.
        large: height and width of the one large image for the shares, with clusters of 98.
        lengths: numbers of tokens for the operation and for attention, in clusters of 98.
        rounds: measurements of each, after a warm-up.
        threads: 1 measures processor time, more measure wall clock.
        literal: file of the literal network, or the authors' own SecViT.py; else benchmarks/literal.py, if it exists.
        json: write the result to this file.
        plot: draw the speeds, and time over the number of tokens, to this file: PNG, PDF, ...
        progress: show a bar.
    """
    check_settings(dtypes, json=json)
    recipe = {key: value for key, value in locals().items() if key not in ("json", "plot", "progress")}
    if plot is not None:
        check_output(plot)
    result = _measured(recipe, find_literal(literal), progress)
    if json is not None:
        save_result(result.written(), json)
    if plot is not None:
        draw_speeds(result, plot)
    return result


def _measured(recipe: Mapping[str, Any], twins: ModuleType | None, progress: bool) -> BenchResult:
    """The result of `run` with the arguments that a recipe holds by name."""
    threads, rounds, lengths = recipe["threads"], recipe["rounds"], recipe["lengths"]
    result = BenchResult(head("secvit bench", recipe, threads), os.getloadavg()[0], clock_name(threads))
    if not twins:
        result.notes.append("no literal twins: no benchmarks/literal.py under the current folder (--literal)")
    with using_threads(threads):
        for mode, dtype, compiled in _settings(recipe, result.notes):
            speeds = bench_models(
                recipe["models"], recipe["base"], mode, dtype, compiled, recipe["batch_size"], recipe["image_size"],
                rounds, threads, twins, progress,
            )  # fmt: skip
            result.models.append(speeds)
        if recipe["parts"]:
            square, (height, width) = (recipe["image_size"], recipe["image_size"]), recipe["large"]
            for size, batch, cluster_size in ((square, recipe["batch_size"], None), ((height, width), 1, 98)):
                for name in filter(is_ours, recipe["models"]):
                    result.parts.append(bench_parts(name, size, batch, cluster_size, rounds, threads, progress))
        if recipe["operation"]:
            result.operation = [bench_operation(length, rounds, threads, progress) for length in lengths]
        if recipe["attention"]:
            result.attention = [
                bench_attention(length, rounds=rounds, threads=threads, progress=progress) for length in lengths
            ]
    result.load_after = os.getloadavg()[0]
    return result


def _settings(recipe: Mapping[str, Any], notes: list[str]) -> list[tuple[str, str, bool]]:
    """Mode, dtype and whether compiled, of each run of the models; what cannot be run is noted."""
    modes = ("inference", "training")[: 1 + recipe["training"]]
    settings = [(mode, dtype, False) for mode in modes for dtype in recipe["dtypes"]]
    if recipe["compiled"] and compiler() is None:
        notes.append("compiled models were not run: no C++ compiler (set CXX or install g++)")
    elif recipe["compiled"]:
        settings += [("inference", dtype, True) for dtype in recipe["dtypes"]]
    return settings


# -- where the time goes -----------------------------------------------------------------------


def bench_parts(
    name: str,
    size: tuple[int, int],
    batch_size: int = 1,
    cluster_size: int | None = None,
    rounds: int = 7,
    threads: int = 1,
    progress: bool = False,
) -> PartShares:
    """Share of a float32 eager forward pass spent on each part of SEC attention.  size: (height, width) in pixels."""
    torch.manual_seed(0)
    model = timm.create_model(name, cluster_size=cluster_size).eval()
    title = f"shares of {name} at {size[0]}x{size[1]}" if progress else None
    shares = forward_parts(model, made_up_images(batch_size, size), rounds, clock_for(threads), title)
    return PartShares(name, size, batch_size, cluster_size, shares)
