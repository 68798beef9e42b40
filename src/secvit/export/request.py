"""What is asked of an export, refused where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from secvit.export.tracing import random_images
from secvit.extras import needs

Format = Literal["onnx", "openvino", "pt2"]
Task = Literal["classification", "segmentation"]
ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
LAYOUTS = {"classification": ["batch", "classes"], "segmentation": ["batch", "classes", "height", "width"]}
NO_DETECTOR = (
    "detectors cannot be exported: torchvision's non-maximum suppression chooses its way by how many boxes are left "
    "(torchvision.ops.boxes.batched_nms), and torch.export follows no choice that depends on the image.  Use the "
    "run in PyTorch"
)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size={size}; give the height and width of images in px, or one number for squares")
    return sides


@dataclass(frozen=True)
class Request:
    """What `secvit.export.export` was asked for, under its names; sides are height and width in px."""

    path: Path
    format: str
    task: str
    sides: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]
    crop_pct: float | None
    interpolation: str
    images: Tensor | None
    int8: bool
    opset: int | None
    tolerance: float

    def check(self, model: nn.Module) -> None:
        """Refuse what cannot be, before anything is computed."""
        self._check_format(model)
        self._check_numbers()
        self._check_packages()

    def _check_format(self, model: nn.Module) -> None:
        if self.format not in ENDINGS:
            raise ValueError(f"format={self.format!r}; choose one of {', '.join(ENDINGS)}")
        if isinstance(model, (GeneralizedRCNN, RetinaNet)) or self.task == "detection":
            raise ValueError(NO_DETECTOR)
        if self.task not in LAYOUTS:
            raise ValueError(f"a network for {self.task} cannot be exported; classifiers and segmenters can")
        if self.path.suffix != ENDINGS[self.format] or self.path.is_dir():
            raise ValueError(
                f"{self.path}: format {self.format} is written to a file that ends in {ENDINGS[self.format]}; name one"
            )
        if self.int8 and self.format != "onnx":
            raise ValueError(
                f"int8 with format {self.format}: 8 bits are made by ONNX Runtime; choose format onnx, or no int8"
            )
        if self.opset is not None and self.format == "pt2":
            raise ValueError(f"opset={self.opset} with format pt2: operators of ONNX are not used there; leave it out")

    def _check_numbers(self) -> None:
        mean, std, (height, width) = self.mean, self.std, self.sides
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance}; choose a part of the largest logit, such as 0.001")
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError(f"mean={list(mean)}, std={list(std)}; give three numbers each, of pixels between 0 and 1")
        if self.images is not None and (self.images.shape[1:] != (3, height, width) or not len(self.images)):
            raise ValueError(
                f"images of shape {tuple(self.images.shape)}; give one or more of (N, 3, {height}, {width})"
            )

    def _check_packages(self) -> None:
        if self.format != "pt2":
            for package in ("onnx", "onnxscript", "onnxruntime"):
                with needs(f"export to {self.format}", package, "export"):
                    __import__(package)
        if self.format == "openvino":
            with needs("export to OpenVINO", "openvino", "openvino"):
                __import__("openvino")


@torch.no_grad()
def check_logits(network: nn.Module, sides: tuple[int, int], task: str, classes: Sequence[str]) -> None:
    """Refuse a network that does not give what its task gives."""
    logits = network(random_images(1, sides))
    name, layout = type(network).__name__, LAYOUTS[task]
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name} gives a {type(logits).__name__}; export takes networks that give logits, one tensor")
    if logits.dim() != len(layout):
        raise ValueError(f"{name} gives {tuple(logits.shape)}; for {task} logits are ({', '.join(layout)})")
    if classes and logits.shape[1] != len(classes):
        raise ValueError(f"{name} tells {logits.shape[1]} classes apart, and {len(classes)} names are given")
