"""Seeds for every test, and where the conformance data and the small data sets are looked for."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and data sets: $SECVIT_SHARED, else ../shared; skips where there is none."""
    folder = Path(os.environ.get("SECVIT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set SECVIT_SHARED to the folder with golden/ and data/")
    return folder
