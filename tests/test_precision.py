"""Half precision where networks are only looked at: on a GPU, as they were trained."""

import pytest
import torch

from secvit.precision import on_gpu_autocast


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_cpu_looks_in_full_precision(precision):
    with on_gpu_autocast("cpu", precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("precision", "dtype"), [("no", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_gpu_looks_in_the_precision_of_training(precision, dtype):
    x = torch.ones(2, 2, device="cuda")
    with on_gpu_autocast(x.device, precision):
        assert (x @ x).dtype == getattr(torch, dtype)
