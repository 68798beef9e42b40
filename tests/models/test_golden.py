"""Conformance: the authors' network, filled by rule, gives the authors' numbers."""

import json

import numpy as np
import pytest
import timm
import torch

import secvit.models.convert as convert
from secvit.ops.attention import packed_order
from secvit.weights import misfit
from tests.conftest import slow_but
from tests.golden.stream import fill, image, uniform

MODELS = {
    "T": "secvit_tiny",
    "S": "secvit_small_release",
    "M": "secvit_base_release",
    "L": "secvit_large_release",
    "S_paper": "secvit_small",
    "B_paper": "secvit_base",
    "L_paper": "secvit_large",
}
RUNS = ["T/2x3x64x64", "T/1x3x224x224", "S/1x3x64x64", "M/1x3x64x64", "S_paper/1x3x224x224"]


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "official.npz")


@pytest.fixture(scope="module")
def keys(shared):
    return json.loads((shared / "golden" / "state_dict_keys.json").read_text())


def filled(model: str, keys: dict) -> torch.nn.Module:
    """The model with the weights of the fill rule, loaded through the converter; float64, eval mode."""
    network = timm.create_model(MODELS[model]).double().eval()
    state = {key: fill(key, tuple(shape)) for key, (shape, _) in keys[model].items() if not key.endswith(".angle")}
    network.load_state_dict(convert.from_authors(state, convert.heads_of(network)))
    return network


def parse(run: str) -> tuple[str, torch.Tensor]:
    model, size = run.split("/")
    batch, _, height, width = map(int, size.split("x"))
    return model, image(batch, height, width).double()


def stats(x: torch.Tensor) -> np.ndarray:
    flat = x.detach().flatten()
    return np.array([flat.mean(), flat.std(unbiased=False), *flat[:8]])


@pytest.mark.parametrize("run", slow_but(("T/2x3x64x64", "S/1x3x64x64"), RUNS))
def test_network_equals_the_authors_in_float64(run, golden, keys):
    model, x = parse(run)
    network = filled(model, keys)
    points, orders = {}, {}

    def record(name):
        def hook(module, args, output):
            points[name] = output

        return hook

    def record_order(name):
        def hook(attn, args):
            from secvit.models.rotary import rotate_packed_

            tokens, table = args
            B, H, W, _ = tokens.shape
            qkv = attn.qkv(tokens).view(B, H * W, attn.num_heads, 3, -1)
            orders[name] = packed_order(rotate_packed_(qkv, table))

        return hook

    network.stem.register_forward_hook(record("patch_embed"))
    for i, stage in enumerate(network.stages):
        stage.blocks[0].register_forward_hook(record(f"stage{i + 1}.block0"))
        stage.register_forward_hook(record(f"stage{i + 1}"))
        stage.blocks[0].attn.register_forward_pre_hook(record_order(f"stage{i + 1}.block0/sort_indices"))
        if i:
            stage.downsample.register_forward_hook(record(f"down{i}"))
    network.head.norm.register_forward_hook(record("proj_norm"))
    network.head.global_pool.register_forward_hook(record("pooled"))
    with torch.no_grad():
        logits = network(x)

    expected = golden[f"{run}/logits64"]
    tolerance = 1e-9 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)
    checked = 0
    for name, output in points.items():
        if f"{run}/{name}/stats64" in golden:
            assert output.numel() == np.prod(golden[f"{run}/{name}/shape"])
            np.testing.assert_allclose(stats(output), golden[f"{run}/{name}/stats64"], rtol=0, atol=tolerance)
            checked += 1
    assert checked >= 10
    for name, order in orders.items():
        if f"{run}/{name}" in golden:
            np.testing.assert_array_equal(order, golden[f"{run}/{name}"])


@pytest.mark.parametrize("run", slow_but(("T/2x3x64x64",), ("T/2x3x64x64", "S/1x3x64x64", "M/1x3x64x64")))
def test_network_equals_the_authors_in_float32(run, golden, keys):
    model, x = parse(run)
    with torch.no_grad():
        logits = filled(model, keys).float()(x.float())
    expected = golden[f"{run}/logits32"]
    # measured between independent implementations: at most 1e-6 at this size, where no tie sits on a border
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_gradients_equal_the_authors(golden, keys):
    run = "T/2x3x64x64"
    model, x = parse(run)
    network = filled(model, keys)
    x.requires_grad_()
    weight = torch.from_numpy(uniform("grad.w", 2000).reshape(2, 1000))
    (network(x) * weight).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    theirs = convert.to_authors(gradients, convert.heads_of(network))
    names = [str(name) for name in golden[f"{run}/grad/param_names"]]
    assert set(names) == {name for name in theirs if not name.endswith(".angle")}
    l2 = np.array([theirs[name].norm() for name in names])
    first = np.array([theirs[name].flatten()[0] for name in names])
    np.testing.assert_allclose(l2, golden[f"{run}/grad/l2_64"], rtol=1e-9, atol=1e-9 * l2.max())
    np.testing.assert_allclose(first, golden[f"{run}/grad/first_64"], rtol=1e-7, atol=1e-10 * l2.max())
    np.testing.assert_allclose(x.grad.norm(), golden[f"{run}/grad/input_l2_64"], rtol=1e-9)


def test_batch_norm_in_training_equals_the_authors(golden, keys):
    run = "T/2x3x64x64"
    model, x = parse(run)
    network = filled(model, keys).train()
    with torch.no_grad():
        logits = network(x)
    prefix = f"{run}/train_bn"
    names = [name for name in golden.files if name.startswith(prefix)]
    recorded = {name.removeprefix(prefix + "/").removesuffix("64"): golden[name] for name in names}
    tolerance = 1e-9 * np.abs(recorded["logits"]).max()
    theirs = convert.to_authors(network.state_dict(), convert.heads_of(network))
    for name, value in recorded.items():
        found = logits if name == "logits" else theirs[name]
        np.testing.assert_allclose(found, value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("model", slow_but(("T", "S", "S_paper"), MODELS))
def test_converter_covers_every_key_of_the_authors_and_back(model, keys):
    network = timm.create_model(MODELS[model], device="meta")
    heads = convert.heads_of(network)
    theirs = {k: fill(k, tuple(shape)) for k, (shape, _) in keys[model].items()}
    ours = convert.from_authors(theirs, heads)
    assert misfit(ours, network.state_dict()) == ""
    back = convert.to_authors(ours, heads)
    assert back.keys() == keys[model].keys()
    for key, (shape, _) in keys[model].items():
        assert list(back[key].shape) == shape, key
        if not key.endswith(".angle"):
            assert torch.equal(back[key], theirs[key]), key


def test_rotary_angles_equal_the_authors(golden, keys):
    for model, name in MODELS.items():
        network = timm.create_model(name, device="meta")
        heads = convert.heads_of(network)
        theirs = {k: torch.zeros(()).expand(shape) for k, (shape, _) in keys[model].items()}
        angles = convert.to_authors(convert.from_authors(theirs, heads), heads)
        for i in range(4):
            key = f"layers.{i}.RoPE.angle"
            np.testing.assert_array_equal(angles[key], golden[f"{model}/{key}"])
