"""An ONNX file, and ONNX Runtime to compute with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from secvit.export.exported import Exported, Run, first_line, quiet

ONE_FILE = 1_500_000_000  # bytes of weights; an ONNX file holds less than 2 GiB, so more of them lie beside it


def write_onnx(program: ExportedProgram, path: Path, opset: int | None) -> Exported:
    import onnxruntime

    weights = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    try:
        with quiet():
            program = program.run_decompositions({torch.ops.aten.adaptive_avg_pool2d.default: _pooled})
            made = torch.onnx.export(
                program, dynamo=True, input_names=["images"], output_names=["logits"], opset_version=opset
            )
            assert made is not None
            made.save(path, external_data=weights > ONE_FILE)
            session = open_session(path)
    except OSError:
        raise
    except Exception as error:  # an operator that ONNX or its runtime lacks, an opset that is too old
        raise ValueError(f"this network cannot be written as ONNX: {first_line(error)}") from error
    return Exported(f"ONNX Runtime {onnxruntime.__version__}", session, {"opset": _opset(path)})


def _pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive pooling to one pixel.  torch 2.7 writes it with operators on sequences, which OpenVINO lacks."""
    return x.mean((-2, -1), keepdim=True) if list(size) == [1, 1] else NotImplemented


def open_session(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _opset(path: Path) -> str:
    import onnx

    return str(onnx.load(str(path), load_external_data=False).opset_import[0].version)
