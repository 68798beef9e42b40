"""Runs of `secvit train segmentation...`."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from secvit.files import check_writable
from secvit.images import middle
from secvit.images.photos import listed, opened, picture_names
from secvit.runs.detector import refuse_other
from secvit.runs.trained import Made, Photo, Photos, Tell, Trained, check_pictures, open_photos
from secvit.segmentation.prediction import label_picture, load_trained, shrunk
from secvit.segmentation.scoring import score


class Segmenter(Trained):
    """A network that labels every pixel.

    predict gives, for each photo, the class of each pixel, (H, W) uint8.
    """

    task = "segmentation"

    def __init__(
        self,
        path: Path | str,
        *,
        model: str | None = None,
        device: str | None = None,
        size: int | None = None,
        window: int | None = None,
        overlap: float | None = None,
        scales: Sequence[float] | None = None,
        flip: bool = False,
    ) -> None:
        """Open a run; see `secvit.runs.open`.

        model: name of the network, for a weight file without a config.yaml beside it.
        device: cpu, cuda, ...; the GPU if there is one.
        size: px of the short side that the network sees, if not as in the run; 0 leaves the image's.
        window: px of square windows to look through; 0 for none.
        overlap: part of a window that the next one sees again.
        scales: factors of the size, to be averaged.
        flip: average with the mirrored image.
        """
        super().__init__(path)
        refuse_other(model, self.config, path)
        look = {"short_side": size, "window": window, "overlap": overlap, "flip": flip or None}
        trained = load_trained(path, device, **look, scales=tuple(scales) if scales else None)
        self.model, self.classes, self.look = trained.model, trained.classes, trained.look
        self.values, self.palette = trained.values, trained.palette

    def transform(self, image: Image.Image) -> Tensor:
        """An image at the size that the network sees, normalised.  -> (3, H, W)"""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in self.model.backbone.normalization())  # type: ignore[union-attr, operator]
        pixels = tv.pil_to_tensor(shrunk(image, self.look.short_side, 1.0))
        return (tv.to_dtype(pixels, torch.float32, scale=True) - mean) / std

    def predict(self, images: Photo | Sequence[Photo]) -> list[np.ndarray]:
        """The class of each pixel of each photo, (H, W) uint8."""
        return [label_picture(self.model, image, self.look) for image in open_photos(images)]  # type: ignore[arg-type]

    def export_view(self) -> dict[str, Any]:
        mean, std = self.model.backbone.normalization()  # type: ignore[union-attr, operator]
        side = self.look.short_side or self.look.window or self.config.get("augment", {}).get("crop", 512)
        return {
            "size": max(32, side // 32 * 32),
            "mean": mean,
            "std": std,
            "crop_pct": None,
            "interpolation": "bilinear",
        }

    def export_transform(self) -> Callable[[Image.Image], Tensor]:
        view = self.export_view()
        return middle(view["size"], view["mean"], view["std"])

    def evaluate(
        self, data: str | None = None, split: str = "val", *, workers: int = 0, confusion: str | None = None
    ) -> dict[str, Any]:
        """mIoU, pixel and mean accuracy, the IoU of each class, in 0..1, and the matrix of pixels.

        data: what the run learned from, or a folder of images and masks with the run's classes (docs/data.md).
        split: train, val or test.
        workers: processes that load images.
        confusion: also draw which classes pixels are taken for, into this picture file.
        """
        check_pictures(confusion)
        data = self.data_of(data)
        figures = score(self.model, self.classes, self.look, data, split, f"the run {self.path}", workers)  # type: ignore[arg-type]
        if confusion:
            from secvit.draw.confusion import draw_confusion

            draw_confusion(figures["confusion"], self.classes, confusion, list(figures["per_class"].values()))
        return {"data": str(data), "split": split, **figures}

    def photos(self, photos: Photos, output: str = "segments", *, tell: Tell = len) -> Made:
        """PHOTO.png, the numbers of the masks that the run learned from, in colours, and PHOTO_overlay.jpg to look at.

        The names of the classes by number are in the PNG as JSON, in its text `classes`.

        photos: files of any format and size, or folders of them.
        output: the folder for the results, numbered where two photos have one name; older ones are replaced.
        """
        from PIL.PngImagePlugin import PngInfo

        from secvit.segmentation.pictures import encoded, numbered, overlay

        folder, made = Path(output), Made()
        paths = listed(photos, folder)
        names = picture_names(paths, folder, ".png", "_overlay.jpg")
        check_writable(folder)
        text = PngInfo()
        by_number = dict(zip(map(str, self.values), self.classes, strict=True))
        text.add_itxt("classes", json_format.dumps(by_number, ensure_ascii=False))
        for batch in opened(paths, made, 1, "labelling"):
            for path, photo in batch.items():
                labels = label_picture(self.model, photo, self.look, progress=True)  # type: ignore[arg-type]
                files, mask = names[path], numbered(labels, self.values, self.palette)
                made.add(files[0], encoded(mask, "PNG", optimize=True, pnginfo=text))
                picture = overlay(photo, labels, self.palette, self.classes)
                made.add(files[1], encoded(picture, "JPEG", quality=92))
                shares = 100 * np.bincount(labels.ravel(), minlength=len(self.classes)) / labels.size
                largest = [i for i in shares.argsort()[::-1] if shares[i]]
                made.rows.append({"photo": str(path), **{self.classes[i]: shares[i] for i in largest}})
                most = ", ".join(f"{self.classes[i]} {shares[i]:.0f} %" for i in largest[:4])
                tell(f"{path}: {most}; wrote {files[0]} and {files[1].name}")
        return made

    def clustered(self) -> nn.Module:
        """The backbone."""
        return self.model.backbone.network()  # type: ignore[union-attr, operator]
