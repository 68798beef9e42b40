"""`SECViT.fuse`: the same function, in fewer passes over memory."""

import copy
import io

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from secvit.models.blocks import AddDepthwise
from secvit.models.packed import _HAS_BFLOAT16, _HAS_ONEDNN, ConvGELU, PackedLinear


def network(**options):
    """A small SECViT whose norms have something to fold."""
    torch.manual_seed(0)
    model = timm.create_model(
        "secvit_nano", num_classes=5, depths=(1, 1, 2, 1), layer_scale=(False, False, True, True), **options
    )
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    return model.eval()


def off(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
@pytest.mark.parametrize("stem_stride", [2, 4])
def test_fused_is_the_same_function(size, stem_stride):
    model = network(stem_stride=stem_stride).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    fused = copy.deepcopy(model).fuse()
    with torch.no_grad():
        assert off(fused(x), model(x)) < 1e-12  # sums in another order
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    assert sum(isinstance(layer, ConvGELU) for layer in fused.modules()) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_depthwise_sum_is_the_same_function_folded_or_not(dtype):
    layer = AddDepthwise(4, {"dtype": dtype})
    x = torch.randn(2, 4, 5, 7, dtype=dtype)
    expected = x.double() + nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), 1, 1, 1, 4)
    bound = 4 * torch.finfo(dtype).eps * expected.abs().max()
    with torch.no_grad():
        assert (layer(x) - expected).abs().max() < bound
        layer.reparameterize()
        assert (layer(x) - expected).abs().max() < bound


def test_autocast_does_not_round_depthwise_weights_beside_a_one():
    layer = AddDepthwise(1, {})
    nn.init.constant_(layer.weight, 1e-3)  # 1.001 is 1 in bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (layer(torch.ones(1, 1, 8, 8)) - 1 - layer.bias)[0, 0, 4, 4] > 0.5 * 9e-3


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_packed_products_are_right_in_single_and_half_precision(dtype, bound):
    model = network().fuse()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        found = model.to(dtype)(x.to(dtype))
    assert off(found, exact) < bound
    packed = [layer.packed for layer in model.modules() if isinstance(layer, PackedLinear)]
    there = _HAS_ONEDNN if dtype == torch.float32 else _HAS_BFLOAT16
    assert len(packed) == 4 * 5 and all((layer is not None) == there for layer in packed)


def test_fusing_twice_changes_nothing():
    model = network().double().fuse()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model).fuse()(x), model(x))


def test_timm_reparameterize_fuses_a_backbone_inside_another_model():
    model = nn.Sequential(network()).double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    fused = reparameterize_model(model)
    with torch.no_grad():
        assert off(fused(x), model(x)) < 1e-12
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def test_new_weights_are_packed_anew():
    model, other = network().fuse(), network()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.1)
    other.fuse()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        model(x)
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(x), other(x))
        assert off(model.double()(x.double()), other(x)) < 1e-5


def test_weights_of_an_unfused_network_do_not_load_into_a_fused_one():
    model = network()
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="running_mean"):
        model.fuse().load_state_dict(weights)


def test_a_fused_network_survives_copies_and_saving():
    model = network().fuse()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)


def test_a_fused_network_still_has_gradients():
    model = network().double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(model(x).square().sum(), x)[0]
    found = torch.autograd.grad(model.fuse()(x).square().sum(), x)[0]
    assert off(found, expected) < 1e-10


def test_a_fused_network_exports():
    model = network().fuse()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert off(torch.export.export(model, (x,)).module()(x), expected) < 1e-5


def test_autocast_reaches_the_products_of_a_fused_network():
    model = network().fuse()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.stages[0].blocks[0].ffn.fc1(torch.randn(3, 32)).dtype == torch.bfloat16
