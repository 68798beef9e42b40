"""The fused kernel against the loops: on a GPU where there is one, else in triton's interpreter.

Triton decides at its first import whether it interprets, and torch imports it, so that without a GPU
the cases run in a process of their own, which one test here starts.
"""

import os
import subprocess
import sys

import pytest
import torch

import secvit
from secvit.ops import Plan, attention, reference, sec_attention, sec_attention_packed
from secvit.ops.attention import packed_order
from secvit.ops.order import sec_scores

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
kernels = pytest.mark.skipif(
    not (GPU or INTERPRETED), reason="no GPU: run in triton's interpreter, by a test of this file, in another process"
)
no_kernels = pytest.mark.skipif(GPU or INTERPRETED, reason="only where triton can neither run nor interpret")
if not no_kernels.args[0]:
    pytest.importorskip("triton", reason="no triton: pip install triton")

# |found - true| / |true|.  float32: three products of tf32 for one; the others keep 11 and 8 bits, and round the
# weights and the gradients of the scores to them, too
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", list(CLOSE), ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def order_tokens(k):
    from secvit.ops import triton

    return triton.order_tokens(k)


def packed_qkv(length, dim=16, batch=1, heads=1, dtype=torch.float32):
    return torch.randn(batch, length, heads, 3, dim).to(DEVICE, dtype)


def views(packed):
    """q, k, v (B, h, L, D) with the strides of packed rows, as leaves."""
    return [x.detach().requires_grad_() for x in packed.permute(3, 0, 2, 1, 4).unbind(0)]


def loops(q, k, v, plan):
    """Eq. 4 cluster by cluster, in float64 on the CPU; zeros for tokens in no cluster."""
    labels = plan.labels.expand(q.shape[:3]).cpu()
    q, k, v = (x.detach().cpu().double().requires_grad_() for x in (q, k, v))
    out = torch.zeros_like(v)
    for b, h in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])):
        for m in range(plan.num_clusters):
            members = (labels[b, h] == m).nonzero()[:, 0]
            if len(members):
                part = (x[b, h, members] for x in (q, k, v))
                out[b, h, members] = reference.attention(*part, q.shape[-1] ** -0.5)
    return out, (q, k, v)


def assert_close(found, true, dtype):
    assert found.dtype == dtype
    error = (found.detach().cpu().double() - true.detach()).norm()
    # the gradients of one token's scores are zero but for rounding
    assert error <= CLOSE[dtype] * max(float(true.detach().norm()), 0.1 * true.numel() ** 0.5)


def assert_same_with_gradients(out, inputs, plan):
    true, exact = loops(*inputs, plan)
    assert_close(out, true, inputs[0].dtype)
    weight = torch.randn(out.shape).to(out)
    found = torch.autograd.grad(out, inputs, weight)
    for gradient, expected in zip(found, torch.autograd.grad(true, exact, weight.cpu().double()), strict=True):
        assert_close(gradient, expected, inputs[0].dtype)
    return found


@kernels
@DTYPES
@pytest.mark.parametrize(
    ("length", "dim", "batch"), [(1, 16, 1), (7, 28, 2), (130, 40, 1), *([(3136, 32, 2), (6000, 64, 1)] if GPU else [])]
)
def test_the_order_is_that_of_the_scores_in_float64(length, dim, batch, dtype):
    _, k, _ = packed_qkv(length, dim, batch, 2, dtype).permute(3, 0, 2, 1, 4).unbind(0)
    order = order_tokens(k)
    assert torch.equal(order.sort().values, torch.arange(length, device=DEVICE).expand_as(order))
    score = sec_scores(k.double())
    # float32 may swap tokens that are nearly tied, by its own rounding and no more
    assert (score.gather(-1, order).diff() > -1e-5 * score.abs().max()).all()


@kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_ties_keep_the_order_of_tokens_and_bad_ones_come_last():
    k = torch.ones(1, 2, 40, 4, device=DEVICE)
    k[0, 0, 3:30] *= 2  # their cosine is the same to the last bit
    k[0, 1, 7, 0] = float("nan")
    k[0, 1, 5, 1] = -float("inf")
    k[0, 1, 2] = 0
    k[0, 1, 4] *= -1
    order = order_tokens(k)
    assert torch.equal(order, secvit.ops.cluster_order(k))
    assert order[0, 0].tolist() == list(range(40))
    assert order[0, 1, :2].tolist() == [4, 2] and order[0, 1, -2:].tolist() == [5, 7]


