"""Layers by the road of `secvit.ops.road`: in our networks, and in place of nn.Linear in those of others."""

import copy

import pytest
import timm
import torch
from torch import nn

import secvit
from secvit.layers import Depthwise5x5, Linear, route_linears
from secvit.ops import attention, partitions, products
from secvit.ops.road import using_road
from tests.ops.test_products import CLOSE, needs_onednn, off

SMALL = {
    "secvit_nano": {"depths": (1, 1, 1, 1)},
    "sec_swin_tiny": {"embed_dim": 32, "num_heads": (1, 2, 4, 8), "depths": (1, 1, 1, 1)},
    "sec_deit_small": {"embed_dim": 64, "num_heads": 2, "depth": 2, "img_size": 128},
}


def small(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **SMALL[name])


def with_gradients(model, images):
    logits = model(images)
    logits.square().sum().backward()
    return {"logits": logits.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@needs_onednn
@pytest.mark.parametrize("name", SMALL)
def test_our_networks_and_their_gradients_are_those_of_float64_on_either_road(name, monkeypatch):
    orders, sort = [], attention.order_by

    def keep(*args):
        orders.append(sort(*args))
        return orders[-1]

    side = 64 if name == "secvit_nano" else 128
    model, images = small(name).eval(), torch.randn(2, 3, side, side)
    for module in (attention, partitions):
        monkeypatch.setattr(module, "order_by", keep)
    exact = with_gradients(copy.deepcopy(model).double(), images.double())
    calls, convolve = [], products._row_product
    monkeypatch.setattr(products, "_row_product", lambda *args: calls.append(args) or convolve(*args))
    worst = {}
    for road in ("torch", "onednn"):
        same = iter(orders)  # tokens that are nearly tied may swap: the clusters are those of float64
        for module in (attention, partitions):
            monkeypatch.setattr(module, "order_by", lambda *args, same=same: next(same))
        calls.clear()
        with using_road(road):
            found = with_gradients(copy.deepcopy(model), images)
        assert bool(calls) == (road == "onednn")
        # a bias before a batch norm has no gradient but rounding's
        scale = {key: value for key, value in exact.items() if value.abs().max() > 1e-9}
        worst[road] = {key: off(found[key], value) for key, value in scale.items()}
        assert worst[road]["logits"] < CLOSE
    assert max(worst["onednn"].values()) < max(2e-5, 2 * max(worst["torch"].values()))


@pytest.mark.parametrize("name", ["sec_swin_tiny", "sec_deit_small"])
def test_all_linear_layers_of_timms_blocks_are_routed(name):
    kinds = {type(layer) for layer in small(name).modules() if isinstance(layer, nn.Linear)}
    assert kinds == {Linear}


def test_parameters_begin_as_those_of_torchs_layers():
    def first(make):
        torch.manual_seed(0)
        return make().state_dict()

    for ours, theirs in (
        (lambda: Linear(3, 5), lambda: nn.Linear(3, 5)),
        (lambda: Depthwise5x5(4), lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4)),
    ):
        found, expected = first(ours), first(theirs)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


class Other(nn.Linear):
    """A layer of somebody else's, as LoRA's are."""


@needs_onednn
def test_a_network_of_others_goes_the_road_with_its_own_parameters_hooks_and_names(monkeypatch):
    tied = nn.Linear(64, 64)
    model = nn.Sequential(tied, nn.GELU(), nn.ModuleDict({"a": tied, "b": Other(64, 64)})["a"], Other(64, 64))
    seen = []
    tied.register_forward_hook(lambda *args: seen.append(1))
    before, keys = list(model.parameters()), list(model.state_dict())
    x = torch.randn(400, 64)
    with torch.no_grad():
        expected = model(x)
        assert secvit.route_linears(model) == 1 and route_linears(model) == 0
        assert [type(layer) for layer in model] == [Linear, nn.GELU, Linear, Other] and model[0] is model[2]
        assert all(a is b for a, b in zip(model.parameters(), before, strict=True)) and list(model.state_dict()) == keys
        calls, convolve = [], products._row_product
        monkeypatch.setattr(products, "_row_product", lambda *args: calls.append(args) or convolve(*args))
        with using_road("torch"):
            assert torch.equal(model(x), expected) and not calls
        with using_road("onednn"):
            assert off(model(x), expected) < CLOSE and len(calls) == 2
    assert len(seen) == 6
    model.eval()
    assert not tied.training  # whoever holds the layer that was replaced sees the same


@needs_onednn
def test_a_patched_network_goes_the_road():
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", depth=2, embed_dim=64, num_heads=2, num_classes=5).eval()
    secvit.patch(model, 4)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad(), using_road("onednn"):
        expected = model(x)
        assert route_linears(model) == 9  # qkv, proj, fc1, fc2 of each block; the head
        assert off(model(x), expected) < 2e-2  # nearly tied tokens may swap
