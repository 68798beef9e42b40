"""A .pt2 file: the traced program itself, for PyTorch without this package."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch.export import ExportedProgram

from secvit.export.exported import Exported, quiet
from secvit.files import write_through


def write_pt2(program: ExportedProgram, path: Path, opset: int | None) -> Exported:
    content = io.BytesIO()  # torch's own writing does not say when a disk is full
    with quiet():
        torch.export.save(program, content)
        write_through(path, content.getvalue())
        return Exported("PyTorch (torch.export)", torch.export.load(path).module(), {})
