"""The likeliest classes of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn

from secvit.classification.scoring import view_of
from secvit.images import read_image
from secvit.models.saved import class_names_of


@torch.inference_mode()
def predict(model: nn.Module, image: Image.Image, top: int = 3) -> list[tuple[str, float]]:
    """The `top` likeliest classes of an opened image of any mode and their probabilities, the likeliest first.

    The view is that of evaluation.  Classes are numbers where the model brings no names.
    """
    return predict_all(model, [read_image(image)], top)[0]


@torch.inference_mode()
def predict_all(
    model: nn.Module, images: Sequence[Image.Image], top: int = 3, size: int | None = None
) -> list[list[tuple[str, float]]]:
    """`predict` for some upright RGB images at a time.  size: of the view in px, if not the model's own."""
    if top < 1:
        raise ValueError(f"top={top}; choose top >= 1")
    see = view_of(model, size)
    pixels = torch.stack([see(image) for image in images]).to(next(model.parameters()).device)
    shares = model.eval()(pixels).float().softmax(-1).cpu()
    names = class_names_of(model)
    if len(names) != shares.shape[1]:  # of another classifier than the one that it has now
        names = tuple(map(str, range(shares.shape[1])))
    best = shares.topk(min(top, shares.shape[1]))
    return [
        [(names[i], p) for p, i in zip(row.tolist(), which.tolist(), strict=True)]
        for row, which in zip(best.values, best.indices, strict=True)
    ]