@kernels
def test_more_tokens_than_a_block_sorts_are_sorted_by_torch(monkeypatch):
    k = packed_qkv(20)[:, :, :, 1].transpose(1, 2)
    expected = order_tokens(k)
    monkeypatch.setattr(sys.modules["secvit.ops.triton.order"], "SORTED_AT_ONCE", 16)
    assert torch.equal(order_tokens(k), expected)


@kernels
@DTYPES
@pytest.mark.parametrize("dim", [16, 28, 32, 40, 64, 128])
def test_output_and_gradients_equal_the_loops(dim, dtype):
    q, k, v = views(packed_qkv(11, dim, dtype=dtype))
    plan = secvit.cluster(k, 2)
    assert_same_with_gradients(sec_attention(q, k, v, plan=plan, backend="triton"), (q, k, v), plan)


@kernels
@pytest.mark.parametrize(
    ("length", "clusters", "batch", "heads"),
    [(1, 1, 1, 1), (3, 3, 1, 1), (5, 2, 2, 2), (7, 3, 1, 1), *([(577, 6, 2, 3), (3136, 32, 2, 2)] if GPU else [])],
)
def test_any_number_of_tokens_and_clusters(length, clusters, batch, heads):
    q, k, v = views(packed_qkv(length, 32, batch, heads))
    plan = secvit.cluster(k, clusters)
    assert_same_with_gradients(sec_attention(q, k, v, plan=plan, backend="triton"), (q, k, v), plan)


@kernels
@pytest.mark.parametrize(
    ("length", "clusters", "dim"), [(35, 1, 128), *([(300, 1, 32), (1500, 3, 64), (900, 2, 128)] if GPU else [])]
)
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if GPU else [])], ids=str)
def test_clusters_longer_than_a_tile(length, clusters, dim, dtype):
    q, k, v = views(packed_qkv(length, dim, dtype=dtype))
    plan = secvit.cluster(k, clusters)
    assert_same_with_gradients(sec_attention(q, k, v, plan=plan, backend="triton"), (q, k, v), plan)


@kernels
def test_padded_tokens_are_neither_read_nor_written():
    mask = torch.tensor([[True] * 5 + [False] * 2, [False] * 7, [True, False] * 3 + [True]], device=DEVICE)
    packed = packed_qkv(7, batch=3)
    packed[~mask] = float("nan")
    q, k, v = views(packed)
    out = sec_attention(q, k, v, 2, mask=mask, backend="triton")
    plan = secvit.cluster(k, 2, mask=mask)
    for gradient in assert_same_with_gradients(out, (q, k, v), plan):
        assert not gradient[~mask[:, None]].any()
    assert not out[~mask[:, None]].any()


@kernels
def test_clusters_may_be_of_any_sizes_and_some_empty():
    q, k, v = views(packed_qkv(9))
    order = torch.randperm(9, device=DEVICE).view(1, 1, 9)
    plan = Plan(order, 4, 6, torch.tensor([[[2, 0, 6, 1]]], device=DEVICE))
    assert_same_with_gradients(sec_attention(q, k, v, plan=plan, backend="triton"), (q, k, v), plan)


@kernels
def test_heads_may_share_an_order_and_rows_may_lie_anywhere():
    q, k, v = (torch.randn(2, 2, 16, 5).to(DEVICE).mT.requires_grad_() for _ in range(3))
    plan = secvit.cluster(k.transpose(1, 2).flatten(2), 2)
    assert plan.order.shape == (2, 5)
    out = sec_attention(q, k, v, 2, shared=True, backend="triton")
    assert_same_with_gradients(out, (q, k, v), Plan(plan.order.unsqueeze(1).expand(2, 2, 5), 2, 3))


@kernels
@pytest.mark.parametrize("clusters", [1, 2])
def test_packed_rows_give_the_same_and_a_packed_gradient(clusters):
    packed = packed_qkv(7, heads=2).requires_grad_()
    q, k, v = views(packed)
    plan = Plan.equal(packed_order(packed), clusters)
    out = sec_attention_packed(packed, clusters, 16**-0.5, backend="triton")
    apart = sec_attention(q, k, v, plan=plan, backend="triton")
    assert torch.equal(out, apart.transpose(1, 2))
    weight = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, packed, weight)
    assert found.is_contiguous()
    expected = torch.autograd.grad(apart, (q, k, v), weight.transpose(1, 2))
    assert torch.equal(found, torch.stack(expected, dim=3).transpose(1, 2))


