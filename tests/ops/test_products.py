"""Float32 products on a CPU by oneDNN: the rule, the override, and the same numbers as torch's own functions."""

import platform
import runpy
import threading

import pytest
import torch
from torch.nn import functional as F

from secvit.ops import backends, products, road, sec_attention
from secvit.ops.products import depthwise_5x5, linear, product

CLOSE = 4e-6  # of the largest value: float32's rounding of sums of hundreds of terms is 1e-6, bfloat16's 3e-3
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def onednn():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    with road.using_road("onednn"):
        yield


@pytest.fixture
def float64_too(onednn, monkeypatch):
    """Our functions on float64 and on few rows, so that derivatives can be checked by differences."""
    monkeypatch.setattr(products, "takes_onednn", lambda *tensors: True)
    monkeypatch.setattr(products, "MIN_ROWS", 0)
    monkeypatch.setattr(products, "MIN_ELEMENTS", 0)


def no_convolution(monkeypatch):
    monkeypatch.setattr(products, "_row_product", lambda *args: pytest.fail("by a convolution"))


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def off(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def with_gradients(function, *inputs):
    """The output of a function and the gradients of its inputs under a fixed one of the output."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def depthwise(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=2, groups=weight.shape[0])


# -- the choice --------------------------------------------------------------------------------------


@pytest.fixture
def zen(monkeypatch):
    """A machine for which oneDNN is chosen."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(road, "_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)


def test_amd_processors_with_avx512_take_onednn(zen):
    assert road.objection() is None
    with road.using_road("auto"):
        assert road.road() == "onednn"
        assert (
            road.road_line()
            == "Float32 products of secvit's layers on the CPU: onednn (by rule: x86-64, AVX-512, MKL, oneDNN, AMD)"
        )


@pytest.mark.parametrize(
    "place, name, value, reason",
    [
        (platform, "machine", "arm64", "arm64, not x86-64"),
        (road, "_vendor", "GenuineIntel", "GenuineIntel, not of AMD"),
        (torch.backends.cpu, "get_cpu_capability", "AVX2", "no AVX-512"),
        (torch.backends.mkl, "is_available", False, "no MKL"),
        (torch.backends.mkldnn, "is_available", False, "no oneDNN"),
    ],
)
def test_all_other_machines_are_left_to_torch_with_the_reason(zen, monkeypatch, place, name, value, reason):
    monkeypatch.setattr(place, name, lambda: value)
    assert reason in road.objection()
    with road.using_road("auto"):
        assert road.road() == "torch" and reason in road.road_line()


def test_a_road_that_is_none_or_is_not_there_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="road='mkl'; choose one of auto, onednn, torch"):
        road.set_road("mkl")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match='this torch has no oneDNN; choose "auto" or "torch"'):
        road.set_road("onednn")


@needs_onednn
def test_the_environment_variable_is_what_a_process_begins_with(monkeypatch):
    for name in ("onednn", "torch"):
        monkeypatch.setenv(road.VARIABLE, name)
        module = runpy.run_path(road.__file__)
        assert module["road"]() == name and "chosen by SECVIT_CPU_ROAD" in module["road_line"]()
    monkeypatch.setenv(road.VARIABLE, "fast")
    with pytest.raises(ValueError, match="SECVIT_CPU_ROAD='fast'"):
        runpy.run_path(road.__file__)


def test_an_override_ends_with_its_block():
    before = road.road_line()
    with pytest.raises(KeyError), road.using_road("torch"):
        assert road.road() == "torch"
        raise KeyError
    assert road.road_line() == before


# -- linear layers -----------------------------------------------------------------------------------

