"""What a network sees in a picture."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn

from secvit.classification.scoring import eval_view
from secvit.images import Images, read_image
from secvit.models.saved import class_names_of


@torch.inference_mode()
def predict(model: nn.Module, image: Image.Image, top: int = 3) -> list[tuple[str, float]]:
    """The `top` likeliest classes of an opened picture of any mode and their probabilities, the likeliest first.

    The view is that of evaluation.  Classes are numbers where the model brings no names.
    """
    if top < 1:
        raise ValueError(f"top={top}; choose top >= 1")
    picture = read_image(image)
    one = Images("picture", (), torch.zeros(1, dtype=torch.long), None, ("picture",), read=lambda _: picture)
    view = eval_view(one, model).__getitems__([0])["image"]
    shares = model.eval()(view.to(next(model.parameters()).device)).float().softmax(-1)[0].cpu()
    names = class_names_of(model)
    if len(names) != len(shares):  # of another classifier than the one that it has now
        names = tuple(map(str, range(len(shares))))
    found = shares.topk(min(top, len(shares)))
    return [(names[i], p) for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True)]
