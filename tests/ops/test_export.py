"""The operation leaves torch: one exported program for any number of tokens."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import secvit
from secvit.ops import sec_attention, sec_attention_packed, sec_pool

LENGTHS = [64, 63, 65, 100]  # a remainder rounds differently in ONNX than in Python


class Operations(nn.Module):
    def forward(self, packed, mask):
        q, k, v = packed.permute(3, 0, 2, 1, 4).unbind(0)
        return (
            sec_attention_packed(packed, 8, 0.5),
            sec_attention(q, k, v, 8),
            sec_attention(q, k, v, 8, mask=mask, shared=True),
            sec_attention(q, k[:, :, 5:], v[:, :, 5:], 8),
            sec_pool(q, k, v, 24),
            sec_pool(q, k, v, 24, arrangement="sequential", mask=mask),
            secvit.cluster(k, 8).labels,
        )


def tensors(length, batch=2):
    mask = torch.arange(length) < torch.tensor([length * 2 // 3, length, length - 1][:batch]).unsqueeze(1)
    return torch.randn(batch, length, 2, 3, 8), mask


def export(function, *args, **kwargs):
    dims = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return function(Operations().eval(), tensors(64), *args, dynamic_shapes=(dims, dims), **kwargs)


def assert_equal_to_eager(program):
    for length in LENGTHS:
        arguments = tensors(length, batch=3)
        for found, expected in zip(program(*arguments), Operations()(*arguments), strict=True):
            # float32: 1e-7 of values up to 4, over sums of 100 terms
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_exported_operations_equal_eager_at_other_lengths():
    assert_equal_to_eager(export(torch.export.export).module())


@pytest.mark.slow
def test_onnx_operations_equal_eager_at_other_lengths(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install secvit[export]")
    pytest.importorskip("onnxscript", reason="pip install secvit[export]")
    path = str(tmp_path / "ops.onnx")
    export(torch.onnx.export, path, dynamo=True, input_names=["packed", "mask"], verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(packed, mask):
        return [torch.from_numpy(x) for x in session.run(None, {"packed": packed.numpy(), "mask": mask.numpy()})]

    assert_equal_to_eager(run)


@pytest.mark.slow
def test_operations_compile_whole():
    compiled = torch.compile(Operations(), fullgraph=True, backend="eager", dynamic=True)
    assert_equal_to_eager(compiled)
    torch.compiler.reset()
