"""A small set of images and masks: bright squares (1) and stripes (2) on noise (0)."""

import json

import numpy as np
from PIL import Image


def scene(seed, side=64):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (side, side + 16, 3), dtype=np.uint8)
    mask = np.zeros(pixels.shape[:2], np.uint8)
    y, x = (int(v) for v in random.integers(2, side - 30, 2))
    pixels[y : y + 24, x : x + 24, 0], mask[y : y + 24, x : x + 24] = 220, 1
    pixels[-10:, :, 2], mask[-10:] = 220, 2
    return pixels, mask


def mask_folder(root, images=4, side=64, splits=("train", "val"), classes=("noise", "square", "stripe"), ignore=255):
    """camvid's layout.  Two rows at the top of each mask are ignored."""
    for number, split in enumerate(splits):
        for i in range(images):
            pixels, mask = scene(100 * number + i, side)
            mask[:2] = ignore
            save(root / split / f"{i}.png", pixels)
            save(root / f"{split}_label" / f"{i}.png", mask)
    if classes:
        (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": ignore}))
    return root


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)
