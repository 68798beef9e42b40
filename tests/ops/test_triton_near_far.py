"""The kernel of near and far against the loops; see test_triton.py, which starts these in triton's interpreter."""

import pytest
import torch

from secvit.ops import sec_attention
from tests.ops.test_triton import (
    CLOSE,
    DEVICE,
    GPU,
    assert_close,
    compiled_for_sm_90,
    kernels,
    no_kernels,
    packed_qkv,
    unwritten_memory_is_nan,  # noqa: F401
    views,
)

pytest.importorskip("triton", reason="no triton: pip install triton")


def assert_equal_to_the_loops(length, dtype=torch.float32, dim=16, batch=1, heads=1, **options):
    """Output and gradients, float64 loops on the CPU being the truth."""
    q, k, v = views(packed_qkv(length, dim, batch, heads, dtype))
    exact = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    mask = options.pop("mask", None)
    out = sec_attention(q, k, v, mask=mask, backend="triton", **options)
    true = sec_attention(*exact, mask=None if mask is None else mask.cpu(), backend="reference", **options)
    assert_close(out, true, dtype)
    weight = torch.randn(out.shape).to(out)
    found = torch.autograd.grad(out, (q, k, v), weight)
    for gradient, expected in zip(found, torch.autograd.grad(true, exact, weight.cpu().double()), strict=True):
        assert_close(gradient, expected, dtype)
    return out, found


@kernels
@pytest.mark.parametrize(
    "options",
    [
        dict(length=10, num_clusters=3, near=2, far=True, num_prefix_tokens=1, heads=2),
        dict(length=6, num_clusters=2, near=2, far=True, partition="tree"),
        dict(length=5, num_clusters=2, num_prefix_tokens=2),  # blind clusters, and a prefix
        *([dict(length=1030, num_clusters=16, near=3, far=True, num_prefix_tokens=5, dim=64, batch=2)] if GPU else []),
    ],
    ids=str,
)
def test_output_and_gradients_equal_the_loops(options):
    assert_equal_to_the_loops(**options)


@kernels
@pytest.mark.slow
def test_clusters_and_summaries_of_several_tiles_equal_the_loops():
    assert_equal_to_the_loops(150 if GPU else 41, dim=128 if GPU else 64, num_clusters=2, far=True, num_prefix_tokens=1)
    assert_equal_to_the_loops(40, num_clusters=20, near=2, far=True)  # more summaries than a tile of 16


@kernels
def test_padded_tokens_are_in_no_cluster():
    mask = torch.arange(8, device=DEVICE)[None] < torch.tensor([[5], [8]], device=DEVICE)
    out, gradients = assert_equal_to_the_loops(8, batch=2, num_clusters=2, far=True, num_prefix_tokens=1, mask=mask)
    assert not out[0, :, 5:].any() and not any(gradient[0, :, 5:].any() for gradient in gradients)


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_as_close_as_its_digits(dtype):
    assert CLOSE[dtype] > CLOSE[torch.float32]
    torch.manual_seed(0)
    q, k, v = views(packed_qkv(6, dtype=dtype))
    options = dict(num_clusters=2, far=True, num_prefix_tokens=1)
    exact = [x.detach().cpu().double() for x in (q, k, v)]
    out = sec_attention(q, k, v, backend="triton", **options)
    assert_close(out, sec_attention(*exact, backend="reference", **options), dtype)


@kernels
def test_backward_gives_the_same_bits_again():
    q, k, v = views(packed_qkv(6))
    runs = []
    for _ in range(2):
        out = sec_attention(q, k, v, 2, far=True, num_prefix_tokens=1, backend="triton")
        runs.append([out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@kernels
def test_the_operator_keeps_torchs_rules():
    from secvit.ops import triton

    q, k, v = views(packed_qkv(6))
    order = torch.arange(5, device=DEVICE).view(1, 1, 5)
    seen = torch.tensor([[[0], [1]]], device=DEVICE)
    far = [torch.randn(1, 2, 2, 2, 16, device=DEVICE, requires_grad=True) for _ in range(2)]
    bias = torch.randn(1, 2, 2, 2, device=DEVICE, requires_grad=True)
    arguments = (q, k, v, order, None, seen, *far, bias, 2, 3, 2, 1, 0.25)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.attend_near_far, arguments, test_utils=checks)
    (gradient,) = torch.autograd.grad(triton.attend_near_far(*arguments)[0].sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match='use backend="sdpa" or "math"'):
        torch.autograd.grad(gradient.sum(), q)


@kernels
def test_lists_name_every_cluster_that_sees_one():
    from secvit.ops.triton.near_far import seen_by

    seen = torch.stack([torch.randperm(6, device=DEVICE)[:3] for _ in range(5)]).to(torch.int32)[None]  # 5: the prefix
    askers, borders = seen_by(seen, 5)
    for cluster in range(6):
        begin, end = borders[0, cluster : cluster + 2].tolist()
        assert askers[0, begin:end].tolist() == [m for m in range(5) if cluster in seen[0, m]]


@no_kernels
@pytest.mark.parametrize("kernel", ["forward", "backward_queries", "backward_summaries", "backward_keys"])
def test_kernels_compile_for_a_gpu_that_is_not_here(kernel):
    from secvit.ops.triton import attention, near_far_kernels

    function = getattr(near_far_kernels, kernel)
    settings = attention.options(64, 64, torch.bfloat16, backward=kernel != "forward")
    build = {name: settings.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    del settings["SINGLE"]
    settings |= {"EQUAL": True, "PARTS": 2, "FAR": True, "UNIT": 16, "PRECISION": "tf32", "INTERPRETED": False}
    constants = {name: value for name, value in settings.items() if name in function.arg_names} | {"bounds": None}
    rows = ("q", "k", "v", "out", "grad", "dq", "dk", "dv", "far_key", "far_value", "dkey", "dvalue")
    kinds = {
        **dict.fromkeys(rows, "*bf16"), **dict.fromkeys(("far_bias", "dbias", "lse"), "*fp32"), "order": "*i64",
        **dict.fromkeys(("seen", "askers", "borders"), "*i32"), "scale": "fp32", "dscale": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    binary = compiled_for_sm_90(function, signature, constants, build)
    assert "mma" in binary.asm["ptx"] and ".v4.b32" in binary.asm["ptx"]
