"""Recorded clusters are those that attention uses, in every kind of network, and recording changes nothing."""

import pytest
import torch
from torch import nn

from secvit.vis import cluster_maps, record_keys
from secvit.vis.record import grid_of, layers
from tests.vis.make import patched, sec_deit, sec_swin, secvit_nano

KINDS = {"SECViT": secvit_nano, "SEC-Swin": sec_swin, "SEC-DeiT": sec_deit, "patched": patched}
SIZES = {"SECViT": (33, 50), "SEC-Swin": (48, 72), "SEC-DeiT": (96, 64), "patched": (64, 64)}


def reached(model, layer, image, token, head):
    """Tokens whose attention of a head changes with the value of one token.  -> (L,)"""
    module, heads, prefix = layer.around.attn, layer.num_heads, layer.clustering.num_prefix_tokens
    seen = []

    def change(_, inputs, out):
        rows = out.reshape(*out.shape[:1], -1, out.shape[-1])  # (B, P + L, 3 C), of the same memory
        if out.dim() == 3:  # rows are (q | k | v, head, channel), else (head, q | k | v, channel)
            rows.unflatten(-1, (3, heads, -1))[0, prefix + token, 2, head] += 1
        else:
            rows.unflatten(-1, (heads, 3, -1))[0, token, head, 2] += 1

    hook = module.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    with torch.no_grad():
        for changed in (False, True):
            torch.manual_seed(3)
            other = module.qkv.register_forward_hook(change) if changed else None
            model(image[None])
    hook.remove()
    other.remove()
    before, after = (x.reshape(-1, heads, x.shape[-1] // heads) for x in seen)
    return ((before - after).abs().amax(-1) > 1e-7)[prefix:, head]  # float32 of one and the same operation


@pytest.mark.parametrize("partition", ["sec", "window", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_attend_to_those_of_their_label_and_to_no_others(kind, partition):
    model, image = KINDS[kind](partition=partition), torch.randn(3, *SIZES[kind])
    for module in model.modules():
        if hasattr(module, "lepe"):  # it sees neighbours, whatever their cluster
            nn.init.zeros_(module.lepe.weight)
    layer = layers(model)[0]
    torch.manual_seed(3)
    found = cluster_maps(model, image, stages=[0], head=1, block=0)[0]
    labels = found.labels.flatten()
    assert found.num_clusters > 1 and found.labels.numel() == len(labels)
    assert torch.equal(reached(model, layer, image, 5, 1), labels == labels[5])


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_keys_give_the_clusters_of_the_network(kind):
    model = KINDS[kind]()
    for keys in record_keys(model, torch.randn(3, *SIZES[kind]), block="all"):
        assert torch.equal(keys.cut().labels[0].unflatten(-1, keys.grid), keys.labels)


def test_keys_before_rotary_positions_do_not_depend_on_the_place():
    keys = record_keys(secvit_nano(), torch.full((3, 64, 64), 0.5), stages=[0])[0]
    alike = keys.without_rotary().keys.unflatten(2, keys.grid)[:, :, 8:-8, 8:-8]  # borders see padding
    assert alike.std(dim=(2, 3)).max() < 1e-5 < keys.keys.unflatten(2, keys.grid).std(dim=(2, 3)).max()  # float32


def test_layers_that_share_an_order_have_the_clusters_of_the_first():
    model = patched(share_order_every=2)
    first, second, third = (keys.labels for keys in record_keys(model, torch.randn(3, 64, 64), block="all"))
    assert first.shape == (1, 4, 4) and torch.equal(first, second) and not torch.equal(first, third)
    assert not model.secvit_tapped


def test_recording_does_not_disturb_a_random_partition():
    model, image, outputs = secvit_nano(partition="random"), torch.randn(3, 32, 32), []
    model.stages[-1].register_forward_hook(lambda *args: outputs.append(args[-1]))
    for run in (lambda: model(image[None]), lambda: cluster_maps(model, image)):
        torch.manual_seed(5)
        with torch.no_grad():
            run()
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was(kind):
    model = KINDS[kind]().train()
    next(model.children()).eval()
    modes = [m.training for m in model.modules()]
    before = [dict(vars(m)) for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    cluster_maps(model, torch.randn(3, *SIZES[kind]))
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert [set(vars(m)) for m in model.modules()] == [set(names) for names in before]
    assert all(vars(m).get("secvit") is old.get("secvit") for m, old in zip(model.modules(), before, strict=True))


def test_a_vision_tower_of_transformers_is_recorded_too():
    transformers = pytest.importorskip("transformers")
    import secvit

    config = transformers.ViTConfig(
        image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = secvit.patch(transformers.ViTModel(config).eval(), 4)
    maps = cluster_maps(model, torch.randn(3, 64, 64), head="all", block="all")
    assert [(m.block, m.head, m.num_clusters) for m in maps] == [(0, 0, 4), (0, 1, 4), (1, 0, 4), (1, 1, 4)]
    assert all(m.labels.shape == (4, 4) and (m.sizes == 4).all() for m in maps)


def test_of_a_plain_vit_the_ends_of_its_quarters_are_shown():
    model = patched()
    assert [m.block for m in cluster_maps(model, torch.randn(3, 64, 64))] == [0, 1, 2]
    assert [m.block for m in cluster_maps(model, torch.randn(3, 64, 64), block=-1)] == [2]
    assert [m.block for m in cluster_maps(sec_swin(), torch.randn(3, 32, 32))] == [0, 1, 0, 0]


def test_a_grid_is_that_of_the_image():
    assert grid_of(12, (60, 80)) == (3, 4) and grid_of(12, (80, 60)) == (4, 3) and grid_of(1, (7, 9)) == (1, 1)
    with pytest.raises(ValueError, match="13 tokens are no grid"):
        grid_of(13, (64, 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": 2}, "that stage has 2 of them"),
        ({"head": "some"}, 'choose "all"'),
        ({"stages": [4]}, "this model has 4 of them"),
        ({"block": 1}, "that stage has 1 of them"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        cluster_maps(secvit_nano(), torch.randn(3, 32, 32), **options)


def test_other_networks_and_shapes_are_refused():
    with pytest.raises(ValueError, match="Linear has no attention in clusters.*secvit.patch"):
        cluster_maps(nn.Linear(2, 2), torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match=r"give one image \(3, H, W\)"):
        cluster_maps(secvit_nano(), torch.randn(2, 3, 32, 32))
