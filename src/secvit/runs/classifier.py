"""Runs of `secvit train classification...`, and the classifiers that come along."""

from __future__ import annotations

import csv
import io
import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from secvit.classification.prediction import predict_all
from secvit.classification.scoring import accuracy_by_class, answers, figures, seen_by, split_view, view_of
from secvit.files import check_target, write_atomically
from secvit.images.photos import listed, opened
from secvit.models.saved import check_one_name, class_names_of, device_of, load_model
from secvit.runs.trained import Made, Photo, Photos, Tell, Trained, check_pictures, open_photos

WRONG = 24  # images on the page of the most wrong ones
MATRIX = 200  # classes up to which result files hold the whole confusion


class Classifier(Trained):
    """A network that tells which class a photo shows.

    predict gives, for each photo, the likeliest classes with their probabilities: [("dress", 0.93), ...].
    """

    task = "classification"

    def __init__(
        self, path: Path | str, *, model: str | None = None, device: str | None = None, size: int | None = None
    ) -> None:
        """Open a run; see `secvit.runs.open`.

        model: name of the network, for a weight file without a config.yaml beside it.
        device: cpu, cuda, ...; the GPU if there is one.
        size: px of the side that the network sees, if not as in training.
        """
        super().__init__(path)
        if size is not None and size < 1:
            raise ValueError(f"size={size}; choose the side in px that the network sees, for example 224")
        place = device_of(device)
        if not isinstance(path, Path):
            check_one_name(path, model)
        network = load_model(model, path) if isinstance(path, Path) else load_model(path)
        self.model: nn.Module = network.to(place)
        self.classes = class_names_of(self.model)
        self.size = size

    def transform(self, image: Image.Image) -> Tensor:
        """An image as evaluation sees it: resized, the middle square, normalised.  -> (3, size, size)"""
        return view_of(self.model, self.size)(image)

    def predict(self, images: Photo | Sequence[Photo], top: int = 3) -> list[list[tuple[str, float]]]:
        """The `top` likeliest classes of each photo and their probabilities, the likeliest first."""
        return predict_all(self.model, open_photos(images), top, self.size)

    def export_view(self) -> dict[str, Any]:
        size, mean, std, crop = seen_by(self.model, self.size)
        return {"size": size, "mean": mean, "std": std, "crop_pct": crop}

    def evaluate(
        self,
        data: str | None = None,
        split: str = "val",
        *,
        batch_size: int = 256,
        workers: int = 0,
        confusion: str | None = None,
        wrong: str | None = None,
    ) -> dict[str, Any]:
        """Top-1, top-5 (from six classes on), the mean over classes, and the accuracy of each class, in 0..1.

        data: a folder, a table, wds/..., hfds/... or "digits" (docs/data.md); else what the run learned from.
        split: train, val or test.
        batch_size: images at a time.
        workers: processes that load images.
        confusion: also draw which classes are taken for which, into this picture file.
        wrong: also draw the most wrong images, the surest mistakes first, into this picture file.
        """
        check_pictures(confusion, wrong)
        data = self.data_of(data)
        view = split_view(self.model, data, split, f"the run {self.path}", self.size)
        outcome = answers(self.model, view, batch_size, next(self.model.parameters()).device, workers)
        names = list(view.images.classes)
        matrix = outcome.confusion(len(names)) if confusion or len(names) <= MATRIX else None
        per_class = dict(zip(names, accuracy_by_class(outcome, len(names)), strict=True))
        result: dict[str, Any] = {"data": str(data), "split": split, **figures(outcome, view), "per_class": per_class}
        if matrix is not None and len(names) <= MATRIX:
            result["confusion"] = matrix.tolist()
        if confusion:
            from secvit.draw.confusion import draw_confusion

            draw_confusion(matrix.tolist(), names, confusion, list(per_class.values()), "accuracy")  # type: ignore[union-attr]
        if wrong:
            from secvit.classification.pictures import draw_wrong

            rows = outcome.most_wrong(WRONG)
            shown = [
                (
                    view.images.image(int(outcome.index[r])),
                    names[outcome.target[r]],
                    names[outcome.predicted[r]],
                    outcome.share[r],
                )
                for r in rows
            ]
            mistakes = int((outcome.predicted != outcome.target).sum())
            draw_wrong(shown, f"{len(rows)} of {mistakes} mistakes among {len(outcome.index)} images of {data}", wrong)
        return result

    def photos(
        self,
        photos: Photos,
        *,
        top: int = 3,
        batch_size: int = 16,
        json: str | None = None,
        csv: str | None = None,
        tell: Tell = len,
    ) -> Made:
        """The likeliest classes of each photo.

        photos: files of any format and size, or folders of them.
        top: classes to name.
        batch_size: photos at a time.
        json: also write them to this file.
        csv: also write them to this table, a row for each photo.
        """
        for file in filter(None, (json, csv)):
            check_target(file)
        made = Made()
        try:
            for batch in opened(listed(photos), made, batch_size, "predicting"):
                for path, classes in zip(batch, self.predict(list(batch.values()), top), strict=True):
                    made.rows.append({"photo": str(path), "classes": classes})
                    tell(f"{path}: " + ", ".join(f"{label} {100 * share:.1f} %" for label, share in classes))
        finally:  # what was found until then is not lost
            if json and made.rows:
                write_atomically(Path(json), as_json(self.title, made.rows))
            if csv and made.rows:
                write_atomically(Path(csv), as_csv(made.rows))
        return made


def as_json(title: str, rows: Sequence[dict[str, Any]]) -> bytes:
    photos = [
        {"photo": row["photo"], "classes": [{"class": name, "probability": share} for name, share in row["classes"]]}
        for row in rows
    ]
    return json_format.dumps({"weights": title, "photos": photos}, indent=2, ensure_ascii=False).encode()


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """photo, class, probability, class_2, probability_2, ..."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    places = range(1, len(rows[0]["classes"]) + 1)
    writer.writerow(["photo", *(f"{w}_{n}" if n > 1 else w for n in places for w in ("class", "probability"))])
    for row in rows:
        writer.writerow([row["photo"], *(value for name, share in row["classes"] for value in (name, f"{share:.6f}"))])
    return table.getvalue().encode()
