"""torch.compile, torch.export and ONNX give what eager gives, at sizes that were not traced."""

import pytest
import timm
import torch
from torch.export import Dim

import secvit  # noqa: F401  registers the models

# at 40 x 24 px all cluster counts divide nano's grids; at the others they do not
SIZES = [(40, 24), (33, 65), (75, 100)]

DYNAMIC = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# every kind of layer and two numbers of clusters; the compiler's time grows with depth
SHALLOW = {"depths": (1, 1), "embed_dims": (32, 64), "num_heads": (1, 2)}


def filled(name="secvit_nano", **arguments):
    """A model whose weights are larger than at the start of training, so that all parts of it matter."""
    model = timm.create_model(name, **arguments).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def image(size, batch=2, dtype=torch.float32):
    return torch.randn(batch, 3, *size, dtype=dtype)


def compiled_equals_eager(model, backend, tolerance, sizes=SIZES, dynamic=True):
    """Outputs and gradients in float64, relative to the largest of each tensor, from one compiled model."""
    model = model.double()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
    for size in sizes:
        x = image(size, dtype=torch.float64)
        results = []
        for network in (model, compiled):
            model.zero_grad(set_to_none=True)
            out = network(x)
            out.square().mean().backward()
            results.append([out.detach(), *(p.grad for p in model.parameters())])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1e-3))


@pytest.mark.slow
def test_whole_graph_compiles_and_equals_eager_when_sizes_change():
    # float64 sums in another order
    compiled_equals_eager(filled(**SHALLOW), "eager", 1e-9, SIZES[:2])


@pytest.mark.parametrize("size", [pytest.param(SIZES[0], marks=pytest.mark.slow), SIZES[1]])
def test_compiled_backward_equals_eager(size):
    compiled_equals_eager(filled(**SHALLOW), "aot_eager", 1e-9, [size], dynamic=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secvit_nano", "secvit_tiny"])
def test_compiled_backward_equals_eager_when_sizes_change(name):
    compiled_equals_eager(filled(name), "aot_eager", 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secvit_nano", "secvit_tiny"])
def test_inductor_equals_eager_forward_and_backward(name):
    # float64 sums in another order, 10^4 of them in gradients, and other exponentials
    compiled_equals_eager(filled(name), "inductor", 1e-8)


@pytest.mark.slow
def test_compiled_graphs_are_few_whatever_the_sizes():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(filled(**SHALLOW), fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in (*SIZES, (48, 48), (64, 32), (50, 70), (81, 41)):
            compiled(image(size))
    # each of two clustered stages with and without a remainder
    assert counter.frame_count <= 4


@pytest.mark.parametrize("arguments", [{"cluster_size": 30}, {"partition": "window"}, {"partition": "raster"}], ids=str)
def test_options_compile_whole(arguments):
    model = filled(**arguments, **SHALLOW).double()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = image((33, 65), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-9, atol=1e-12)


NETWORKS = [
    pytest.param("secvit_nano", SHALLOW, id="shallow"),
    pytest.param("secvit_nano", {}, id="nano", marks=pytest.mark.slow),
    pytest.param("secvit_tiny", {}, id="tiny", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
@pytest.mark.slow
def test_exported_program_equals_eager_at_other_sizes_and_batches(name, arguments, tmp_path):
    model = filled(name, **arguments).double()
    program = torch.export.export(model, (image((64, 48), dtype=torch.float64),), dynamic_shapes=DYNAMIC)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch, size in zip((1, 2, 3), SIZES, strict=True):
        x = image(size, batch, torch.float64)
        with torch.no_grad():
            # float64 sums in another order
            torch.testing.assert_close(loaded(x), model(x), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_a_model_of_fixed_cluster_size_exports():
    # at least two clusters in every stage: torch.export fixes what is 1
    model = filled(cluster_size=10, **SHALLOW).double()
    program = torch.export.export(model, (image((64, 48), dtype=torch.float64),), dynamic_shapes=DYNAMIC).module()
    for size in SIZES:
        x = image(size, dtype=torch.float64)
        with torch.no_grad():
            # float64 sums in another order
            torch.testing.assert_close(program(x), model(x), rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.onnx")
@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
@pytest.mark.slow
def test_onnx_equals_eager_at_other_sizes_and_batches(name, arguments, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install secvit[export]")
    pytest.importorskip("onnxscript", reason="pip install secvit[export]")
    model = filled(name, **arguments)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(
        model, (image((64, 48)),), path, dynamo=True, dynamic_shapes=DYNAMIC, input_names=["image"], verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, size in zip((1, 2, 3), SIZES, strict=True):
        x = image(size, batch)
        with torch.no_grad():
            expected = model(x)
        (found,) = session.run(None, {"image": x.numpy()})
        # float32 through 9 blocks: 1e-6 of the largest logit each; no token ties with these seeds
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
