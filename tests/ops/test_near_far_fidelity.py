"""A trained ViT keeps its features: photos of ../shared/data in the ViT-S/14 that ../shared/weights makes.

$SECVIT_WEIGHTS is the folder that `python ../shared/weights/get FOLDER dinov2` wrote.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import secvit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights():
    path = Path(os.environ.get("SECVIT_WEIGHTS", "weights"), "dinov2_small.safetensors")
    if not path.is_file():
        pytest.skip(f"no {path}: set SECVIT_WEIGHTS to the folder that shared/weights/get wrote")
    return path


def network(weights, size):
    timm = pytest.importorskip("timm")
    from safetensors.torch import load_file
    from timm.models.vision_transformer import checkpoint_filter_fn

    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=size)
    model.load_state_dict(checkpoint_filter_fn(load_file(weights), model))
    return model.eval()


def photo(path, size):
    import numpy as np
    from PIL import Image

    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels / 255 - mean) / std).permute(2, 0, 1).unsqueeze(0)


@torch.no_grad()
def patch_cosines(model, images, **options):
    """Mean cosine of patch tokens, patched to unpatched, one an image."""
    before = [model.forward_features(x)[:, 1:] for x in images]
    secvit.patch(model, **options)
    after = [model.forward_features(x)[:, 1:] for x in images]
    return torch.stack([F.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(after, before)])


@pytest.mark.parametrize(
    ("size", "clusters", "near", "names", "mean", "worst"),
    [
        (448, 16, 2, ["china.jpg", "coffee.png", "astronaut.png", "flower.jpg"], 0.987, 0.966),
        (448, 32, 4, ["china.jpg", "coffee.png", "astronaut.png", "flower.jpg"], 0.99, 0.98),
        (896, 32, 2, ["china.jpg"], 0.989, 0.989),
    ],
)
def test_a_trained_vit_keeps_its_patch_tokens(shared, weights, size, clusters, near, names, mean, worst):
    images = [photo(shared / "data" / "photos" / name, size) for name in names]
    cosines = patch_cosines(
        network(weights, size), images, num_clusters=clusters, partition="tree", near=near, far=True
    )
    assert cosines.mean() > mean and cosines.min() > worst
