"""How far connectors' outputs move with their inputs, on features of a network that was trained.

python benchmarks/connector_stability.py PHOTO [PHOTO ...]

The tower is `secvit_nano.clothing10` at 384 px: 24 x 24 tokens of stride 16, 576 to 144.  The connectors are at their
start, not trained, and end before the MLP; noise and random groups are drawn anew for each of three seeds.
CLIP ViT-L/14-336 was not measured.  Writes results/connector-stability_<hardware>_<torch>_<date>.json.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from secvit.connectors import create
from secvit.connectors.stability import stability
from secvit.images import read_image
from secvit.models.saved import load_model
from secvit.provenance import provenance, result_name
from secvit.vis.clusters import normalised
from secvit.vis.connectors import deepest_tokens

FORMS = {
    "sec": {"name": "sec"},
    "sec, sequential": {"name": "sec", "arrangement": "sequential"},
    "tree": {"name": "tree"},
    "tome": {"name": "tome"},
    "random groups": {"name": "random"},
    "window": {"name": "window"},
    "pool": {"name": "pool"},
}


def features(network: torch.nn.Module, photos: list[Tensor], dtype: torch.dtype) -> Tensor:
    network = copy.deepcopy(network).to(dtype)
    return torch.cat([deepest_tokens(network, photo.to(dtype), 144)[0].float() for photo in photos])


def main(paths: list[str]) -> None:
    network = load_model("secvit_nano.clothing10")
    images = [read_image(path).resize((384, 384), Image.Resampling.BICUBIC) for path in paths]
    photos = [normalised(image, network) for image in images]
    grey = (photos[0].max() - photos[0].min()) / 255
    tokens = features(network, photos, torch.float32)
    rounded = features(network, photos, torch.bfloat16)
    rows = []
    for seed in tqdm(range(3)):
        generator = torch.Generator().manual_seed(seed)
        noisy = [x + grey * torch.randint(-1, 2, x.shape, generator=generator) for x in photos]
        for case, other in (("noise", features(network, noisy, torch.float32)), ("bfloat16", rounded)):
            for title, form in FORMS.items():
                torch.manual_seed(seed)
                connector = create(**form, in_dim=tokens.shape[-1], out_dim=1, num_tokens=144, extra_token=None).eval()
                connector.linear_1 = connector.act = connector.linear_2 = torch.nn.Identity()
                moved = stability(connector, tokens, other)
                rows.append({"connector": title, "case": case, "seed": seed, **moved._asdict()})
    about = provenance()
    recipe = {"photos": [Path(path).name for path in paths], "size": 384, "num_tokens": 144, "seeds": [0, 1, 2]}
    result = {"kind": "connector stability", "tower": "secvit_nano.clothing10", "recipe": recipe, "rows": rows, **about}
    path = Path(__file__).parent / "results" / f"{result_name('connector-stability', about)}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", help="image files")
    main(parser.parse_args().photos)
