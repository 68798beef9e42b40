"""Runs of `secvit train detection...`."""

from __future__ import annotations

import io
import json as json_format
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from secvit.detection.evaluate import score
from secvit.detection.prediction import add_image, as_pixels, new_coco, predict, seen_size
from secvit.detection.saved import load_detector
from secvit.files import check_target, check_writable
from secvit.images.photos import listed, opened, picture_names
from secvit.runs.trained import Made, Photo, Photos, Tell, Trained, open_photos


class Detector(Trained):
    """A network that finds objects.

    predict gives, for each photo, a dict of tensors on the CPU: boxes (n, 4) as corners in px, labels (n) from 0 on,
    scores (n), and masks (n, H, W) where the network makes them.
    """

    task = "detection"

    def __init__(
        self, path: Path | str, *, model: str | None = None, device: str | None = None, size: int | None = None
    ) -> None:
        """Open a run; see `secvit.runs.open`.

        model: name of the network, for a weight file without a config.yaml beside it.
        device: cpu, cuda, ...; the GPU if there is one.
        size: short side in px that the detector sees, if not as in the run; the limit of the long side grows with it.
        """
        super().__init__(path)
        self.model, self.categories = load_detector(path, size, device)
        refuse_other(model, self.config, path)
        self.classes = tuple(self.categories.values())

    def transform(self, image: Image.Image) -> Tensor:
        """An image in 0..1; the network itself resizes and normalises it.  -> (3, H, W)"""
        return as_pixels(image)

    def predict(self, images: Photo | Sequence[Photo], score: float = 0.5) -> list[dict[str, Tensor]]:
        """The objects in each photo, the surest first.  score: the least one kept, 0.05 or more."""
        return predict(self.model, open_photos(images), score)

    def export_view(self) -> dict[str, Any]:
        from secvit.export import NO_DETECTOR

        raise ValueError(f"{self.path}: {NO_DETECTOR}")

    def evaluate(
        self, data: str | None = None, split: str = "val", *, max_dets: int | None = None, batch_size: int = 1
    ) -> dict[str, Any]:
        """COCO's twelve figures of boxes and masks in 0..1, and the AP of each class; -1 where nothing is to be found.

        data: what the run learned from, or a folder in COCO's, YOLO's or Pascal VOC's format (docs/data.md).
        split: train, val or test.
        max_dets: detections of an image that count; else as in the run.
        batch_size: images at a time.
        """
        data = self.data_of(data)
        dets = max_dets or self.config.get("max_dets", 100)
        figures = score(self.model, self.categories, data, split, f"the run {self.path}", dets, batch_size)
        return {"data": str(data), "split": split, **figures}

    def photos(
        self,
        photos: Photos,
        output: str = "detections",
        *,
        score: float = 0.5,
        batch_size: int = 1,
        json: str | None = None,
        tell: Tell = len,
    ) -> Made:
        """Objects drawn over each photo, PHOTO_detections.jpg, and all of them in one JSON file in COCO's format.

        photos: files of any format and size, or folders of them.
        output: the folder for the pictures, numbered where two photos have one name; older ones are replaced.
        score: the least score drawn and written, 0.05 or more.
        batch_size: photos at a time.
        json: the JSON file, if not detections.json in `output`; its file_name is the path below the photos' common
            folder.
        """
        from secvit.detection.pictures import draw_detections

        folder, made = Path(output), Made()
        paths = listed(photos, folder)
        file = Path(json or folder / "detections.json")
        if file.resolve() in {path.resolve() for path in paths}:
            raise ValueError(f"{file}: one of the photos; name another file")
        check_writable(folder)
        check_target(file)
        names = picture_names(paths, folder, "_detections.jpg")
        root = os.path.commonpath([path.parent for path in paths])
        coco = new_coco(self.categories)
        coco["info"] = {"description": "secvit predict", "weights": str(self.path), "score": score}
        try:
            for batch in opened(paths, made, batch_size, "detecting", lambda image: seen_size(self.model, image.size)):
                for (path, image), detections in zip(
                    batch.items(), self.predict(list(batch.values()), score), strict=True
                ):
                    name = path.relative_to(root).as_posix()
                    add_image(coco, name, image.size, detections)
                    content = io.BytesIO()
                    drawn = draw_detections(image, detections, self.classes)
                    drawn.save(content, "JPEG", quality=95, subsampling=0)
                    made.add(names[path][0], content.getvalue())
                    counts = _counted([self.classes[label] for label in detections["labels"].tolist()])
                    made.rows.append({"photo": str(path), "objects": len(detections["labels"])})
                    tell(f"{path}: {counts}; wrote {names[path][0]}")
        finally:  # what was found until then is not lost
            if coco["images"]:
                made.add(file, json_format.dumps(coco).encode())
                tell(f"{len(coco['annotations'])} objects in {len(coco['images'])} photos; see {folder} and {file}")
        return made

    def clustered(self) -> nn.Module:
        """The backbone."""
        return self.model.backbone.network()  # type: ignore[union-attr, operator]


def _counted(names: Sequence[str]) -> str:
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no objects"


def refuse_other(model: str | None, config: dict[str, Any], path: Path | str) -> None:
    """A ValueError where a name of a network contradicts what a run says of its backbone."""
    saved = (config.get("model") or {}).get("backbone")
    if model is not None and saved is not None and saved.partition(".")[0] != model.partition(".")[0]:
        raise ValueError(f"{path} is a run on {saved}, not on {model}; leave out the name")
