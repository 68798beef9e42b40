"""A trained network as a file for another runtime, compared with PyTorch in that runtime before it is kept.

torch.export traces the network once.  A .pt2 file is that program, ONNX is made of it, and OpenVINO of the ONNX file.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from secvit.extras import needs
from secvit.files import fsync, write_atomically, write_through

logger = logging.getLogger(__name__)

Format = Literal["onnx", "openvino", "pt2"]
Task = Literal["classification", "segmentation"]
Run = Callable[[Tensor], Tensor]

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
LAYOUTS = {"classification": ["batch", "classes"], "segmentation": ["batch", "classes", "height", "width"]}
STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 64)  # what networks want heights and widths to be multiples of
ONE_FILE = 1_500_000_000  # bytes of weights; an ONNX file holds less than 2 GiB, so more of them lie beside it
# below these int8 is not worth its error: of the float file's size, and of the classes that stay the same
SMALLER, SAME_CLASS = 0.8, 0.9
NO_DETECTOR = (
    "detectors cannot be exported: torchvision's non-maximum suppression chooses its way by how many boxes are left "
    "(torchvision.ops.boxes.batched_nms), and torch.export follows no choice that depends on the picture.  Use the "
    "run in PyTorch"
)


def export(
    model: nn.Module,
    output: str | os.PathLike[str],
    format: Format = "onnx",
    *,
    size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] = (),
    task: Task = "classification",
    crop_pct: float | None = 1.0,
    interpolation: str = "bicubic",
    images: Tensor | None = None,
    dynamic: bool = False,
    int8: bool = False,
    opset: int | None = None,
    tolerance: float = 1e-3,
) -> dict[str, Any]:
    """Write a network for another runtime, compared with PyTorch there, and a JSON file that says how to feed it.

    The file takes normalised images (B, 3, H, W), float32, in batches of any size, and gives logits: (B, classes) of
    a classifier, (B, classes, H, W) of a segmenter.  The model itself is left as it is.
    Returns what the JSON file holds.  A ValueError says why a network cannot be exported, or where the runtime computes
    something else than PyTorch; then nothing is written.

    model: a classifier or a segmenter, on any device; it is exported in float32.
    output: the file: .onnx, .xml for OpenVINO (with a .bin beside it) or .pt2.  The JSON file has .json after that.
    format: onnx for ONNX Runtime and others, openvino, or pt2 for `torch.export.load`.
    size: height and width of the images in px; one number for squares.
    mean: of the pixels, 0 to 1, for each channel; images are normalised by it.
    std: of the pixels, 0 to 1, for each channel.
    classes: their names, in the order of the logits.
    task: classification or segmentation.
    crop_pct: the part of a picture's short side that an image shows, for the JSON file; None where the whole picture
        is resized.
    interpolation: how pictures are resized, for the JSON file.
    images: normalised images (N, 3, H, W) to compare on besides random ones; int8 needs real ones to be judged by.
    dynamic: take images of any height and width, not of `size` alone.
    int8: weights of linear layers in 8 bits (ONNX Runtime's dynamic quantisation), refused where that is no use.
    opset: version of ONNX's operators; the exporter's own choice if None.
    tolerance: largest difference to PyTorch that is let pass, as a part of the largest logit.
    """
    path, sides = Path(output), _sides(size)
    _check(model, path, format, task, images, sides, mean, std, int8, opset, tolerance)
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    _check_logits(network, sides, task, classes)
    step = _step(network, sides) if dynamic else None
    logger.info("export: tracing the network")
    program = _trace(network, sides, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as name:
        folder = Path(name)
        logger.info("export: writing %s", path.name)
        made = WRITERS[format](program, folder / path.name, opset)
        logger.info("export: comparing with PyTorch in %s", made.runtime)
        report = _compare(network, made, sides, step, images, tolerance)
        if made.own_precision:
            report["at_own_precision"] = _at_own_precision(network, made, images, sides)
        facts = {
            "task": task,
            "format": format,
            "runtime": made.runtime,
            "input": _input(sides, step, report.pop("smallest"), mean, std, crop_pct, interpolation),
            "output": {"name": "logits", "layout": LAYOUTS[task], "dtype": "float32", "classes": list(classes)},
            "compared_with_pytorch": report,
            **({"int8": _quantise(folder / path.name, network, made, images, sides)} if int8 else {}),
            "made_with": {"torch": torch.__version__, **made.versions},
            "files": {file.name: _described(file) for file in sorted(folder.iterdir())},
        }
        _put(folder, path, facts)
    return facts


# -- what is asked for -------------------------------------------------------------------------


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size={size}; give the height and width of images in px, or one number for squares")
    return sides


def _check(
    model: nn.Module, path: Path, format: str, task: str, images: Tensor | None, sides: tuple[int, int],
    mean: Sequence[float], std: Sequence[float], int8: bool, opset: int | None, tolerance: float,
) -> None:  # fmt: skip
    """Refuse what cannot be, before anything is computed."""
    if format not in ENDINGS:
        raise ValueError(f"format={format!r}; choose one of {', '.join(ENDINGS)}")
    if isinstance(model, (GeneralizedRCNN, RetinaNet)) or task == "detection":
        raise ValueError(NO_DETECTOR)
    if task not in LAYOUTS:
        raise ValueError(f"a network for {task} cannot be exported; classifiers and segmenters can")
    if path.suffix != ENDINGS[format] or path.is_dir():
        raise ValueError(f"{path}: format {format} is written to a file that ends in {ENDINGS[format]}; name one")
    if int8 and format != "onnx":
        raise ValueError(f"int8 with format {format}: 8 bits are made by ONNX Runtime; choose format onnx, or no int8")
    if opset is not None and format == "pt2":
        raise ValueError(f"opset={opset} with format pt2: operators of ONNX are not used there; leave it out")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}; choose a part of the largest logit, such as 0.001")
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(f"mean={list(mean)}, std={list(std)}; give three numbers each, of pixels between 0 and 1")
    if images is not None and (images.shape[1:] != (3, *sides) or not len(images)):
        raise ValueError(f"images of shape {tuple(images.shape)}; give one or more of (N, 3, {sides[0]}, {sides[1]})")
    if format != "pt2":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            with needs(f"export to {format}", package, "export"):
                __import__(package)
    if format == "openvino":
        with needs("export to OpenVINO", "openvino", "openvino"):
            __import__("openvino")


@torch.no_grad()
def _check_logits(network: nn.Module, sides: tuple[int, int], task: str, classes: Sequence[str]) -> None:
    """Refuse a network that does not give what its task gives."""
    logits = network(_pictures(1, sides))
    name, layout = type(network).__name__, LAYOUTS[task]
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name} gives a {type(logits).__name__}; export takes networks that give logits, one tensor")
    if logits.dim() != len(layout):
        raise ValueError(f"{name} gives {tuple(logits.shape)}; for {task} logits are ({', '.join(layout)})")
    if classes and logits.shape[1] != len(classes):
        raise ValueError(f"{name} tells {logits.shape[1]} classes apart, and {len(classes)} names are given")


@torch.no_grad()
def _step(network: nn.Module, sides: tuple[int, int]) -> int:
    """What other heights and widths have to be multiples of, 1 for none; a ValueError for a network of one size."""
    height, width = sides
    for step in STEPS:
        if height % step or width % step:
            continue
        with contextlib.suppress(Exception):  # networks refuse sizes in many ways
            network(_pictures(1, (height + step, width + 2 * step)))
            return step
    raise ValueError(
        f"{type(network).__name__} takes images of {height} x {width} px alone, as a ViT with a table of positions "
        "does; export without dynamic, a file for each size, or make the network with dynamic_img_size=True, which "
        "timm's ViTs have"
    )


# -- tracing and writing -----------------------------------------------------------------------


def _trace(network: nn.Module, sides: tuple[int, int], step: int | None) -> ExportedProgram:
    """The network as a graph, for any batch, and for any size where there is a `step`."""
    shape = {0: Dim.DYNAMIC}
    height, width = sides
    if step is not None:
        shape |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
        # twice as large, so that a size with one cluster alone is not taken for the rule, and not a square
        height, width = (side + math.ceil(side / step) * step for side in sides)
        width += step * (1 + (width + step == height))
    try:
        with _quiet():  # a batch of two: one would be taken for "always one"
            sample = (_pictures(2, (height, width)),)
            return torch.export.export(network, sample, dynamic_shapes=(shape,), strict=False)
    except Exception as error:  # the tracer raises whatever the network's code does not survive
        other = " of any size; export without dynamic" if step is not None else ""
        raise ValueError(f"{type(network).__name__} cannot be exported{other}: torch.export: {_line(error)}") from error


@dataclass(frozen=True)
class Made:
    """A file that was written, and how to compute with it.

    own_precision: the name of the precision that the runtime chooses itself, and how to compute in it, where that is
        not float32.
    """

    runtime: str
    run: Run
    versions: dict[str, str]
    own_precision: tuple[str, Run] | None = None


def _write_pt2(program: ExportedProgram, path: Path, opset: int | None) -> Made:
    content = io.BytesIO()  # torch's own writing does not say when a disk is full
    with _quiet():
        torch.export.save(program, content)
        write_through(path, content.getvalue())
        return Made("PyTorch (torch.export)", torch.export.load(path).module(), {})


def _write_onnx(program: ExportedProgram, path: Path, opset: int | None) -> Made:
    import onnxruntime

    weights = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    try:
        with _quiet():
            program = program.run_decompositions({torch.ops.aten.adaptive_avg_pool2d.default: _pooled})
            made = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["logits"], opset_version=opset
            )
            assert made is not None
            made.save(path, external_data=weights > ONE_FILE)
            session = _session(path)
    except OSError:
        raise
    except Exception as error:  # an operator that ONNX or its runtime lacks, an opset that is too old
        raise ValueError(f"this network cannot be written as ONNX: {_line(error)}") from error
    return Made(f"ONNX Runtime {onnxruntime.__version__}", session, {"opset": _opset(path)})


def _pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive pooling to one pixel.  torch 2.7 writes it with operators on sequences, which OpenVINO lacks."""
    return x.mean((-2, -1), keepdim=True) if list(size) == [1, 1] else NotImplemented


def _session(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _opset(path: Path) -> str:
    import onnx

    return str(onnx.load(str(path), load_external_data=False).opset_import[0].version)


def _write_openvino(program: ExportedProgram, path: Path, opset: int | None) -> Made:
    import openvino
    from openvino.frontend import OpConversionFailure

    between = path.with_name("network.onnx")
    versions = _write_onnx(program, between, opset).versions
    core = openvino.Core()
    try:
        with _quiet():
            openvino.save_model(openvino.convert_model(between), path, compress_to_fp16=False)
            exact, own = (core.compile_model(path, "CPU", hint) for hint in ({"INFERENCE_PRECISION_HINT": "f32"}, {}))
    except (RuntimeError, OpConversionFailure) as error:  # an operator that OpenVINO lacks, a full disk
        raise ValueError(f"this network cannot be written for OpenVINO: {_line(error)}") from error
    for file in path.parent.glob("network.onnx*"):
        file.unlink()
    precision = own.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def runner(compiled: Any) -> Run:
        return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())

    return Made(
        f"OpenVINO {openvino.__version__.split('-')[0]}", runner(exact), versions,
        (precision, runner(own)) if precision != "f32" else None,
    )  # fmt: skip


WRITERS: dict[str, Callable[[ExportedProgram, Path, int | None], Made]] = {
    "onnx": _write_onnx, "openvino": _write_openvino, "pt2": _write_pt2,
}  # fmt: skip


# -- comparing ---------------------------------------------------------------------------------


@torch.no_grad()
def _compare(
    network: nn.Module, made: Made, sides: tuple[int, int], step: int | None, images: Tensor | None, tolerance: float
) -> dict[str, Any]:
    """Differences to PyTorch at several shapes; a ValueError for one above the tolerance.

    `smallest` is the smallest square that the file takes, where it takes any size.
    """
    height, width = sides
    shapes = [(1, height, width), (3, height, width)]
    if step is not None:
        shapes += [(1, height + step, width + 2 * step), (2, height + height // 2 // step * step, width)]
    samples = [_pictures(*_shape(shape)) for shape in shapes]
    samples += [] if images is None else list(images.float().cpu().split(4))
    differences = []
    for sample in samples:
        try:
            difference = _difference(made.run(sample), network(sample))
        except Exception as error:  # guards of torch.export, shapes that a runtime does not take
            raise ValueError(_failed(made, sample, _line(error), step)) from error
        if not difference <= tolerance:
            text = f"logits differ from PyTorch's by {difference:.1e} of the largest; {tolerance:.1e} is let pass"
            raise ValueError(_failed(made, sample, text, step))
        differences.append(difference)
    found = {
        "largest_difference": max(differences), "tolerance": tolerance, "shapes": [list(x.shape) for x in samples],
        "unit": "largest |runtime - PyTorch| / largest |PyTorch|, float32 on a CPU",
    }  # fmt: skip
    return {**found, "smallest": None if step is None else _smallest(network, made, min(sides), step, tolerance)}


def _smallest(network: nn.Module, made: Made, side: int, step: int, tolerance: float) -> int:
    """The first of step, 2 step, 4 step ... px, up from 8 px, at which the file computes what PyTorch does."""
    smaller = step * math.ceil(8 / step)
    while smaller < side:
        with contextlib.suppress(Exception):  # too small for the network, or for what was traced
            sample = _pictures(1, (smaller, smaller))
            if _difference(made.run(sample), network(sample)) <= tolerance:
                return smaller
        smaller *= 2
    return side


def _failed(made: Made, sample: Tensor, reason: str, step: int | None) -> str:
    remedy = "export without dynamic, or in another format" if step else "another format, or a larger tolerance"
    return f"{made.runtime}, images {tuple(sample.shape)}: {reason}; nothing was written.  Remedy: {remedy}"


def _at_own_precision(network: nn.Module, made: Made, images: Tensor | None, sides: tuple[int, int]) -> dict[str, Any]:
    """How far the precision that a runtime chooses itself is from PyTorch's float32."""
    assert made.own_precision is not None
    precision, run = made.own_precision
    sample = _pictures(8, sides) if images is None else images.float().cpu()
    with torch.no_grad():
        expected = network(sample)
    found = run(sample)
    difference = _difference(found, expected)
    logger.info("export: %s computes in %s here: %.1e from PyTorch", made.runtime, precision, difference)
    return {"precision": precision, "largest_difference": difference, "same_class": _same_class(found, expected)}


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest logit; NaN if any logit is."""
    if found.shape != expected.shape:
        raise ValueError(f"logits of shape {tuple(found.shape)}, and PyTorch gives {tuple(expected.shape)}")
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()  # all may be 0


def _same_class(found: Tensor, expected: Tensor) -> float:
    """The share of pictures, or of pixels, whose largest logit is the same."""
    return (found.argmax(1) == expected.argmax(1)).double().mean().item()


def _shape(shape: tuple[int, int, int]) -> tuple[int, tuple[int, int]]:
    return shape[0], shape[1:]


def _pictures(count: int, sides: tuple[int, int]) -> Tensor:
    """Random pictures as normalised images, always the same: blobs of colour with some noise.  (count, 3, H, W)"""
    random = torch.Generator().manual_seed(0)
    blobs = F.interpolate(torch.randn(count, 3, 5, 5, generator=random), sides, mode="bilinear")
    return 1.5 * blobs + 0.3 * torch.randn(count, 3, *sides, generator=random)


# -- 8 bits ------------------------------------------------------------------------------------


@torch.no_grad()
def _quantise(
    path: Path, network: nn.Module, made: Made, images: Tensor | None, sides: tuple[int, int]
) -> dict[str, Any]:
    """Put weights of linear layers in 8 bits, in place, and say what that does; a ValueError where it is no use."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger.info("export: to 8 bits")
    files = sorted(path.parent.iterdir())
    smaller = path.parent / "int8" / path.name
    smaller.parent.mkdir()
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[
        :
    ]  # ONNX Runtime infers them; 1.22 transposes weights and then trips over their old shapes
    onnx.save(model, path)
    with _quiet():
        quantize_dynamic(
            path, smaller, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8,
            use_external_data_format=len(files) > 1,
        )  # fmt: skip
    sample = _pictures(32, sides) if images is None else images.float().cpu()
    run = _session(smaller)
    found, expected = (torch.cat([one(part) for part in sample.split(4)]) for one in (run, network))
    report: dict[str, Any] = {
        "layers": "weights of linear layers in 8 bits, the rest in float32",
        "size": _bytes(smaller.parent.iterdir()) / _bytes(files),
        "time": _relative_time(run, made.run, sample[:1]),
        "same_class": _same_class(found, expected),
        "rms_difference": ((found - expected).square().mean() / expected.square().mean()).sqrt().item(),
        "judged_on": f"{len(sample)} {'random pictures, which say little' if images is None else 'given images'}",
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
    """Time of one picture by `run` over that by `other`, the median of turns."""
    ratios = []
    for turn in range(6):
        times = []
        for one in (run, other):
            start = time.perf_counter()
            one(sample)
            times.append(time.perf_counter() - start)
        ratios += [times[0] / times[1]] if turn else []  # the first warms up
    return statistics.median(ratios)


# -- files -------------------------------------------------------------------------------------


def _input(
    sides: tuple[int, int], step: int | None, smallest: int | None, mean: Sequence[float], std: Sequence[float],
    crop_pct: float | None, interpolation: str,
) -> dict[str, Any]:  # fmt: skip
    """What the file expects, for whoever prepares images."""
    height, width = sides
    if crop_pct is None:
        view = f"resize the picture to {height} x {width} px ({interpolation}, antialiased)"
    else:
        view = (
            f"resize the picture's short side to {math.floor(min(sides) / crop_pct)} px ({interpolation}, antialiased) "
            f"and take the middle {height} x {width} px"
        )
    sizes = {} if step is None else {"smallest": smallest, "multiple_of": step}
    return {
        "name": "images", "layout": ["batch", "channel", "height", "width"], "dtype": "float32", "channels": "RGB",
        "height": height, "width": width, "any_size": step is not None, **sizes,
        "values": "normalised: (pixel / 255 - mean) / std", "mean": list(mean), "std": list(std),
        "crop_pct": crop_pct, "interpolation": interpolation, "view": view,
    }  # fmt: skip


def _described(file: Path) -> dict[str, Any]:
    with open(file, "rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def _put(folder: Path, path: Path, facts: dict[str, Any]) -> None:
    """Move whole files to their place, and write the JSON file last: where it lies, the others are complete."""
    beside = path.with_name(path.name + ".json")
    beside.unlink(missing_ok=True)
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):  # weights before what names them
        with open(file, "rb+") as content:
            os.fsync(content.fileno())
        os.replace(file, path.parent / file.name)
    fsync(path.parent)
    write_atomically(beside, json.dumps(facts, indent=2).encode())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print, log and warn of; their errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _line(error: Exception) -> str:
    """What went wrong, without the pages that exporters add."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
