"""Small networks of each kind whose attention is in clusters, and a photo."""

import numpy as np
import timm
from PIL import Image

import secvit

NANO = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (2, 4, 6, 8), "head_hidden_size": 32}
SWIN = {"depths": (1, 2, 1, 1), "embed_dim": 16, "num_heads": (2, 4, 4, 8), "num_classes": 5}
VIT = {"img_size": 64, "depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def secvit_nano(**changes):
    return timm.create_model("secvit_nano", num_classes=5, **NANO, **changes).eval()


def sec_swin(**changes):
    return timm.create_model("sec_swin_tiny", **SWIN, **changes).eval()


def sec_deit(**changes):
    return timm.create_model("sec_deit_small", **VIT, **changes).eval()


def patched(**changes):
    return secvit.patch(timm.create_model("vit_tiny_patch16_224", **VIT).eval(), 4, **changes)


def photo(width=56, height=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
