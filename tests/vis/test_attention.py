"""What a token is shown to attend to is what the network computes, in every kind of network, and nothing is changed."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import secvit
from secvit.cli import main
from secvit.draw import panels
from secvit.vis import draw_attention, record_keys, token_attention
from secvit.vis.attention import place_in, weights_overlay
from secvit.vis.record import layers
from tests.vis.make import VIT, patched, photo, sec_deit, sec_swin, secvit_nano

TREE = {"partition": "tree", "near": 2, "far": True}
KINDS = {
    "SECViT": (secvit_nano, (33, 50)), "SEC-Swin": (sec_swin, (48, 72)), "SEC-DeiT": (sec_deit, (96, 64)),
    "patched": (patched, (64, 64)),
}  # fmt: skip
AT = (0.3, 0.8)


def plain():
    return timm.create_model("vit_tiny_patch16_224", **VIT).eval()


def outputs(model, attention, image, head):
    """What a head's attention gives every token, before it is projected.  -> (P + L, D)"""
    for module in model.modules():
        if hasattr(module, "lepe"):  # is added to it
            nn.init.zeros_(module.lepe.weight)
            nn.init.zeros_(module.lepe.bias)
    seen = []
    hook = attention.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model(image[None])
    hook.remove()
    return seen[0].flatten(0, -2).unflatten(-1, (attention.num_heads, -1))[:, head]