LAYOUTS = {
    "rows": lambda: random(300, 96),
    "tokens": lambda: random(2, 150, 96),
    "a map": lambda: random(2, 15, 10, 96),
    "five dimensions": lambda: random(2, 3, 5, 10, 96),
    "a view of channels first": lambda: random(2, 96, 15, 10).permute(0, 2, 3, 1),
    "every other row and channel": lambda: random(2, 300, 192)[:, ::2, ::2],
    "one row many times": lambda: random(1, 96).expand(300, 96),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_by_onednn_and_their_gradients_are_those_of_float64(onednn, layout, biased):
    x, inputs = LAYOUTS[layout](), (random(80, 96), *([random(80)] if biased else []))
    found = with_gradients(linear, x, *inputs)
    how = str(found[0].grad_fn.next_functions[0][0].next_functions[0][0])
    assert ("RowProduct" if road.has_exact_matmul() else "Convolution") in how
    expected = with_gradients(F.linear, x.double(), *(y.double() for y in inputs))
    assert all(off(a, b) < CLOSE for a, b in zip(found, expected, strict=True))
    assert found[0].is_contiguous()
    with torch.no_grad():
        assert off(linear(x, *inputs), expected[0]) < CLOSE


def test_without_an_exact_matmul_gradients_are_the_convolutions(onednn, monkeypatch):
    monkeypatch.setattr(products, "has_exact_matmul", lambda: False)
    monkeypatch.setattr(products._Product, "apply", lambda *args: pytest.fail("by a matmul"))
    inputs = random(2, 150, 96), random(80, 96), random(80)
    expected = with_gradients(F.linear, *(y.double() for y in inputs))
    assert all(off(a, b) < CLOSE for a, b in zip(with_gradients(linear, *inputs), expected, strict=True))


def test_what_a_linear_layer_gives_may_be_written_into(onednn):
    x, weight = random(300, 96), random(80, 96)

    def turned(multiply):
        out = multiply(x, weight).view(300, 2, 40)
        out[:, 0].mul_(out[:, 1].detach().sin())
        return torch.autograd.grad(out.square().sum(), (x, weight))

    for found, expected in zip(turned(linear), turned(F.linear), strict=True):
        assert off(found, expected) < CLOSE


REFUSED = {
    "one row": (1, 4096),
    "few rows": (127, 4096),
    "few numbers": (640, 32),
    "no rows": (0, 96),
    "a vector": (40960,),
}


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # by torch's own switch of oneDNN
@pytest.mark.parametrize("case", [*REFUSED, "float64", "bfloat16", "autocast", "a subclass", "onednn off", "torch"])
def test_all_else_is_torchs_own_product_bit_for_bit(onednn, monkeypatch, case):
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    x = torch.randn(REFUSED.get(case, (300, 96))).to(dtype)
    weight, bias = torch.randn(80, x.shape[-1]).to(dtype), torch.randn(80).to(dtype)
    if case == "a subclass":
        x = x.as_subclass(type("Wrapped", (torch.Tensor,), {}))
    no_convolution(monkeypatch)
    if case == "torch":
        road.set_road("torch")
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        torch.backends.mkldnn.flags(enabled=case != "onednn off"),
    ):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@needs_onednn
@pytest.mark.parametrize("choice", ["torch", "onednn"])
def test_the_road_to_torch_leaves_attention_and_convolutions_alone(choice):
    with road.using_road(choice):
        names = {
            type(f(*inputs).grad_fn).__name__
            for f, inputs in (
                (product, (random(5, 8), random(8, 5))),
                (depthwise_5x5, (random(1, 4, 9, 9), random(4, 1, 5, 5))),
            )
        }
    expected = {"_Depthwise5x5Backward", *(["_ProductBackward"] if road.has_exact_matmul() else [])}
    assert names & {"_Depthwise5x5Backward", "_ProductBackward"} == (expected if choice == "onednn" else set())


# -- derivatives -------------------------------------------------------------------------------------

DIFFERENTIATED = {
    "linear": (linear, F.linear, ((6, 3), (4, 3), (4,))),
    "product": (product, torch.matmul, ((2, 3, 4), (2, 4, 2))),
    "depthwise": (depthwise_5x5, depthwise, ((2, 2, 4, 3), (2, 1, 5, 5), (2,))),
}


# torch scripts its own decompositions when a forward derivative is first asked for
SCRIPTED = "ignore:.torch.jit.script. is deprecated:FutureWarning"


