"""SEC-DeiT and SEC-Swin: the paper's sizes, timm's habits, weights of DeiT and Swin."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import group_parameters, save_for_hf

import secvit
from secvit.measure import count_macs
from secvit.models.convert import convert
from secvit.models.saved import load_model, load_pretrained
from secvit.simmim.task import MaskedImageTask
from tests.conftest import slow_but
from tests.models.test_timm_contract import traced

# SPEC section 3, and what the paper's Table 1 prints: parameters in millions, 1e9 MAC, the paper's "FLOPs (G)"
SIZES = {
    "sec_deit_small": (22.17, 4.37, 4.1),
    "sec_deit_base": (86.81, 17.10, 14.8),
    "sec_swin_tiny": (28.4, 4.68, 4.8),
    "sec_swin_small": (49.8, 9.05, 9.2),
    "sec_swin_base": (88.0, 15.84, 16.2),
}
SMALL = {
    "sec_deit_small": {"embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 10},
    "sec_swin_tiny": {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (2, 2, 4, 8), "num_classes": 10},
}
SWIN = "swin_tiny_patch4_window7_224"
DEIT = "deit_small_patch16_224"
SIZES_PX = [(64, 64), (96, 64), (75, 101), (33, 65), (16, 16)]


def small(name, **arguments):
    return timm.create_model(name, **{**SMALL[name], **arguments})


def image(height=64, width=80, batch=2):
    return torch.randn(batch, 3, height, width)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_paper_where_a_reading_gives_them(name):
    model = timm.create_model(name, device="meta")
    parameters, macs, paper = SIZES[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)
    found = count_macs(model)
    assert found.total / 1e9 == pytest.approx(macs, abs=0.005)
    if name == "sec_deit_small":  # the only one that the paper's way of counting gives
        assert round(found.paper_gflops, 1) == paper


@pytest.mark.parametrize("size", SIZES_PX)
@pytest.mark.parametrize("name", SMALL)
def test_any_image_size_works_and_may_change_from_call_to_call(name, size):
    model = small(name)
    loss = F.cross_entropy(model(image(*size)), torch.tensor([1, 2]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(image(48, 48)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_one_image_of_a_batch_does_not_touch_another(name):
    model, x = small(name).double().eval(), image(40, 56).double()
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:], model(x[1:]), rtol=1e-9, atol=1e-12)


def test_sec_deit_of_one_cluster_without_lepe_is_deit(tmp_path):
    deit = timm.create_model(DEIT, embed_dim=48, depth=3, num_heads=4, num_classes=10).double().eval()
    ours = small("sec_deit_small", num_clusters=1).double().eval()
    report = load_from(deit, ours, tmp_path)
    assert len(report.zeroed) == 6 and not report.new and not report.unused
    x = image(224, 224, 1).double()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), deit(x), rtol=1e-9, atol=1e-11)  # float64 sums in another order


def load_from(source, target, folder):
    save_file(source.state_dict(), folder / "source.safetensors")
    return load_pretrained(target, folder / "source.safetensors")


def test_cls_token_sees_and_is_seen_by_all_clusters():
    """By hand: [cls] with everybody, patches with their cluster and [cls]."""
    model = small("sec_deit_small", depth=1).double().eval()
    seen = {}
    attn = model.blocks[0].attn
    attn.proj.register_forward_pre_hook(lambda m, args: seen.update(out=args[0]))
    x = model.blocks[0].norm1(model._pos_embed(model.patch_embed(image(64, 96, 1).double())))
    attn(x, (4, 6))
    q, k, v = attn.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    labels = secvit.cluster(k[:, :, 1:], 4).labels
    together = F.pad(labels.unsqueeze(-1) == labels.unsqueeze(-2), (1, 0, 1, 0), value=True)
    out = (q @ k.mT * 12**-0.5).masked_fill(~together, -torch.inf).softmax(-1) @ v
    lepe = attn.lepe(v[:, :, 1:].transpose(2, 3).reshape(1, 48, 4, 6)).flatten(2).transpose(1, 2)
    expected = out.transpose(1, 2).flatten(2) + F.pad(lepe, (0, 0, 1, 0))
    torch.testing.assert_close(seen["out"], expected, rtol=1e-9, atol=1e-12)


def test_swin_weights_load_and_act_as_in_swin(tmp_path):
    """Without positions and windows the two attentions are one: keys, queries and values are where they belong."""
    swin = timm.create_model(SWIN, embed_dim=24, depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 8), num_classes=10)
    swin = swin.double().eval()
    ours = small("sec_swin_tiny").double().eval()
    report = load_from(swin, ours, tmp_path)
    assert not report.new and len(report.zeroed) == 10 and not report.reshaped
    assert all("bias_table" in key for key in report.unused)
    x = torch.randn(1, 7, 7, 24, dtype=torch.float64)
    theirs, attn = swin.layers[0].blocks[0].attn, ours.layers[0].blocks[0].attn
    qkv = theirs.qkv(x).reshape(1, 49, 3, 2, 12)
    assert torch.equal(attn.qkv(x).reshape(1, 49, 2, 3, 12).transpose(2, 3), qkv)
    assert torch.equal(ours.layers[1].downsample.reduction.weight, swin.layers[1].downsample.reduction.weight)
    assert torch.equal(ours.head.fc.weight, swin.head.fc.weight)


def test_a_report_says_what_did_not_load(tmp_path):
    deit = timm.create_model(DEIT, embed_dim=48, depth=3, num_heads=4, num_classes=7)
    save_file(deit.state_dict(), tmp_path / "deit.safetensors")
    ours = small("sec_deit_small", img_size=96)  # another grid and another number of classes
    report = load_pretrained(ours, tmp_path / "deit.safetensors")
    assert report.reshaped == ("head.weight", "head.bias")
    assert "pos_embed" in report.loaded  # resampled
    assert "2 new, of another shape in the source (head.weight, head.bias)" in str(report)
    assert "6 zero, as the source has none" in str(report)
    with pytest.raises(ValueError, match="does not fit SECSwin"):
        load_pretrained(small("sec_swin_tiny"), tmp_path / "deit.safetensors")
    with pytest.raises(ValueError, match="no such file"):
        load_pretrained(ours, tmp_path / "none.safetensors")


def test_timms_pretrained_models_load_by_name(monkeypatch):
    deit = timm.create_model(DEIT, embed_dim=48, depth=3, num_heads=4, num_classes=10)
    asked = []
    monkeypatch.setattr("secvit.models.saved.create", lambda *a: asked.append(a) or deit)
    report = load_pretrained(small("sec_deit_small"), "timm/deit_small_patch16_224.fb_in1k")
    assert asked == [("deit_small_patch16_224.fb_in1k", None, {"pretrained": True})]
    assert len(report.loaded) == len(deit.state_dict())


def test_weights_that_cannot_be_had_are_named(monkeypatch, tmp_path):
    with pytest.raises(
        ValueError, match=r"no weights 'deit_small_patch16_224\.none'; of deit_small_patch16_224 there are"
    ):
        load_pretrained(small("sec_deit_small"), "deit_small_patch16_224.none")
    two = timm.create_model("deit_small_distilled_patch16_224", embed_dim=48, depth=3, num_heads=4)
    with pytest.raises(ValueError, match="does not fit SECDeiT"):  # [cls] and [dist] have positions of their own
        load_from(two, small("sec_deit_small"), tmp_path)

    model = small("sec_deit_small")

    def unreachable(*args, **kwargs):
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr("secvit.hub.unreachable", lambda: "")
    with pytest.raises(ValueError, match=r"deit_small_patch16_224\.fb_in1k .*no route to the hub"):
        load_pretrained(model, "deit_small_patch16_224.fb_in1k")


def test_the_authors_layout_is_that_of_secvit_alone(tmp_path):
    save_file(small("sec_swin_tiny").state_dict(), tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="SECSwin has no layout of the authors'; only SECViT has"):
        convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", "sec_swin_tiny", reverse=True)


@pytest.mark.parametrize("name", SMALL)
def test_timms_habits_hold(name, tmp_path):
    model, x = small(name).eval(), image()
    with torch.no_grad():
        features = model.forward_features(x)
        final, _ = model.forward_intermediates(x, norm=True)
        torch.testing.assert_close(final, features)
        logits = model(x)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), logits)
    model.set_grad_checkpointing(False)
    groups = group_parameters(model, model.group_matcher(coarse=True))
    assert len(groups) > 1 and sum(len(names) for names in groups.values()) == len(list(model.parameters()))
    arguments = SMALL[name]
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model("local-dir:" + str(tmp_path), pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(x), logits)
        assert torch.equal(copy.deepcopy(model)(x), logits)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), logits)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    pyramid = timm.create_model(name, features_only=True, **{**arguments, "num_classes": 0}).eval()
    channels = -1 if pyramid.output_fmt.value == "NHWC" else 1
    assert [m.shape[channels] for m in pyramid(x)] == pyramid.feature_info.channels()
    with pytest.raises(TypeError):
        small(name, no_such_argument=1)
    with pytest.raises(ValueError, match="partition="):
        small(name, partition="none such")


@pytest.mark.parametrize("name", SMALL)
def test_a_copy_has_a_grid_of_its_own(name):
    model = small(name).eval()
    x = image(48, 32)
    with torch.no_grad():
        model(image(64, 80))
        copied = copy.deepcopy(model)
        found = copied(x)
        model(image(32, 32))
        assert torch.equal(copied(x), found) and torch.equal(model(x), found)


@pytest.mark.parametrize("name", SMALL)
def test_size_may_be_set_at_creation_or_later(name):
    model = small(name, img_size=(96, 64)).eval()
    assert model.patch_embed.grid_size == ((6, 4) if name == "sec_deit_small" else (24, 16))
    model.set_input_size((64, 96))
    assert model.patch_embed.grid_size == ((4, 6) if name == "sec_deit_small" else (16, 24))
    with torch.no_grad():
        assert model(image(64, 96)).shape == model(image(96, 64)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("index", range(3))
def test_pruning_keeps_the_maps(name, index):
    model, x = small(name).eval(), image()
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[index], intermediates_only=True)[0]
        taken = model.prune_intermediate_layers([index])
        assert torch.equal(model.forward_intermediates(x, indices=taken, intermediates_only=True)[0], expected)
        assert model(x).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_init_weights_leaves_nothing_of_what_memory_held(name):
    model = small(name, device="meta", dtype=torch.float64).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
        model.init_weights()
        assert [key for key, value in model.state_dict().items() if not value.isfinite().all()] == []
        assert model(image().double()).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_traced_models_equal_eager_when_sizes_change(name):
    model = small(name, drop_path_rate=0.0)
    graph = traced(model)
    for size in ((64, 64), (96, 64), (64, 96)):
        x = image(*size)
        with torch.no_grad():
            (out,) = graph.eval()(x).values()
            assert torch.equal(out, model.eval()(x))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("partition", ["window", "random"])
def test_rivals_take_the_place_of_sec(name, partition):
    x = image(96, 64)
    model = small(name, partition=partition).eval()
    by_size = small(name, cluster_size=8).eval()
    with torch.no_grad():
        assert model(x).isfinite().all() and by_size(x).isfinite().all()


FEW = {"sec_deit_small": {"depth": 1}, "sec_swin_tiny": {"depths": (1, 1, 1, 1)}}


@pytest.mark.parametrize("name", slow_but(("sec_deit_small",), SMALL))
def test_compiled_and_exported_models_are_the_same_function(name):
    model, x = small(name, **FEW[name]).double().eval(), image(64, 96).double()
    with torch.no_grad():
        expected = model(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-9, atol=1e-12)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow  # minutes of symbolic shapes
@pytest.mark.parametrize("name", SMALL)
def test_compiled_models_take_sizes_that_change(name):
    model = small(name, **FEW[name]).double().eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for size in ((64, 96), (48, 64), (96, 80)):
            x = image(*size).double()
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-9, atol=1e-12)


def test_sec_swin_pretrains_by_simmim():
    model, x = small("sec_swin_tiny").eval(), image(64, 64)
    with torch.no_grad():
        features = model.forward_stages(model.forward_stem(x))
        assert torch.equal(features.permute(0, 2, 3, 1), model.forward_features(x))
    task = MaskedImageTask(model)
    mask = torch.rand(2, 2, 2) < 0.6
    mask[:, 0, 0] = True
    loss = task({"image": image(64, 64), "mask": mask})["loss"]
    loss.backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", SMALL)
def test_a_run_is_found_again(name, tmp_path):
    model = small(name).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    lines = ["model:", f"  name: {name}", "  image_size: 64", "  args:"]
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL[name].items() if k != "num_classes"}
    (tmp_path / "config.yaml").write_text("\n".join(lines + [f"    {k}: {v}" for k, v in arguments.items()]))
    x = image()
    with torch.no_grad():
        assert torch.equal(load_model(name, tmp_path)(x), model(x))


def test_two_sizes_may_be_in_flight_with_recomputed_activations():
    model = small("sec_deit_small").double().train()
    images = [torch.randn(1, 3, *size, dtype=torch.float64) for size in ((64, 64), (32, 96))]
    expected = [torch.autograd.grad(model(x).square().sum(), model.cls_token)[0] for x in images]
    model.set_grad_checkpointing()
    losses = [model(x).square().sum() for x in images]
    found = [torch.autograd.grad(loss, model.cls_token)[0] for loss in losses]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
