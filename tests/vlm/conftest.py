"""What the tests share: a tokenizer, two images of noise, a stock LLaVA on disk; each made once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.vlm.small import small_llava, small_tokenizer

TEXTS = ["USER: <image>\nwhat is on the left?", "ASSISTANT: a cat on a mat", "how many dogs are there? two"]


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer(TEXTS)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((96, 96), (60, 130))]


@pytest.fixture(scope="session")
def stock_folder(tokenizer, tmp_path_factory) -> Path:
    """What a download of a LLaVA is: model and processor as transformers saves them."""
    folder = tmp_path_factory.mktemp("stock_llava")
    torch.manual_seed(0)
    for part in small_llava(tokenizer, connector=None):
        part.save_pretrained(folder)
    return folder