@kernels
def test_a_bad_token_spoils_its_cluster_alone():
    q, k, v = views(packed_qkv(8))
    plan = secvit.cluster(k, 2)
    v.data[0, 0, int(plan.order[0, 0, -1])] = float("nan")
    out = sec_attention(q, k, v, plan=plan, backend="triton")
    assert (out.isfinite().all(dim=-1) == (plan.labels == 0)).all()
    for gradient in torch.autograd.grad(out, (q, k), torch.ones_like(out)):
        assert gradient[plan.labels == 0].isfinite().all()


@kernels
def test_backward_gives_the_same_bits_again():
    q, k, v = views(packed_qkv(577 if GPU else 9))
    runs = []
    for _ in range(2):
        out = sec_attention(q, k, v, 2, backend="triton")
        runs.append([out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@kernels
def test_autocast_casts_as_for_torchs_attention():
    q, k, v = views(packed_qkv(6))
    with torch.autocast(DEVICE, torch.bfloat16):
        out = sec_attention(q, k, v.to(torch.bfloat16), 2, backend="triton")
    assert out.dtype == torch.bfloat16
    plan = secvit.cluster(k, 2)
    assert_close(out, loops(q, k, v, plan)[0], torch.bfloat16)


@kernels
def test_compiles_as_one_graph_for_several_sizes():
    def attend(packed, clusters):
        return sec_attention_packed(packed * 1, clusters, 0.25, backend="triton")

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="inductor" if GPU else "aot_eager")
    for length in (6, 9):
        packed = packed_qkv(length).requires_grad_()
        out = compiled(packed, 2)
        expected = attend(packed, 2)
        # the compiler's scores may differ in the last bit; on random keys no two are that close
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        weight = torch.randn_like(out)
        found, true = (torch.autograd.grad(x, packed, weight)[0] for x in (out, expected))
        torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-5)


@kernels
def test_compiles_with_a_mask():
    q, k, v = views(packed_qkv(6))
    mask = torch.arange(6, device=DEVICE)[None] < 5
    compiled = torch.compile(sec_attention, fullgraph=True, backend="inductor" if GPU else "aot_eager")
    out = compiled(q, k, v, 2, mask=mask, backend="triton")
    torch.testing.assert_close(out, sec_attention(q, k, v, 2, mask=mask, backend="triton"), rtol=1e-5, atol=1e-5)


@kernels
def test_the_operators_keep_torchs_rules():
    q, k, v = views(packed_qkv(3))
    plan = secvit.cluster(k, 1)
    operator = torch.ops.secvit.attend_clusters
    sec_attention(q, k, v, plan=plan, backend="triton")  # loads the operators
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, (q, k, v, plan.order, None, 1, 3, 0.25), test_utils=checks)
    packed = packed_qkv(3).requires_grad_()
    torch.library.opcheck(torch.ops.secvit.attend_clusters_packed, (packed, plan.order, 1, 0.25), test_utils=checks)
    torch.library.opcheck(torch.ops.secvit.order_tokens, (k.detach(),), test_utils=("test_schema", "test_faketensor"))


@kernels
def test_an_empty_batch_gives_an_empty_output():
    packed = packed_qkv(6, batch=0).requires_grad_()
    out = sec_attention_packed(packed, 2, 0.25, backend="triton")
    assert out.shape == (0, 6, 1, 16)
    assert torch.autograd.grad(out.sum(), packed)[0].shape == packed.shape


@kernels
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(dropout_p=0.1), "takes no dropout"),
        (dict(dtype=torch.float64), "not torch.float64"),
        (dict(dim=130), "of one width up to 128, not 130"),
    ],
    ids=["dropout", "float64", "wide"],
)
def test_what_the_kernel_cannot_do_is_refused_by_name_and_left_to_others_by_auto(options, problem):
    q, k, v = views(packed_qkv(7, options.pop("dim", 16), dtype=options.pop("dtype", torch.float32)))
    with pytest.raises(ValueError, match=problem):
        sec_attention(q, k, v, 2, backend="triton", **options)
    assert sec_attention(q, k, v, 2, **options).isfinite().all()


@kernels
def test_small_keys_are_ordered_by_their_cosine():
    directions = torch.randn(1, 2, 20, 16, device=DEVICE)
    for scale in (1e-20, 1e-30):
        k = directions.clone()
        k[:, :, ::2] *= scale
        expected = secvit.cluster(k.double(), 4).labels
        assert torch.equal(Plan.equal(order_tokens(k), 4).labels, expected)
        assert torch.equal(order_tokens(directions * scale), order_tokens(directions * 2.0**-80))


