"""Runs of `secvit train simmim...`: backbones that were pre-trained by filling in hidden patches."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from secvit.files import check_writable
from secvit.images import Images, load_split, middle
from secvit.images.photos import listed, opened, picture_names
from secvit.models.saved import device_of, load_model, naming
from secvit.runs.trained import Made, Photo, Photos, Tell, Trained, open_photos
from secvit.simmim.data import EvalView, Masking
from secvit.simmim.scoring import evaluate, reconstructions
from secvit.simmim.training import load_task


class Masked(Trained):
    """A backbone without a classifier, and the decoder that it was trained with.

    predict gives, for each photo, its middle square with the hidden patches filled in.
    """

    task = "simmim"

    def __init__(self, path: Path | str, *, model: str | None = None, device: str | None = None) -> None:
        """Open a run; see `secvit.runs.open`.

        model: name of the network, for a weight file without a config.yaml beside it.
        device: cpu, cuda, ...; the GPU if there is one.
        """
        super().__init__(path)
        assert isinstance(path, Path)
        network: Any = load_model(model, path, 0).to(device_of(device))
        cfg = timm.data.resolve_data_config(model=network)
        self.model: nn.Module = network
        self.seen: tuple[int, Any, Any] = (network.pretrained_cfg["input_size"][-1], cfg["mean"], cfg["std"])
        with naming(path):
            self.masking = Masking(**self.config["masking"])
        self.filler = load_task(path, self.model).to(device_of(device))

    def transform(self, image: Image.Image) -> Tensor:
        """The middle square of an image, normalised.  -> (3, size, size)"""
        return middle(*self.seen)(image)

    def predict(self, images: Photo | Sequence[Photo]) -> list[Image.Image]:
        """The middle square of each photo, its hidden patches filled in."""
        return [row[2] for row in self._filled(open_photos(images))]

    def export_view(self) -> dict[str, Any]:
        raise ValueError(
            f"{self.path} is a backbone without a classifier, and its features are of no use alone; train one on it, "
            f"secvit train classification.folder --model.init {self.path}, and export that"
        )

    def evaluate(self, data: str | None = None, split: str = "val", *, batch_size: int = 64) -> dict[str, Any]:
        """L1 on hidden pixels, and that of the mean visible colour.

        data: what the run learned from, or other images (docs/data.md), whose labels are not used.
        split: train, val or test.
        batch_size: images at a time.
        """
        data = self.data_of(data)
        view = EvalView(load_split(data, split), self.masking, *self.seen)
        device = next(self.model.parameters()).device
        return {"data": str(data), "split": split, **evaluate(self.filler, view, batch_size, device)}

    def photos(self, photos: Photos, output: str = "reconstructions", *, tell: Tell = len) -> Made:
        """PHOTO_reconstructed.png: the middle square, what is visible of it, and the hidden patches filled in.

        photos: files of any format and size, or folders of them.
        output: the folder for the pictures; older ones are replaced.
        """
        folder, made = Path(output), Made()
        paths = listed(photos, folder)
        names = picture_names(paths, folder, "_reconstructed.png")
        check_writable(folder)
        for batch in opened(paths, made, 1, "filling in"):
            for path, image in batch.items():
                content, row = io.BytesIO(), self._filled([image])[0]
                joined = Image.new("RGB", (sum(p.width for p in row), row[0].height))
                for i, picture in enumerate(row):
                    joined.paste(picture, (i * row[0].width, 0))
                joined.save(content, "PNG")
                made.add(names[path][0], content.getvalue())
                made.rows.append({"photo": str(path)})
                tell(f"{path}: wrote {names[path][0]}")
        return made

    def _filled(self, images: list[Image.Image]) -> list[tuple[Image.Image, ...]]:
        """Each image as seen, what is visible of it, and filled in."""
        labels, names = torch.zeros(len(images), dtype=torch.long), tuple(map(str, range(len(images))))
        view = EvalView(
            Images("photos", (), labels, None, names, read=lambda i: images[int(i)]), self.masking, *self.seen
        )
        batch = view.__getitems__(list(range(len(images))))
        return list(zip(*reconstructions(self.filler, batch, *self.seen[1:]).values(), strict=True))
