"""What is exported computes what PyTorch does in its own runtime, says how to feed it, or is not there."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import secvit
import secvit.export
from secvit.export import export
from secvit.segmentation.models import semantic_fpn

VIEW = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}
ONE_STAGE = {"depths": (1,), "embed_dims": (16,), "num_heads": (2,), "num_clusters": (8, 1, 1), "head_hidden_size": 16}


def filled(model):
    """Weights that are larger than at the start of training, so that all parts matter."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def secvit_network(classes=3):
    return filled(timm.create_model("secvit_nano", num_classes=classes, **ONE_STAGE))


def small_convolutions(classes=3):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def linear_layers(classes=3):
    return filled(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 64), nn.GELU(), nn.Linear(64, classes)))


def differs(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def onnx_session(path):
    onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "secvit[export]"')
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def files(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(scope="module")
def any_size(tmp_path_factory):
    """A network, the ONNX file for any size that was made of it, and what was said of the file."""
    pytest.importorskip("onnxscript", reason='pip install "secvit[export]"')
    torch.manual_seed(0)
    model, path = secvit_network().train(), tmp_path_factory.mktemp("export") / "model.onnx"
    before = torch.get_rng_state()
    facts = export(model, path, size=32, dynamic=True, classes=["a", "b", "c"], crop_pct=0.8, **VIEW)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    return model.eval(), path, facts


@torch.no_grad()
def test_an_onnx_file_for_any_size_computes_what_pytorch_does_at_shapes_that_were_not_compared(any_size):
    model, path, facts = any_size
    run = onnx_session(path)
    for shape in [(4, 3, 32, 32), (1, 3, 21, 50), (2, 3, 97, 64)]:
        images = torch.randn(*shape)
        # float32 through few layers: some 1e-7
        assert differs(run(images), model(images)) < 1e-5
    assert 0 < facts["compared_with_pytorch"]["largest_difference"] < 1e-5
    assert len({tuple(shape[2:]) for shape in facts["compared_with_pytorch"]["shapes"]}) > 2


def test_the_json_file_says_all_that_preparing_an_image_needs(any_size):
    _, path, facts = any_size
    assert files(path.parent) == ["model.onnx", "model.onnx.json"]
    assert json.loads((path.parent / "model.onnx.json").read_text()) == facts
    given = facts["input"]
    assert (given["height"], given["width"], given["any_size"], given["multiple_of"]) == (32, 32, True, 1)
    assert given["smallest"] == 8
    assert (given["mean"], given["std"], given["channels"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.3], "RGB")
    assert given["values"] == "normalised: (pixel / 255 - mean) / std"
    assert (given["crop_pct"], given["interpolation"]) == (0.8, "bicubic")
    assert "short side to 40 px" in given["view"] and "middle 32 x 32 px" in given["view"]
    assert facts["output"]["classes"] == ["a", "b", "c"]
    assert facts["files"]["model.onnx"]["bytes"] == path.stat().st_size


def test_a_pt2_file_of_a_patched_vit_runs_where_secvit_is_not_imported(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=32, num_heads=2, num_classes=3)
    secvit.patch(filled(model).eval(), num_clusters=4)
    export(model, tmp_path / "vit.pt2", "pt2", size=64, **VIEW)
    images = torch.randn(5, 3, 64, 64)
    torch.save(images, tmp_path / "images.pt")
    code = f"""
import sys, torch
with torch.no_grad():
    logits = torch.export.load({str(tmp_path / "vit.pt2")!r}).module()(torch.load({str(tmp_path / "images.pt")!r}))
torch.save(logits, {str(tmp_path / "logits.pt")!r})
assert not any(name.startswith(("secvit", "timm")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert differs(torch.load(tmp_path / "logits.pt"), model(images)) < 1e-6  # the same operators


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secvit_nano.cifar10", "sec_deit_small", "sec_swin_tiny", "fused"])
def test_our_networks_export_for_any_size(name, tmp_path):
    if name == "fused":
        model = timm.create_model("secvit_nano.cifar10", pretrained=True).fuse()
    else:
        depth = {"sec_deit_small": {"depth": 2}, "sec_swin_tiny": {"depths": (1, 1)}}.get(name, {})
        model = timm.create_model(name, **depth)
    export(model, tmp_path / "model.onnx", size=64, dynamic=True, **VIEW)


@pytest.mark.slow
def test_a_segmenter_gives_logits_of_each_pixel(tmp_path):
    model = filled(semantic_fpn("secvit_nano", 3, pyramid=32, channels=16, backbone_args={"stem_stride": 4})).eval()
    facts = export(model, tmp_path / "pixels.onnx", size=64, dynamic=True, task="segmentation", crop_pct=None, **VIEW)
    images = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        expected = model(images)
    assert expected.shape == (2, 3, 70, 90)
    assert differs(onnx_session(tmp_path / "pixels.onnx")(images), expected) < 1e-4  # float32, through 9 blocks
    assert "whole" not in facts["input"]["view"] and "middle" not in facts["input"]["view"]


@pytest.mark.slow
def test_openvino_computes_what_pytorch_does_and_the_files_belong_together(tmp_path):
    openvino = pytest.importorskip("openvino", reason='pip install "secvit[openvino]"')
    model = secvit_network().eval()
    facts = export(model, tmp_path / "model.xml", "openvino", size=32, **VIEW)
    assert files(tmp_path) == ["model.bin", "model.xml", "model.xml.json"] and len(facts["files"]) == 2
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert differs(torch.from_numpy(compiled(images.numpy())[0]), model(images)) < 1e-5  # float32


def test_a_runtime_that_computes_something_else_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_text("the one before")
    model, write = small_convolutions(), secvit.export.WRITERS["pt2"]

    def wrong(*args):
        made = write(*args)
        return secvit.export.Exported(made.runtime, lambda images: made.run(images) * 1.01, {})

    monkeypatch.setitem(secvit.export.WRITERS, "pt2", wrong)
    with pytest.raises(ValueError, match=r"images \(1, 3, 16, 16\): logits differ from PyTorch's by 1.0e-02"):
        export(model, tmp_path / "model.pt2", "pt2", size=16, **VIEW)
    assert files(tmp_path) == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "the one before"
    export(model, tmp_path / "model.pt2", "pt2", size=16, tolerance=0.02, **VIEW)
    assert files(tmp_path) == ["model.pt2", "model.pt2.json"]


def test_nan_is_no_agreement(tmp_path, monkeypatch):
    nothing = secvit.export.Exported("a runtime", lambda images: torch.full((len(images), 3), float("nan")), {})
    monkeypatch.setitem(secvit.export.WRITERS, "pt2", lambda *args: nothing)
    with pytest.raises(ValueError, match="differ from PyTorch's by nan"):
        export(small_convolutions(), tmp_path / "model.pt2", "pt2", size=16, **VIEW)


def test_int8_is_smaller_and_says_what_it_costs(tmp_path):
    pytest.importorskip("onnxscript", reason='pip install "secvit[export]"')
    model = linear_layers()
    images = torch.randn(40, 3, 16, 16)
    facts = export(model, tmp_path / "small.onnx", size=16, int8=True, images=images, **VIEW)["int8"]
    assert 0.2 < facts["size"] < 0.4  # a quarter, scales and the graph
    assert facts["judged_on"] == "40 given images" and facts["same_class"] >= 0.9
    with torch.no_grad():
        found, expected = onnx_session(tmp_path / "small.onnx")(images), model(images)
    assert 0 < differs(found, expected) < 0.1
    assert (found.argmax(1) == expected.argmax(1)).double().mean() == pytest.approx(facts["same_class"])
    assert files(tmp_path) == ["small.onnx", "small.onnx.json"]


def test_int8_that_is_no_use_is_refused(tmp_path):
    pytest.importorskip("onnxscript", reason='pip install "secvit[export]"')
    with pytest.raises(ValueError, match="most of this network is convolutions"):
        export(small_convolutions(), tmp_path / "model.onnx", size=16, int8=True, **VIEW)
    loud = linear_layers(classes=5)
    with torch.no_grad():  # one channel 1e5 times as large as the others, which nobody reads: 8 bits hold no other
        loud[1].weight[0] *= 1e5
        loud[3].weight[:, 0] = 0
        loud[3].weight *= 10
    with pytest.raises(ValueError, match=r"int8 keeps the class of .* random images.*give images"):
        export(loud, tmp_path / "model.onnx", size=16, int8=True, **VIEW)
    assert files(tmp_path) == []


def test_a_network_of_one_size_is_not_exported_for_any(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    with pytest.raises(ValueError, match=r"takes images of 32 x 32 px alone.*without dynamic.*dynamic_img_size=True"):
        export(model, tmp_path / "vit.pt2", "pt2", size=32, dynamic=True, **VIEW)


class Branch(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "model.pth"}, r"model.pth: format pt2 is written to a file that ends in .pt2"),
        ({"format": "tflite"}, "format='tflite'; choose one of onnx, openvino, pt2"),
        ({"task": "detection"}, "torchvision.ops.boxes.batched_nms"),
        ({"task": "vlm"}, "a network for vlm cannot be exported"),
        ({"task": "segmentation"}, r"Sequential gives \(1, 3\); for segmentation logits are"),
        ({"classes": ["a"]}, "tells 3 classes apart, and 1 names are given"),
        ({"size": (16, 0)}, r"size=\(16, 0\)"),
        ({"std": (1, 1, 0)}, r"std=\[1, 1, 0\]"),
        ({"int8": True}, "int8 with format pt2"),
        ({"opset": 18}, "opset=18 with format pt2"),
        ({"tolerance": 0}, "tolerance=0"),
        ({"images": torch.zeros(1, 3, 8, 8)}, r"images of shape \(1, 3, 8, 8\); give one or more of \(N, 3, 16, 16\)"),
        ({"model": Branch()}, "Branch cannot be exported: torch.export: .*data-dependent"),
        ({"model": nn.Identity()}, r"Identity gives \(1, 3, 16, 16\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_exported_is_refused_with_the_reason(changes, message, tmp_path):
    given = {"model": small_convolutions(), "output": "model.pt2", "format": "pt2", "size": 16, **VIEW, **changes}
    with pytest.raises(ValueError, match=message):
        export(given.pop("model"), tmp_path / given.pop("output"), given.pop("format"), **given)
    assert files(tmp_path) == []
