"""scikit-learn's 1,797 real handwritten digits: data for a first try, without a download."""

from __future__ import annotations

import numpy as np
import torch

from secvit.extras import needs
from secvit.images.labelled import Images

DIGITS = tuple("0123456789")


def read_digits(name: str) -> Images:
    """The 8x8 px digits, shown at 32x32."""
    with needs("the data set of digits", "scikit-learn", "demo"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    # 4x larger, so that a network with strides 4 to 32 has something to look at
    large = torch.nn.functional.interpolate(grey, scale_factor=4.0, mode="bilinear")
    pixels = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    names = tuple(f"digit_{i:04d}" for i in range(len(labels)))
    return Images(name, DIGITS, labels, pixels, names)