@kernels
def test_a_second_derivative_names_the_backends_that_have_it():
    q, k, v = views(packed_qkv(7))
    (gradient,) = torch.autograd.grad(sec_attention(q, k, v, 2, backend="triton").sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match='use backend="sdpa" or "math"'):
        torch.autograd.grad(gradient.sum(), q)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_auto_takes_the_kernel_on_a_gpu_for_short_clusters(monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "triton_attention", lambda q, k, v, plan, scale: taken.append(plan.max_size) or q)
    q, k, v = views(packed_qkv(588, 32, dtype=torch.bfloat16))
    for clusters in (1, 2, 3, 6):
        sec_attention(q, k, v, clusters)
    assert taken == [196, 98]  # not one cluster, nor any longer than 256 tokens


# -- without a GPU --------------------------------------------------------------------------------


@no_kernels
def test_every_case_holds_in_tritons_interpreter(warnings_of_this_run):
    pytest.importorskip("triton", reason="no triton: pip install triton")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-x", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    command += [__file__.replace("test_triton.py", "test_triton_near_far.py")]
    command += warnings_of_this_run
    done = subprocess.run(command, env=clean | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@no_kernels
def test_triton_is_refused_on_a_cpu_and_never_taken_by_auto():
    q, k, v = views(packed_qkv(7))
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, or TRITON_INTERPRET=1 set before python starts"):
        sec_attention(q, k, v, 2, backend="triton")
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        sec_attention_packed(packed_qkv(7), 2, 0.25, backend="triton")
    assert torch.equal(sec_attention(q, k, v, 2), sec_attention(q, k, v, 2, backend="sdpa"))


@no_kernels
def test_without_triton_all_else_works(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("secvit.ops.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(secvit.ops, "triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    q, k, v = views(packed_qkv(7))
    assert sec_attention(q, k, v, 2).isfinite().all()
    with pytest.raises(ValueError, match="needs triton, which cannot be imported"):
        sec_attention(q, k, v, 2, backend="triton")


def compiled_for_sm_90(function, signature, constants, options):
    """What the interpreter does not see: types, shapes and the compiler's own limits."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
    source = ASTSource(function, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@no_kernels
def test_scores_and_sort_compile_for_a_gpu_that_is_not_here():
    pytest.importorskip("triton", reason="no triton: pip install triton")
    from secvit.ops.triton import order as fused

    constants = {"D": 32, "D_PAD": 32, "TILE": 128, "UNIT": 16}
    kinds = {"k": "*bf16", "centre": "*fp32", "keys": "*i64", **dict.fromkeys([*constants, "PADDED"], "constexpr")}
    score, sort = (
        compiled_for_sm_90(function, {name: kinds.get(name, "i32") for name in function.arg_names}, values, options)
        for function, values, options in [
            (fused._score, constants, {"num_warps": 4, "enable_fp_fusion": True}),
            (fused._sort, {"PADDED": fused.SORTED_AT_ONCE}, {"num_warps": 32, "enable_fp_fusion": True}),
        ]
    )
    assert ".v4.b32" in score.asm["ptx"]  # rows move 16 bytes at a time
    assert ".local" not in sort.asm["ptx"] and sort.metadata.shared <= 48 * 1024


@no_kernels
@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
@pytest.mark.parametrize("size", [98, 196], ids=["one_tile", "tiles"])
def test_kernels_compile_for_a_gpu_that_is_not_here(kernel, size):
    pytest.importorskip("triton", reason="no triton: pip install triton")
    from secvit.ops.triton import attention as fused

    function = getattr(fused, kernel)
    settings = fused.options(size, 32, torch.bfloat16, backward=kernel == "_backward")
    build = {name: settings.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    constants = {**settings, "bounds": None, "EQUAL": True, "UNIT": 16, "PRECISION": "tf32", "INTERPRETED": False}
    rows = {name: "*bf16" for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv")}
    others = {
        "order": "*i64",
        "lse": "*fp32",
        "scale": "fp32",
        "dscale": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }
    signature = {name: {**rows, **others}.get(name, "i32") for name in function.arg_names}
    binary = compiled_for_sm_90(function, signature, constants, build)
    assert "wgmma.mma_async" in binary.asm["ptx"]
    assert ".v4.b32" in binary.asm["ptx"]  # rows move 16 bytes at a time
    assert len(binary.asm["cubin"]) > 1000
