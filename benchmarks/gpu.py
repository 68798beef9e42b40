"""The run on a GPU: kernels are checked on the device, then timed, then whole models.  Under five minutes on an H200.

PYTHONPATH=src python benchmarks/gpu.py                             # needs torch, triton, timm
PYTHONPATH=src TRITON_INTERPRET=1 python benchmarks/gpu.py --tiny   # the same path on a CPU, its figures worth nothing

Writes JSON to --output, else to $OUT, else to benchmarks/results, after every step; prints tables at the end.
Nothing is timed that did not come out right first; steps for which no time is left are listed as not run.
"""

import argparse
import copy
import json
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gpu_report import GATHERED, report
from torch import Tensor

from secvit.measure.macs import count_macs
from secvit.measure.rounds import Clock, interleave, is_quiet, speed_ratio
from secvit.measure.speed import (
    SWIN,
    TWIN,
    build,
    check_twin,
    distance,
    inference,
    load_literal,
    made_up_images,
    training_step,
)
from secvit.models import SECViT
from secvit.ops import Clustering, Keys, Plan, backends, reference, sec_attention, sec_attention_packed
from secvit.ops.attention import packed_order
from secvit.ops.order import sec_scores
from secvit.provenance import provenance

HERE = Path(__file__).parent
# |found - true| / |true|, as in tests/ops/test_triton.py: tf32 three times for float32, else 11 and 8 bits
FUSED_UP_TO = 256  # tokens a cluster for which models take the fused kernel here; backends.TRITON_SIZE is to follow
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SWAPPED = 1e-5  # of the largest score: tokens nearer than that may change places in float32
COMPILED = 0.2  # bfloat16, of the largest logit: the compiler rounds elsewhere, and nearly tied tokens swap clusters

FULL: dict[str, Any] = {
    "checks": [(1, 1), (7, 3), (196, 2), (577, 6), (300, 1), (3136, 32)],
    # tests/ops/test_triton.py has all dims in all dtypes; each is some kernels to compile
    "dims": {"bfloat16": [32, 64, 16, 28, 40, 128], "float16": [32, 64], "float32": [32, 64]},
    "lengths": {196: 2, 784: 8, 3136: 32, 12544: 128, 65536: 1024},  # tokens: clusters
    # near and far: tokens, clusters, near ones, images; a patched ViT-S has 6 heads of 64
    "near_far": [(1024, 16, 2, 64), (4096, 32, 2, 16), (9216, 64, 2, 4), (16384, 64, 2, 2)], "near_far_heads": (6, 64),
    "batches": [256, 64, 1], "heads": 8, "dim": 32, "most_tokens": 2**20, "compiled_length": 3136,
    "models": [SWIN, "secvit_tiny", "secvit_small", "deit_small_patch16_224"], "image_size": 224,
    "settings": [
        ("inference", False, 256), ("training", False, 64), ("inference", True, 256), ("inference", False, 1),
        ("training", True, 64), ("inference", False, 64), ("inference", True, 1), ("training", False, 256),
        ("inference", True, 64), ("training", True, 256),
    ],
    "rounds": 7, "min_seconds": 0.02, "matrix": 8192, "copy_bytes": 2**32,
}  # fmt: skip
TINY: dict[str, Any] = {
    "checks": [(5, 2)], "dims": {"bfloat16": [16], "float16": [16], "float32": [16]},
    "lengths": {16: 2},
    "near_far": [(6, 2, 1, 1)], "near_far_heads": (1, 16),
    "batches": [1], "heads": 1, "dim": 16, "most_tokens": 2**20, "compiled_length": None,
    "models": ["secvit_nano"], "image_size": 32,
    "settings": [("inference", False, 1), ("training", False, 2)],
    "rounds": 1, "min_seconds": 0.0, "matrix": 64, "copy_bytes": 2**16,
}  # fmt: skip


def event_clock() -> Clock:
    """Seconds by CUDA events.  Summed in steps, because an event's milliseconds are float32."""
    last, total = torch.cuda.Event(enable_timing=True), 0.0
    last.record()

    def clock() -> float:
        nonlocal last, total
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        total += last.elapsed_time(now) / 1e3
        last = now
        return total

    return clock


