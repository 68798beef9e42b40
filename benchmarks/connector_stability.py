"""How far connectors' outputs move with their inputs, on features of a network that was trained.

python benchmarks/connector_stability.py PHOTO [PHOTO ...]

The tower is `secvit_nano.clothing10` at 384 px: 24 x 24 tokens of stride 16, 576 to 144.  The connectors are at their
start, not trained, and end before the MLP.  CLIP ViT-L/14-336 was not measured.
"""

from __future__ import annotations

import sys

import torch
from PIL import Image
from torch import Tensor

from secvit.connectors import create
from secvit.connectors.stability import stability
from secvit.images import read_image
from secvit.models.saved import load_model
from secvit.vis.clusters import normalised
from secvit.vis.connectors import deepest_tokens

FORMS = {
    "sec": {"name": "sec"},
    "sec, sequential": {"name": "sec", "arrangement": "sequential"},
    "tome": {"name": "tome"},
    "random groups": {"name": "random"},
    "window": {"name": "window"},
    "pool": {"name": "pool"},
}


def features(network: torch.nn.Module, photos: list[Tensor], dtype: torch.dtype) -> Tensor:
    network = network.to(dtype)
    return torch.cat([deepest_tokens(network, photo.to(dtype), 144)[0].float() for photo in photos])


def main(paths: list[str]) -> None:
    network = load_model("secvit_nano.clothing10")
    images = [read_image(path).resize((384, 384), Image.Resampling.BICUBIC) for path in paths]
    photos = [normalised(image, network) for image in images]
    generator = torch.Generator().manual_seed(0)
    grey = (photos[0].max() - photos[0].min()) / 255
    noisy = [x + grey * torch.randint(-1, 2, x.shape, generator=generator) for x in photos]
    tokens = features(network, photos, torch.float32)
    cases = {
        "±1 grey level": features(network, noisy, torch.float32),
        "tower in bfloat16": features(network, photos, torch.bfloat16),
    }
    print(f"{len(photos)} photos, torch {torch.__version__}, relative changes in %")
    print("| connector | " + " | ".join(f"{case}: tokens | outputs | pairs kept" for case in cases) + " |")
    for name, form in FORMS.items():
        connector = create(**form, in_dim=tokens.shape[-1], out_dim=1, num_tokens=144, extra_token=None).eval()
        connector.linear_1 = connector.act = connector.linear_2 = torch.nn.Identity()
        found = [stability(connector, tokens, other) for other in cases.values()]
        print(
            f"| {name} | "
            + " | ".join(f"{100 * f.inputs:.2f} | {100 * f.outputs:.1f} | {100 * f.together:.0f} %" for f in found)
            + " |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
