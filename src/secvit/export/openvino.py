"""OpenVINO's files, made of an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from secvit.export.exported import Exported, Run, first_line, quiet
from secvit.export.onnx import write_onnx


def write_openvino(program: ExportedProgram, path: Path, opset: int | None) -> Exported:
    import openvino
    from openvino.frontend import OpConversionFailure

    between = path.with_name("network.onnx")
    versions = write_onnx(program, between, opset).versions
    core = openvino.Core()
    try:
        with quiet():
            openvino.save_model(openvino.convert_model(between), path, compress_to_fp16=False)
            exact, own = (core.compile_model(path, "CPU", hint) for hint in ({"INFERENCE_PRECISION_HINT": "f32"}, {}))
    except (RuntimeError, OpConversionFailure) as error:  # an operator that OpenVINO lacks, a full disk
        raise ValueError(f"this network cannot be written for OpenVINO: {first_line(error)}") from error
    for file in path.parent.glob("network.onnx*"):
        file.unlink()
    precision = own.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def runner(compiled: Any) -> Run:
        return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())

    return Exported(
        f"OpenVINO {openvino.__version__.split('-')[0]}", runner(exact), versions,
        (precision, runner(own)) if precision != "f32" else None,
    )  # fmt: skip