class Run:
    """What is measured, on what, until when; and the result so far."""

    def __init__(self, sizes: dict[str, Any], minutes: float, target: Path | None) -> None:
        self.sizes = sizes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self.clock = event_clock() if self.on_gpu else time.perf_counter
        self.deadline = time.monotonic() + 60 * minutes
        self.target = target
        self.result: dict[str, Any] = {
            "kind": "secvit bench-gpu", "recipe": {**sizes, "minutes": minutes}, **provenance(), "seed": 0,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "tiny": sizes is TINY, "clock": "CUDA events" if self.on_gpu else "wall clock",
            "float32_products": torch.get_float32_matmul_precision(),
            "ceilings": {}, "checks": [], "near_far": [], "kernels": [], "models": [], "not_run": [], "errors": [],
        }  # fmt: skip
        if self.on_gpu:
            properties = torch.cuda.get_device_properties(0)
            self.result["gpu"] = {
                "name": properties.name, "memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda,
                "multiprocessors": properties.multi_processor_count, "l2_bytes": properties.L2_cache_size,
            }  # fmt: skip

    def step(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        """Run a part, unless time is up; an error in it is kept and does not stop the others."""
        if time.monotonic() > self.deadline:
            self.result["not_run"].append(f"{name}: no time left")
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                function(self, *arguments)
            except Exception as error:
                self.result["errors"].append(f"{name}: {type(error).__name__}: {str(error)[:500]}")
        self.save()

    def save(self) -> None:
        if self.target is not None:
            partial = self.target.with_suffix(".partial")
            partial.write_text(json.dumps(self.result, indent=1) + "\n")
            partial.replace(self.target)

    def interleave(self, candidates: dict[str, Callable[[], object]], base: str) -> dict[str, list[float]]:
        return interleave(candidates, base, self.sizes["rounds"], self.clock, self.sizes["min_seconds"])

    @property
    def red(self) -> list[str]:
        return [
            row["name"]
            for part in ("checks", "near_far", "kernels", "models")
            for row in self.result[part]
            if row.get("red")
        ]


# -- what the device can do ------------------------------------------------------------------------


def measure_ceilings(run: Run) -> None:
    """Bytes a second of a copy, read and written, and operations a second of a matrix product."""
    source = torch.randn(run.sizes["copy_bytes"] // 4, device=run.device)
    target = torch.empty_like(source)
    side = run.sizes["matrix"]
    squares = {dtype: torch.randn(side, side, device=run.device).to(dtype) for dtype in (torch.bfloat16, torch.float32)}
    candidates: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for dtype, square in squares.items():
        candidates[f"matrix {_name(dtype)}"] = lambda square=square: square @ square
    seconds = run.interleave(candidates, "copy")
    run.result["ceilings"] = {
        "copy_bytes_per_second": 2 * source.nbytes / median(seconds["copy"]),
        **{f"{name}_flops": 2 * side**3 / median(seconds[name]) for name in candidates if name != "copy"},
        "seconds": seconds,
    }


# -- the kernel is right ---------------------------------------------------------------------------


def check_kernels(run: Run, dtype: torch.dtype) -> None:
    """Order, output and gradients against the loops in float64, unwritten memory being NaN."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty
    try:
        for dim in run.sizes["dims"][_name(dtype)]:
            for length, clusters in run.sizes["checks"]:
                heads = 2 if length < 3000 else 1
                packed = torch.randn(1, length, heads, 3, dim, device=run.device).to(dtype)
                q, k, v = (x.detach().requires_grad_() for x in packed.permute(3, 0, 2, 1, 4).unbind(0))
                order = torch.ops.secvit.order_tokens(k.detach())
                plan = Plan.equal(order, clusters)
                found = _with_gradients(lambda *x, plan=plan: sec_attention(*x, plan=plan, backend="triton"), (q, k, v))
                exact = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
                true = _with_gradients(lambda *x, plan=plan: _loops(*x, plan.labels.cpu(), plan.num_clusters), exact)
                errors = [_error(a, b) for a, b in zip(found, true)]
                swapped = _out_of_order(order, k)
                run.result["checks"].append({
                    "name": f"{_name(dtype)}, D = {dim}, L = {length}, M = {clusters}",
                    "dtype": _name(dtype), "dim": dim, "errors": dict(zip(("out", "dq", "dk", "dv"), errors)),
                    "order_error": swapped, "red": _is_off(errors, dtype) or not swapped <= SWAPPED,
                })  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)


def _with_gradients(function: Callable[..., Tensor], inputs: Any) -> list[Tensor]:
    out = function(*inputs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight.to(out))]


def _out_of_order(order: Tensor, k: Tensor) -> float:
    """Most by which a score in float64 falls along the order, of the largest score; inf if tokens lack or repeat."""
    if not torch.equal(order.sort().values, torch.arange(k.shape[2], device=k.device).expand_as(order)):
        return float("inf")
    score = sec_scores(k.detach().double())
    falls = -score.gather(-1, order).diff()
    return float(falls.max() / score.abs().max()) if falls.numel() else 0.0


def _loops(q: Tensor, k: Tensor, v: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    out = torch.zeros_like(v)
    for h in range(q.shape[1]):
        for m in range(num_clusters):
            members = (labels[0, h] == m).nonzero()[:, 0]
            out[0, h, members] = reference.attention(*(x[0, h, members] for x in (q, k, v)), q.shape[-1] ** -0.5)
    return out


def _error(found: Tensor, true: Tensor) -> float:
    """|found - true| / |true|, the latter no less than rounding leaves where it is zero; NaN stays NaN."""
    true = true.detach()
    least = 0.01 * true.numel() ** 0.5
    return float((found.cpu().double() - true.cpu().double()).norm()) / max(float(true.double().norm()), least)


# -- the kernel is fast ----------------------------------------------------------------------------


def time_kernels(run: Run, length: int, batch: int, training: bool) -> None:
    """Attention in clusters of one size, bfloat16, beside its rivals; a step of all of them is one graph replay."""
    heads, dim = run.sizes["heads"], run.sizes["dim"]
    num_clusters, dtype = run.sizes["lengths"][length], torch.bfloat16
    name = f"{'forward and backward' if training else 'forward'}, L = {length}, batch {batch}"
    packed = torch.randn(batch, length, heads, 3, dim, device=run.device).to(dtype)
    errors = _fused_and_gathered(packed, num_clusters)
    row: dict[str, Any] = {
        "name": name, "length": length, "num_clusters": num_clusters, "batch": batch, "training": training,
        "errors": errors, "red": _is_off(errors, dtype) or _is_red(run, dtype, dim),
    }  # fmt: skip
    run.result["kernels"].append(row)
    if row["red"]:
        return
    # in and out once: q k v and the output, or those, dout, q k v again and three gradients
    row["least_bytes"] = packed.nbytes // 3 * (12 if training else 4)
    l2 = run.result["gpu"]["l2_bytes"] if run.on_gpu else 0
    copies = min(16, 1 + 4 * l2 // packed.nbytes)  # or else the cache is measured
    inputs = [packed, *(torch.randn_like(packed) for _ in range(copies - 1))]
    candidates = _attentions(run, inputs, num_clusters, training, length)
    ready, row["not_as_graphs"] = {}, {}
    for title, call in candidates.items():
        try:
            ready[title] = _replay(call) if run.on_gpu else call
        except RuntimeError as error:
            ready[title], row["not_as_graphs"][title] = call, str(error)[:200]
    seconds = run.interleave(ready, "grouped SDPA")
    row["copies"] = copies
    row["seconds"] = {title: [x / copies for x in times] for title, times in seconds.items()}
    row["quiet"] = is_quiet(seconds, "grouped SDPA")
    copy_rate = run.result["ceilings"]["copy_bytes_per_second"]
    row["floor_seconds"] = row["least_bytes"] / copy_rate


def time_near_far(run: Run, length: int, num_clusters: int, near: int, batch: int, training: bool) -> None:
    """Near and far clusters of a tree, in bfloat16 behind a [cls] token: the kernel, gathered rows, attention to all.

    The kernel is held against gathered rows first, on one image.  The tree is timed by itself.
    """
    heads, dim = run.sizes["near_far_heads"]
    name = f"near and far, {'forward and backward' if training else 'forward'}, L = {length}, batch {batch}"
    q, k, v = (torch.randn(batch, heads, 1 + length, dim, device=run.device).to(torch.bfloat16) for _ in range(3))
    options: dict[str, Any] = {"near": near, "far": True, "num_prefix_tokens": 1}
    clustering = Clustering(num_clusters, partition="tree")

    def tree() -> Plan:
        return clustering.plan(Keys(k[:, :, 1:], queries=q[:, :, 1:]))

    plan = tree()
    alone = Plan(plan.order[:1], plan.num_clusters, plan.max_size)
    fused, gathered = (
        _with_gradients(
            lambda *x, b=b: sec_attention(*x, plan=alone, backend=b, **options),
            [x[:1].detach().requires_grad_() for x in (q, k, v)],
        )
        for b in ("triton", "sdpa")
    )
    errors = [_error(a, b) for a, b in zip(fused, gathered)]
    row: dict[str, Any] = {
        "name": name, "length": length, "num_clusters": num_clusters, "near": near, "batch": batch,
        "training": training, "errors": errors, "red": _is_off(errors, torch.bfloat16),
    }  # fmt: skip
    run.result["near_far"].append(row)
    if row["red"]:
        return
    methods: dict[str, Callable[..., Tensor]] = {
        "global SDPA": lambda *x: F.scaled_dot_product_attention(*x),
        "fused": lambda *x: sec_attention(*x, plan=plan, backend="triton", **options),
        "gathered": lambda *x: sec_attention(*x, plan=plan, backend="sdpa", **options),
    }
    calls: dict[str, Callable[[], object]] = {
        title: _call(function, [[q, k, v]], training) for title, function in methods.items()
    }
    row["seconds"] = run.interleave({**calls, "tree": tree}, "global SDPA")
    row["quiet"] = is_quiet(row["seconds"], "global SDPA")


def _attentions(run: Run, inputs: list[Tensor], num_clusters: int, training: bool, length: int) -> dict[str, Any]:
    scale = inputs[0].shape[-1] ** -0.5
    batch, heads, dim = inputs[0].shape[0], inputs[0].shape[2], inputs[0].shape[-1]
    plans = [Plan.equal(packed_order(x), num_clusters) for x in inputs]

    def split(x: Tensor) -> list[Tensor]:
        return list(x.permute(3, 0, 2, 1, 4).unbind(0))

    def grouped(x: Tensor) -> list[Tensor]:
        return [y.reshape(batch * heads, num_clusters, -1, dim).contiguous() for y in split(x)]

    def packed_by(backend: str) -> Callable[[Tensor], Tensor]:
        return lambda x: sec_attention_packed(x, num_clusters, scale, backend)

    # title: a function of leaves, and the leaves of each input
    whole = [[x] for x in inputs]
    methods: dict[str, tuple[Callable[..., Tensor], list[list[Tensor]]]] = {
        "fused": (packed_by("triton"), whole),
        "gather + SDPA": (packed_by("sdpa"), whole),
        "grouped SDPA": (lambda *x: F.scaled_dot_product_attention(*x, scale=scale), [grouped(x) for x in inputs]),
    }
    if length == run.sizes["compiled_length"]:
        for title in ("fused", "gather + SDPA"):
            methods[f"{title}, compiled"] = (torch.compile(methods[title][0], dynamic=False), whole)
    if 4 * length**2 * batch * heads * dim < 4e13:
        methods["global SDPA"] = (
            lambda *x: F.scaled_dot_product_attention(*x, scale=scale), [split(x) for x in inputs],
        )  # fmt: skip
    calls = {title: _call(function, leaves, training) for title, (function, leaves) in methods.items()}
    calls["scores and order"] = lambda: [torch.ops.secvit.order_tokens(split(x)[1]) for x in inputs]
    calls["scores and order by torch"] = lambda: [packed_order(x) for x in inputs]
    if not training:
        kernel = torch.ops.secvit.attend_clusters_packed
        calls["kernel alone"] = lambda: [kernel(x, p.order, num_clusters, scale) for x, p in zip(inputs, plans)]
    return calls


def _call(function: Callable[..., Tensor], inputs: list[list[Tensor]], training: bool) -> Callable[[], object]:
    if not training:
        return lambda: [function(*leaves) for leaves in inputs]
    inputs = [[x.detach().requires_grad_() for x in leaves] for leaves in inputs]
    with torch.no_grad():
        weights = [torch.randn_like(function(*leaves)) for leaves in inputs]

    def call() -> None:
        for leaves, weight in zip(inputs, weights):
            torch.autograd.grad(function(*leaves), leaves, weight)

    return call


def _replay(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph, so that kernels are timed and not the processor that launches them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(kept: object = kept) -> None:
        graph.replay()

    return replay


def _fused_and_gathered(packed: Tensor, num_clusters: int) -> list[float]:
    """How far the fused kernel's output and gradient are from those of gathered rows."""
    scale = packed.shape[-1] ** -0.5
    fused, gathered = (
        _with_gradients(lambda x, b=b: sec_attention_packed(x, num_clusters, scale, b), [packed.requires_grad_()])
        for b in ("triton", "sdpa")
    )
    packed.requires_grad_(False)
    return [_error(a, b) for a, b in zip(fused, gathered)]


def _is_off(errors: list[float], dtype: torch.dtype) -> bool:
    return not all(error <= CLOSE[dtype] for error in errors)  # max() would lose a NaN


def _is_red(run: Run, dtype: torch.dtype, dim: int) -> bool:
    checks = [row for row in run.result["checks"] if (row["dtype"], row["dim"]) == (_name(dtype), dim)]
    return not checks or any(row["red"] for row in checks)


# -- whole models ----------------------------------------------------------------------------------


def time_models(run: Run, mode: str, compiled: bool, batch: int) -> None:
    """Whole models in bfloat16; each of ours also as its literal twin and with rows gathered for torch's attention."""
    torch.compiler.reset()
    size, base = run.sizes["image_size"], run.sizes["models"][0]
    images = made_up_images(batch, size).to(run.device)
    found: dict[str, Any] = {
        "name": f"{mode}, {'compiled' if compiled else 'eager'}, batch {batch}", "mode": mode, "compiled": compiled,
        "batch": batch, "base": base, "differences": {}, "rows": [],
    }  # fmt: skip
    run.result["models"].append(found)
    literal = load_literal(HERE / "literal.py")
    candidates: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float] = {}
    for name in run.sizes["models"]:
        network = build(name, size).to(run.device)
        networks = {name: network}
        if name.startswith("secvit"):
            networks |= {TWIN + name: literal.like(network), name + GATHERED: copy.deepcopy(network)}
            if _is_red(run, torch.bfloat16, 32) and run.on_gpu:
                run.result["not_run"].append(f"{found['name']}: {name}: the kernel is red")
                continue
            try:
                twin = networks[TWIN + name]
                found["differences"][name] = check_twin(name, network, twin, images[:1], "bfloat16")
            except ArithmeticError as error:
                found["red"] = str(error)
                continue
        for title, each in networks.items():
            if compiled and time.monotonic() > run.deadline - 30:
                run.result["not_run"].append(f"{found['name']}: {title}: no time left to compile")
                continue
            call = _step(each, images, mode, compiled, gathered=title.endswith(GATHERED))
            candidates[title] = call
            if run.on_gpu:
                torch.cuda.reset_peak_memory_stats()
                call()
                peaks[title] = torch.cuda.max_memory_allocated() / 2**20
    if base not in candidates:
        raise RuntimeError(f"{base} could not be run, so there is nothing to compare with")
    seconds = run.interleave(candidates, base)
    found["seconds"], found["quiet"] = seconds, is_quiet(seconds, base)
    copy_rate = run.result["ceilings"]["copy_bytes_per_second"]
    matrix_rate = run.result["ceilings"]["matrix bfloat16_flops"]
    work = 2 * batch * (3 if mode == "training" else 1)  # a backward is twice a forward
    for title in candidates:
        name = title.removeprefix(TWIN).removesuffix(GATHERED)
        macs = count_macs(build(name, size, "meta"), (3, size, size)).total
        row = {
            "name": title, "images_per_second": batch / median(seconds[title]),
            "vs_base": vars(speed_ratio(seconds, title, base)), "macs": macs, "peak_mib": peaks.get(title),
            "of_matrix_rate": work * macs / median(seconds[title]) / matrix_rate,
        }  # fmt: skip
        if TWIN + name in candidates and name + GATHERED in candidates and title == name:
            row["vs_literal"] = vars(speed_ratio(seconds, title, TWIN + name))
            row["vs_gathered"] = vars(speed_ratio(seconds, title, name + GATHERED))
            if mode == "inference":
                least = least_bytes(build(name, size, "meta"), size)
                row["of_byte_floor"] = least * batch / copy_rate / median(seconds[title])
        found["rows"].append(row)


def _step(network: torch.nn.Module, images: Tensor, mode: str, compiled: bool, gathered: bool) -> Callable[[], object]:
    step = (training_step if mode == "training" else inference)(network, images, "bfloat16")

    def call() -> Any:
        before = backends.TRITON_SIZE
        backends.TRITON_SIZE = 0 if gathered else FUSED_UP_TO
        try:
            return step()
        finally:
            backends.TRITON_SIZE = before

    if compiled:
        expected = call()
        network.compile()
        error = distance(call(), expected)
        if mode == "inference" and not error <= COMPILED:
            raise ArithmeticError(f"compiled differs from eager by {error:.1e} of the largest logit; not timed")
    return call


def least_bytes(model: SECViT, image_size: int) -> int:
    """Bytes an image moves where attention is one kernel and products are cuBLAS's, in bfloat16.

    A block: 36 times its tokens, read or written.  Positions 2, norm 2, qkv 4, scores 1, attention 5, LePE 2,
    projection and residual 3, norm 2, fc1 with GELU 4, depthwise convolution 6, fc2 and residual 5.  And the maps
    of the stem.
    """
    grid, elements = image_size // 2, 3 * image_size**2
    dims = [info["num_chs"] for info in model.feature_info]
    elements += 6 * grid**2 * dims[0] // 2
    for stage, dim in zip(model.stages, dims):
        grid //= 2
        elements += 36 * len(stage.blocks) * grid**2 * dim
    return 2 * elements


# -- the command ---------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="one small case of everything, on a CPU if need be")
    parser.add_argument("--minutes", type=float, default=4.5, help="start no step after this time (default: 4.5)")
    parser.add_argument("--output", help="folder for the JSON (default: $OUT, else benchmarks/results)")
    parser.add_argument("--report", help="print the tables of this JSON and measure nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 where something was red or failed, 2 where there is nothing to measure on."""
    options = parse(argv)
    if options.report:
        print(report(json.loads(Path(options.report).read_text())))
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = backends.triton_problem(device)
    if problem is None and device.type == "cpu" and not options.tiny:
        problem = "needs a GPU for any size but --tiny"
    if problem is not None:
        print(f"benchmarks/gpu.py {problem}", file=sys.stderr)
        return 2
    folder = Path(options.output or os.environ.get("OUT") or HERE / "results")
    if not folder.is_dir():
        print(f"{folder}: no such folder", file=sys.stderr)
        return 2
    hardware = re.sub(r"[^a-z0-9]+", "-", (torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu").lower())
    today = datetime.now(UTC).date()
    kind = "gpu-tiny" if options.tiny else "gpu"
    target = folder / f"{kind}_{hardware}_torch{torch.__version__.split('+')[0]}_{today}.json"
    torch.manual_seed(0)
    run = Run(TINY if options.tiny else FULL, options.minutes, target)
    sizes = run.sizes
    run.step("ceilings", measure_ceilings)
    for dtype in CLOSE:
        run.step(f"checks, {_name(dtype)}", check_kernels, dtype)
    for training in (False, True):
        for case in sizes["near_far"]:
            run.step(f"near and far, L = {case[0]}", time_near_far, *case, training)
    for training in (False, True):
        for length in sizes["lengths"]:
            for batch in sizes["batches"]:
                if batch * length <= sizes["most_tokens"]:
                    run.step(f"attention, L = {length}, batch {batch}", time_kernels, length, batch, training)
    for setting in sizes["settings"]:
        run.step(", ".join(map(str, setting)), time_models, *setting)
    print(report(run.result))
    print(target)
    return 1 if run.red or run.result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
