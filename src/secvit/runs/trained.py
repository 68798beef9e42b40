"""What every run can do, whatever its task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from secvit.images import read_image
from secvit.images.photos import Made
from secvit.models.saved import saved_config

Picture = Image.Image | str | os.PathLike[str]
Photos = Iterable[str | os.PathLike[str]]
Tell = Callable[[str], Any]

__all__ = ["Made", "Photos", "Picture", "Tell", "Trained", "check_pictures", "pictures"]


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
        """A picture as the network takes it.  -> (3, H, W)"""
        raise NotImplementedError(f"a run of {self.task} has no single picture to look at")

    def predict(self, images: Picture | Sequence[Picture]) -> list[Any]:
        """What is in pictures, an answer for each; see the task's class for what an answer is."""
        raise NotImplementedError

    def evaluate(self, data: str | None = None, split: str = "val") -> dict[str, Any]:
        """Scores on a split of some data, by name; without data, of those that the run learned from."""
        raise NotImplementedError

    def data_of(self, data: str | None) -> str:
        """Where the data are: as given, or as the run says."""
        if data is None and "data" not in self.config:
            raise ValueError(f"{self.path} does not say what it learned from; give --data")
        return str(self.config["data"] if data is None else data)

    def photos(self, photos: Photos, output: str | None = None, *, tell: Tell = len) -> Made:
        """Predict photos and folders of photos, and write down what is found; a broken photo never stops the rest."""
        raise NotImplementedError

    def clustered(self) -> nn.Module:
        """The part of the network whose attention is in clusters, for `secvit.vis`."""
        return self.model


def pictures(given: Picture | Sequence[Picture]) -> list[Image.Image]:
    """One or more pictures, opened or as files, upright RGB."""
    single = isinstance(given, Image.Image | str | os.PathLike)
    return [read_image(one) for one in ([given] if single else given)]  # type: ignore[list-item, union-attr]


def check_pictures(*files: str | None) -> None:
    """Whether pictures can be drawn into some files; asked before the work."""
    if any(files):
        from secvit.vis.picture import check_output

        for file in filter(None, files):
            check_output(file)
