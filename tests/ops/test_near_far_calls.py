"""partition=, near= and far= in the calls, in networks, and out of torch."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import secvit
from secvit.ops import Clustering, Keys, sec_attention

SEEN = {"partition": "tree", "near": 2, "far": True}


def tensors(length, batch=1, dtype=torch.float32):
    return tuple(torch.randn(3, batch, 2, length, 16, dtype=dtype).unbind(0))


@pytest.mark.parametrize("partition", ["sec", "tree"])
@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_reference_backend_is_the_fast_path(partition, far, masked):
    q, k, v = tensors(67, 2, torch.float64)
    mask = torch.arange(67) < torch.tensor([[67], [41]]) if masked else None
    options = {"mask": mask, "num_prefix_tokens": 2, "partition": partition, "near": 3, "far": far}
    slow, fast = (sec_attention(q, k, v, 7, backend=backend, **options) for backend in ("reference", "auto"))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)


def test_a_shared_tree_is_one_order_of_all_heads():
    q, k, v = tensors(96)
    both = [x.transpose(1, 2).flatten(2) for x in (q, k)]
    plan = Clustering(8, partition="tree").plan(Keys(both[1], queries=both[0]))
    expected = sec_attention(q, k, v, plan=plan, near=2, far=True)
    assert torch.equal(sec_attention(q, k, v, 8, shared=True, **SEEN), expected)


def test_a_tree_of_keys_alone_is_what_cluster_makes():
    _, k, _ = tensors(96)
    assert torch.equal(
        Clustering(8, partition="tree").plan(Keys(k)).order, secvit.cluster(k, 8, partition="tree").order
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": 0}, "near=0; choose a whole number"),
        ({"near": 9}, "near=9 of 8 clusters; choose near from 1 to 8"),
        ({"near": 2, "backend": "triton"}, 'backend="triton" needs'),
        ({"partition": "window", "backend": "reference"}, "use backend"),
        ({"partition": "trees"}, "near it: tree"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sec_attention(*tensors(64), 8, **options)


@pytest.mark.parametrize("shape", [(0, 2, 67, 16), (2, 0, 67, 16)])
def test_no_images_or_no_heads_come_out_as_they_came(shape):
    x = torch.zeros(shape, requires_grad=True)
    y = sec_attention(x, x, x, 8, num_prefix_tokens=2, **SEEN)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_a_plan_and_a_partition_are_refused():
    q, k, v = tensors(64)
    with pytest.raises(ValueError, match="drop partition="):
        sec_attention(q, k, v, plan=secvit.cluster(k, 8), partition="tree")


def test_clustering_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="near=0; choose a whole number >= 1"):
        Clustering(4, near=0)
    with pytest.raises(ValueError, match="drop score='values'"):
        Clustering(4, partition="tree", score="values")


# -- networks --------------------------------------------------------------------------------------


def vit(**options):
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=5, **options).eval()


def test_a_patched_vit_that_is_near_to_everything_is_itself():
    model, images = vit(), torch.randn(2, 3, 224, 224)
    before = model(images)
    secvit.patch(model, 7, partition="tree", near=7, far=True)
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-4)  # float32, three layers


@pytest.mark.parametrize("partition", ["tree", "sec", "window"])
def test_near_and_far_keep_a_vit_nearer_to_itself_than_blind_clusters(partition):
    model, images = vit(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        before = model.forward_features(images)
        errors = []
        for options in ({}, {"near": 2}, {"near": 2, "far": True}):
            secvit.patch(model, 14, partition=partition, **options)
            errors.append((model.forward_features(images) - before).norm().item())
            secvit.unpatch(model)
    assert errors[2] < errors[1] < errors[0]


def test_an_order_shared_by_layers_sees_near_and_far():
    model, images = vit(), torch.randn(2, 3, 224, 224)
    secvit.patch(model, 7, partition="tree", near=2, far=True, share_order_every=3)
    shared = model(images)
    secvit.unpatch(model)
    secvit.patch(model, 7, partition="tree", near=2, far=True, shared=True)
    assert shared.isfinite().all() and not torch.equal(model(images), shared)
    secvit.unpatch(model)
    secvit.patch(model, 7, partition="raster", near=2, far=True)
    apart = model(images)
    secvit.unpatch(model)
    secvit.patch(model, 7, partition="raster", near=2, far=True, share_order_every=3)
    torch.testing.assert_close(model(images), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["secvit_nano", "sec_deit_small", "sec_swin_tiny"])
def test_models_take_near_and_far(name):
    timm = pytest.importorskip("timm")
    depth = {"secvit_nano": {}, "sec_deit_small": {"depth": 2}, "sec_swin_tiny": {"depths": (1, 1, 1, 1)}}[name]
    model = timm.create_model(name, num_classes=5, **SEEN, **depth)
    plain = timm.create_model(name, num_classes=5, **depth)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 96)
    out = model(images)
    assert not torch.allclose(out, plain(images))
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- out of torch ----------------------------------------------------------------------------------


class Operations(nn.Module):
    def forward(self, q, k, v, mask):
        return (
            sec_attention(q, k, v, 6, mask=mask, near=2, far=True),
            sec_attention(q, k, v, 3, mask=mask, num_prefix_tokens=1, **SEEN),
        )


def arguments(length, batch):
    mask = torch.arange(length) < torch.tensor([length * 2 // 3, length, length - 1][:batch]).unsqueeze(1)
    return (*tensors(length, batch), mask)


def assert_equal_to_eager(program):
    for length in (65, 64, 63, 101):
        inputs = arguments(length, 3)
        for found, expected in zip(program(*inputs), Operations()(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # float32, other sums


def export(function, *args, **kwargs):
    dims = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    shapes = (dims, dims, dims, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    return function(Operations().eval(), arguments(64, 2), *args, dynamic_shapes=shapes, **kwargs)


@pytest.mark.slow
def test_exported_attention_equals_eager_at_other_lengths():
    assert_equal_to_eager(export(torch.export.export).module())


@pytest.mark.slow
def test_onnx_attention_equals_eager_at_other_lengths(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install secvit[export]")
    pytest.importorskip("onnxscript", reason="pip install secvit[export]")
    path = str(tmp_path / "near_far.onnx")
    names = ["q", "k", "v", "mask"]
    export(torch.onnx.export, path, dynamo=True, input_names=names, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs):
        found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})
        return [torch.from_numpy(x) for x in found]

    assert_equal_to_eager(run)


@pytest.mark.slow
def test_attention_compiles_whole():
    assert_equal_to_eager(torch.compile(Operations(), fullgraph=True, backend="eager", dynamic=True))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"near": 2.0}, r"near=2\.0; choose a whole number"),
        ({"near": "2"}, "near='2'; choose a whole number"),
        ({"near": True}, "near=True; choose a whole number"),
        ({"far": "false"}, "far='false'; choose True or False"),
        ({"far": 3}, "far=3; choose True or False"),
    ],
)
def test_near_is_a_whole_number_and_far_a_bool(options, reason):
    q = torch.randn(1, 2, 16, 8)
    with pytest.raises(ValueError, match=reason):
        secvit.sec_attention(q, q, q, 4, **options)
    with pytest.raises(ValueError, match=reason):
        secvit.Clustering(4, **options)
