"""The operation leaves torch: one exported program for any number of tokens."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import secvit
from secvit.ops import sec_attention, sec_attention_packed, sec_pool
from secvit.ops.order import exporting

LENGTHS = [64, 63, 65, 100]  # a remainder rounds differently in ONNX than in Python


class Operations(nn.Module):
    def forward(self, packed, mask):
        q, k, v = packed.permute(3, 0, 2, 1, 4).unbind(0)
        return (
            sec_attention_packed(packed, 8, 0.5),
            sec_attention(q, k, v, 8),
            sec_attention(q, k, v, 8, mask=mask, shared=True),
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


class Attend(nn.Module):
    def forward(self, q, k, v):
        return sec_attention(q, k, v, 8)


@pytest.mark.filterwarnings("default")  # ExecuTorch's own
def test_executorch_lowers_and_runs_attention_with_topk_for_the_sort_that_it_lacks(tmp_path):
    pytest.importorskip("executorch", reason="pip install executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    def sort(x, dim=-1, descending=False):
        return torch.topk(x, x.shape[dim], dim, descending, True)

    arguments = tuple(torch.randn(2, 4, 65, 32) for _ in range(3))
    operators = {**torch.export.default_decompositions(), torch.ops.aten.sort.default: sort}
    program = torch.export.export(Attend(), arguments).run_decompositions(operators)
    program = torch.export.export(program.module(), arguments)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    (tmp_path / "attend.pte").write_bytes(lowered.buffer)
    (found,) = Runtime.get().load_program(tmp_path / "attend.pte").load_method("forward").execute(arguments)
    torch.testing.assert_close(found, Attend()(*arguments), rtol=1e-5, atol=1e-5)  # float32


def test_nothing_views_what_sdpa_gives_in_an_exported_program():
    """Runtimes have kernels of their own, whose output lies otherwise in memory."""
    program = torch.export.export(Attend(), tuple(torch.randn(2, 4, 64, 32) for _ in range(3)))
    attention = torch.ops.aten.scaled_dot_product_attention.default
    users = [user.target for node in program.graph.nodes if node.target is attention for user in node.users]
    assert users and set(users) == {torch.ops.aten.clone.default}


class Exporting(nn.Module):
    def forward(self, x):
        return x + 1 if exporting() else x


def test_torch_compile_is_not_taken_for_an_export():
    """Before torch 2.14, is_exporting() says it is."""
    zero = torch.zeros(2)
    torch.compiler.reset()
    assert not torch.compile(Exporting(), fullgraph=True, backend="eager")(zero).any()
    assert torch.export.export(Exporting(), (zero,), strict=False).module()(zero).all()
    assert not Exporting()(zero).any()


@pytest.mark.slow
def test_operations_compile_whole():
    compiled = torch.compile(Operations(), fullgraph=True, backend="eager", dynamic=True)
    assert_equal_to_eager(compiled)
    torch.compiler.reset()