@pytest.mark.parametrize("sight", [{}, TREE], ids=["SEC", "near and far"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_sum_to_one_and_weigh_values_to_the_networks_output(kind, sight):
    make, size = KINDS[kind]
    model, image = make(**sight).double(), torch.randn(3, *size, dtype=torch.float64)
    out = outputs(model, layers(model)[0].around.attn, image, 1)
    [one] = token_attention(model, image, AT, [0], head=1, block=0)
    values = record_keys(model, image, [0], 0, projections=True)[0].projections.v[0, 1]
    row, column = one.token
    token = len(values) - one.labels.numel() + row * one.labels.shape[1] + column
    assert one.num_clusters > 1 and one.exact[0] == one.labels[one.token] and len(one.exact) == sight.get("near", 1)
    torch.testing.assert_close(one.weights @ values, out[token], rtol=1e-9, atol=1e-9)  # float64, other sums
    for weights in (one.weights, one.full):
        assert abs(weights.sum().item() - 1) < 1e-12 and abs(sum(one.shares(weights).values()) - 1) < 1e-12
    outside = ~torch.isin(one.labels, torch.tensor(one.exact))
    assert (
        (one.of_patches(one.weights)[outside] > 0).all() if sight else (one.of_patches(one.weights)[outside] == 0).all()
    )
    assert 0 < one.moved < 1


def test_a_vit_without_clusters_is_shown_with_full_attention_and_left_as_it_was():
    model, image = plain().double(), torch.randn(3, 64, 64, dtype=torch.float64)
    before = [set(vars(module)) for module in model.modules()]
    [one] = token_attention(model, image, AT, head=1, block=2)
    assert one.num_clusters == 1 and one.moved < 1e-12
    assert [set(vars(module)) for module in model.modules()] == before
    qkv = []
    hook = model.blocks[2].attn.qkv.register_forward_hook(lambda _, inputs, out: qkv.append(out))
    out = outputs(model, model.blocks[2].attn, image, 1)
    hook.remove()
    values = qkv[0].unflatten(-1, (3, 2, -1))[0, :, 2, 1]
    token = 1 + one.token[0] * 4 + one.token[1]
    torch.testing.assert_close(one.weights @ values, out[token], rtol=1e-9, atol=1e-9)


def test_with_all_clusters_near_nothing_is_elsewhere_than_in_full_attention():
    [one] = token_attention(patched(partition="tree", near=4), torch.randn(3, 64, 64), AT, block=1)
    torch.testing.assert_close(one.weights, one.full, rtol=1e-12, atol=1e-12)


def test_layers_that_share_an_order_tell_of_each_head():
    model = patched(share_order_every=2, near=2, far=True)
    found = token_attention(model, torch.randn(3, 64, 64), AT, head="all", block=1)
    assert [(one.block, one.head, one.heads) for one in found] == [(1, 0, 2), (1, 1, 2)]
    assert torch.equal(found[0].labels, found[1].labels) and not torch.equal(found[0].weights, found[1].weights)


def test_the_trees_clusters_are_those_of_queries_and_keys_however_it_is_asked_for():
    model, image = plain(), torch.randn(3, 64, 64)
    [own] = record_keys(secvit.patch(model, 4, partition="tree"), image, block=0)
    [other] = record_keys(secvit.patch(secvit.unpatch(model), 4), image, block=0)
    assert not torch.equal(own.labels, other.labels)
    for keys in (own, other):
        assert torch.equal(keys.cut(4, partition="tree").labels[0].unflatten(-1, keys.grid), own.labels)


def test_places_are_parts_of_the_photo_or_px():
    assert place_in("0.25,1", (640, 480)) == (0.25, 1) and place_in("160, 480", (640, 480)) == (0.25, 1)
    for wrong, words in (("0.5", "'0.5' is no place; give X,Y"), ("a,b", "give X,Y"), ("nan,0.1", "0 to 1"),
                         ("-0.1,0.5", "places .x, y. go from 0 to 1"), ("641,0", "no place in a photo of 640 × 480 px")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            place_in(wrong, (640, 480))
    with pytest.raises(ValueError, match="places .x, y. go from 0 to 1"):
        token_attention(secvit_nano(), torch.randn(3, 32, 32), (2, 0.5))
    with pytest.raises(ValueError, match="that stage has 2 of them"):
        token_attention(secvit_nano(), torch.randn(3, 32, 32), stages=[0], head=2)


def test_an_attention_that_does_not_tell_its_projections_is_named(monkeypatch):
    model = secvit_nano()
    monkeypatch.delattr(type(layers(model)[0].module), "projections")
    with pytest.raises(ValueError, match="SECAttention does not say what it computes attention of.*projections"):
        token_attention(model, torch.randn(3, 32, 32), stages=[0])


def test_heavier_tokens_are_brighter_and_the_one_that_attends_is_framed():
    [one] = token_attention(patched(**TREE), torch.randn(3, 64, 64), AT, block=1)
    grey = Image.new("RGB", (400, 400), (128, 128, 128))
    pixels = weights_overlay(grey, one, one.weights, one.weights.max().item())
    brightness = (pixels[50::100, 50::100] @ [0.299, 0.587, 0.114]).flatten()
    order = one.of_patches(one.weights).flatten().argsort()
    assert (np.diff(brightness[order]) >= -1e-2).all() and brightness[order[-1]] > brightness[order[0]]
    row, column = one.token
    assert (pixels[100 * row : 100 * row + 100, 100 * column - 2 : 100 * column + 2] == 1).all(-1).any()


def test_a_figure_has_a_row_for_each_head_and_says_the_shares(monkeypatch):
    monkeypatch.setattr(panels, "PANEL_AREA", 80 * 60)
    found = token_attention(patched(**TREE), torch.randn(3, 64, 64), AT, head="all", block=1)
    figure = draw_attention(photo(), found, "title")
    assert len(figure.axes) == 2 * 3
    words = "\n".join(text.get_text() for text in figure.texts)
    share = found[0].shares(found[0].weights)
    assert f"own {share['own']:.0%}, near {share['near']:.0%}, far {share['far']:.0%}" in words
    assert f"prefix {share['prefix']:.0%}" in words and "1 near (blue), 2 far by summaries" in words


def test_the_command_draws_what_a_place_attends_to(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(panels, "PANEL_AREA", 80 * 60)
    file, output = tmp_path / "photo.png", tmp_path / "out.png"
    photo().save(file)  # 56 x 40 px
    words = ["cluster", "secvit_nano", str(file), "-o", str(output), "--size", "32", "--near", "2", "--far"]
    assert main([*words, "--attends", "30,20"]) == 0
    with Image.open(tmp_path / "out_attends.png") as drawn:
        assert drawn.height > 4 * 60  # a row for each stage
    assert main([*words, "--attends", "57,20"]) == 2
    assert "57,20 is no place in a photo of 56 × 40 px" in capsys.readouterr().err
    assert main([*words, "--near", "0"]) == 2
    assert "near=0; choose a whole number" in capsys.readouterr().err