@pytest.mark.filterwarnings(SCRIPTED)
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_first_second_and_forward_derivatives_are_right(float64_too, name):
    function, _, shapes = DIFFERENTIATED[name]
    inputs = [random(*shape, dtype=torch.float64) for shape in shapes]
    assert "Backward" in str(function(*inputs).grad_fn)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.filterwarnings(SCRIPTED, "ignore:There is a performance drop")
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_torch_func_maps_and_differentiates_them(float64_too, name):
    function, plain, shapes = DIFFERENTIATED[name]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    many = torch.randn(3, *shapes[0], dtype=torch.float64)
    weights = torch.randn(3, *shapes[1], dtype=torch.float64)

    def found(f):
        def loss(x, weight):
            return f(x, weight, *inputs[2:]).sin().sum()

        gradients = torch.func.grad(loss, argnums=(0, 1))
        return [
            torch.vmap(lambda x: f(x, *inputs[1:]))(many),
            *torch.vmap(gradients, in_dims=(0, None))(many, inputs[1]),
            *torch.vmap(gradients, in_dims=(None, 0))(inputs[0], weights),
            torch.func.jvp(lambda *x: f(*x), tuple(inputs), tuple(x.cos() for x in inputs))[1],
            torch.func.jvp(torch.func.grad(loss), (many[0], inputs[1]), (many[1], weights[0]))[1],
        ]

    for ours, expected in zip(found(function), found(plain), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("sides", [(14, 9), (1, 1), (2, 7)])
def test_the_gradient_of_a_5x5_kernel_is_put_together_from_four_of_3x3(onednn, sides):
    x = random(2, *sides, 32).permute(0, 3, 1, 2)
    inputs = x, random(32, 1, 5, 5), random(32)
    expected = with_gradients(depthwise, *(y.double() for y in inputs))
    assert all(off(a, b) < CLOSE for a, b in zip(with_gradients(depthwise_5x5, *inputs), expected, strict=True))


# -- attention in training ---------------------------------------------------------------------------


@pytest.mark.parametrize("length, by_products", [(98, True), (257, False)])
def test_attention_of_short_clusters_trains_by_products(onednn, monkeypatch, length, by_products):
    if not road.has_exact_matmul():
        pytest.skip("oneDNN's matmul is not exact float32 here")
    q, k, v = (random(1, 2, 2 * length, 16) for _ in range(3))
    calls = []
    monkeypatch.setattr(backends, "product", lambda *x: calls.append(x) or product(*x))
    found = with_gradients(lambda *x: sec_attention(*x, 2), q, k, v)
    assert len(calls) == 2 * by_products
    with road.using_road("torch"):
        expected = with_gradients(lambda *x: sec_attention(*x, 2), q, k, v)
    assert all(off(a, b) < CLOSE for a, b in zip(found, expected, strict=True))
    calls.clear()
    with torch.no_grad():
        sec_attention(q, k, v, 2)
    assert not calls


# -- the switch of torch -----------------------------------------------------------------------------


@pytest.fixture
def settings():
    if not road.has_exact_matmul():
        pytest.skip("oneDNN's matmul is not exact float32 here")
    return torch.backends.mkldnn


def test_products_leave_no_trace_in_torchs_precision(onednn, settings):
    inside = []
    for parent in ("none", "ieee"):
        settings.fp32_precision = parent
        try:
            with road.matmul_on_onednn():
                with road.matmul_on_onednn():
                    pass
                inside.append(settings.matmul.fp32_precision)
            with_gradients(linear, random(300, 96), random(80, 96))
            assert settings.matmul.fp32_precision == parent
        finally:
            settings.fp32_precision = "none"
        assert settings.matmul.fp32_precision == "none"  # inherited as before
    assert inside == ["bf16", "bf16"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_of_two_threads_the_last_puts_the_precision_back(settings):
    first_in, first_out = threading.Event(), threading.Event()

    def first():
        with road.matmul_on_onednn():
            first_in.set()
            assert first_out.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(10)
    with road.matmul_on_onednn():
        first_out.set()
        thread.join(10)
        assert settings.matmul.fp32_precision == "bf16"
    assert settings.matmul.fp32_precision == "none"


def test_a_matmul_that_rounds_is_not_taken_for_exact(settings, monkeypatch):
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: torch.matmul(a.bfloat16().to(a.dtype) if a.dtype == torch.float32 else a, b),
    )
    monkeypatch.setattr(road, "_exact", None)
    assert not road.has_exact_matmul()


def test_processors_with_amx_are_left_out(settings, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True})
    monkeypatch.setattr(road, "_exact", None)
    assert not road.has_exact_matmul()


# -- graphs ------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(80, 96))

    def forward(self, x):
        return linear(x, self.weight)


@pytest.mark.parametrize("trains", [True, False])
def test_a_compiled_graph_keeps_the_convolution(onednn, trains):
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph.forward

    x, layer = torch.randn(300, 96), Layer()
    torch.compiler.reset()
    with torch.set_grad_enabled(trains):
        found = torch.compile(layer, fullgraph=True, backend=backend)(x)
        assert off(found, F.linear(x, layer.weight)) < CLOSE
    torch.compiler.reset()
    assert len(graphs) == 1 and "conv2d" in graphs[0]


def test_an_exported_graph_keeps_the_linear_layer(onednn):
    x = torch.randn(300, 96)
    program = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    names = [str(node.target) for node in program.graph.nodes]
    assert "aten.linear.default" in names and not any("conv" in name for name in names)


def test_a_graph_of_torch_fx_has_the_linear_layer(onednn):
    graph = torch.fx.symbolic_trace(Layer())
    assert F.linear in [node.target for node in graph.graph.nodes]
