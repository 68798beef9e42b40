"""What every run can do, whatever its task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from secvit.images import read_image
from secvit.images.photos import Made, listed
from secvit.models.saved import saved_config

Photo = Image.Image | str | os.PathLike[str]
Photos = Iterable[str | os.PathLike[str]]
Tell = Callable[[str], Any]

__all__ = ["Made", "Photo", "Photos", "Tell", "Trained", "check_pictures", "open_photos"]


class Trained:
    """A trained network in evaluation mode, and what its run says of it; `secvit.runs.open` makes one.

    path: of the weights, or the name of weights that come along.  config: what the run's config.yaml says.
    model: the network, on its device.  classes: their names in the order of the network's numbers.
    """

    task: ClassVar[str] = ""
    path: Path | str
    model: nn.Module
    classes: tuple[str, ...] = ()

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.config: dict[str, Any] = saved_config(path) if isinstance(path, Path) else {}

    @property
    def title(self) -> str:
        """What pictures and tables call it: the last two parts of the path, or the name."""
        return "/".join(self.path.parts[-2:]) if isinstance(self.path, Path) else self.path

    def transform(self, image: Image.Image) -> Tensor:
        """An image as the network takes it.  -> (3, H, W)"""
        raise NotImplementedError(f"a run of {self.task} has no single image to look at")

    def predict(self, images: Photo | Sequence[Photo]) -> list[Any]:
        """What is in photos, an answer for each; see the task's class for what an answer is."""
        raise NotImplementedError

    def evaluate(self, data: str | None = None, split: str = "val") -> dict[str, Any]:
        """Scores on a split of some data, by name; without data, of those that the run learned from."""
        raise NotImplementedError

    def data_of(self, data: str | None) -> str:
        """Where the data are: as given, or as the run says."""
        if data is not None:
            return str(data)
        if "data" not in self.config:
            raise ValueError(f"{self.path} does not say what it learned from; give --data")
        place = str(self.config["data"])
        path = place.removeprefix("wds/").removeprefix("hfds/")
        pattern = path.find("{")  # of shards
        there = os.path.dirname(path[:pattern]) if pattern >= 0 else path
        if os.path.isabs(path) and not os.path.exists(there):
            raise ValueError(f"{self.path} learned from {place}, which is not there now; give --data, and where it is")
        return place

    def photos(self, photos: Photos, output: str | None = None, *, tell: Tell = len) -> Made:
        """Predict photos and folders of photos, and write down what is found; a broken photo never stops the rest."""
        raise NotImplementedError

    def export(
        self,
        output: str | None = None,
        *,
        format: Literal["onnx", "openvino", "pt2"] = "onnx",
        dynamic: bool = False,
        int8: bool = False,
        photos: Sequence[str] = (),
        opset: int | None = None,
        tolerance: float = 1e-3,
    ) -> dict[str, Any]:
        """The network as a file for another runtime, compared with PyTorch in that runtime before it is kept.

        A JSON file beside it says what it takes and gives: size, mean, std, names of classes (docs/export.md).

        output: the file; else model.onnx, .xml or .pt2 in the run's folder.
        format: onnx for ONNX Runtime and others, openvino, or pt2 for `torch.export.load`.
        dynamic: take images of any height and width.
        int8: weights of linear layers in 8 bits; refused where that is no use.
        photos: files or folders of photos to compare on, besides random images; int8 is judged by them.
        opset: version of ONNX's operators; the exporter's own choice if it is not given.
        tolerance: largest difference to PyTorch that is let pass, as a part of the largest logit.
        """
        from secvit.export import ENDINGS, export

        view = self.export_view()
        if output is None:
            folder = self.path if isinstance(self.path, Path) and self.path.is_dir() else Path()
            name = "model" if folder.parts else Path(self.title).stem
            output = str(folder / f"{name}{ENDINGS[format]}")
        images = None
        if photos:
            see = self.export_transform()
            images = torch.stack([see(read_image(photo)) for photo in listed(photos)])
        more = {"dynamic": dynamic, "int8": int8, "opset": opset, "tolerance": tolerance, "images": images}
        facts = export(self.model, output, format, **view, classes=self.classes, task=self.task, **more)  # type: ignore[arg-type]
        return {"file": output, **facts}

    def export_view(self) -> dict[str, Any]:
        """size, mean, std, crop_pct of what an exported network takes; a ValueError where there is none."""
        raise ValueError(f"a run of {self.task} cannot be exported")

    def export_transform(self) -> Callable[[Image.Image], Tensor]:
        """An image as an exported network takes it."""
        return self.transform

    def clustered(self) -> nn.Module:
        """The part of the network whose attention is in clusters, for `secvit.vis`."""
        return self.model


def open_photos(photos: Photo | Sequence[Photo]) -> list[Image.Image]:
    """One or more photos, opened or as files, upright RGB."""
    if isinstance(photos, Image.Image | str | os.PathLike):
        return [read_image(photos)]
    return [read_image(one) for one in photos]


def check_pictures(*files: str | None) -> None:
    """Whether pictures can be drawn into some files; asked before the work."""
    if any(files):
        from secvit.draw.picture import check_output

        for file in filter(None, files):
            check_output(file)
