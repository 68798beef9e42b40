"""`ClusteredAttention`, the adapter for attention of one's own, and what `secvit.patch` says to bad arguments."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secvit
from secvit.adapt import ClusteredAttention
from secvit.adapt.attend import SharedOrder
from secvit.ops import Clustering
from tests.adapt.explicit import explicitly

# float64: orders agree exactly, sums differ in the order of their terms
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def qkv(length: int = 23, heads: int = 2, key_heads: int = 2) -> list[Tensor]:
    return [torch.randn(3, h, length, 8, dtype=torch.float64) for h in (heads, key_heads, key_heads)]


def attend(**settings) -> ClusteredAttention:
    return ClusteredAttention(Clustering(**settings))


# -- the adapter -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "math", "reference"])
def test_it_is_sec_attention(prefix, backend):
    q, k, v = qkv()
    out = attend(num_clusters=4, num_prefix_tokens=prefix, backend=backend)(q, k, v, scale=0.3)
    expected = secvit.sec_attention(q, k, v, 4, scale=0.3, num_prefix_tokens=prefix)
    torch.testing.assert_close(out, expected, **CLOSE)


def test_one_cluster_is_plain_attention():
    q, k, v = qkv()
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    for backend in ("auto", "sdpa", "math", "reference"):
        out = attend(cluster_size=23, num_prefix_tokens=2, backend=backend)(q, k, v, scale=0.3)
        torch.testing.assert_close(out, expected, **CLOSE)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_fewer_patches_than_clusters_run(length):
    q, k, v = qkv(length)
    out = attend(num_clusters=8, num_prefix_tokens=1)(q, k, v)
    expected = secvit.sec_attention(q, k, v, length - 1, num_prefix_tokens=1)
    torch.testing.assert_close(out, expected, **CLOSE)


def test_grouped_queries_are_repeated_keys():
    q, k, v = qkv(heads=4)
    wide = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    clustered = attend(num_clusters=3, num_prefix_tokens=1)
    torch.testing.assert_close(clustered(q, k, v, enable_gqa=True), clustered(q, *wide), **CLOSE)


def test_one_order_for_all_heads_comes_from_all_of_them():
    q, k, v = qkv()
    out = attend(num_clusters=3, shared=True)(q, k, v)
    torch.testing.assert_close(out, secvit.sec_attention(q, k, v, 3, shared=True), **CLOSE)
    plan = secvit.cluster(k.transpose(1, 2).flatten(2), 3)
    torch.testing.assert_close(out, secvit.sec_attention(q, k, v, plan=plan), **CLOSE)


@pytest.mark.parametrize("score", ["keys", "queries", "values"])
@pytest.mark.parametrize("centre", ["mean", "cls", "pc1"])
def test_scores_and_centres_are_those_of_cluster(score, centre):
    q, k, v = qkv()
    scored = {"keys": k, "queries": q, "values": v}[score]
    plan = secvit.cluster(scored[:, :, 1:], 3, centre=scored[:, :, 0] if centre == "cls" else centre)
    expected = secvit.sec_attention(q, k, v, plan=plan, num_prefix_tokens=1)
    out = attend(num_clusters=3, num_prefix_tokens=1, score=score, centre=centre)(q, k, v)
    torch.testing.assert_close(out, expected, **CLOSE)


def test_dropout_drops_weights():
    q, k, v = qkv()
    clustered = attend(num_clusters=3, num_prefix_tokens=1)
    assert not torch.allclose(clustered(q, k, v, dropout_p=0.5), clustered(q, k, v), rtol=1e-3)
    with pytest.raises(ValueError, match="drop dropout_p="):
        attend(num_clusters=3, backend="reference")(q, k, v, dropout_p=0.5)


def test_autocast_keeps_the_order():
    q, k, v = (x.float() for x in qkv())
    clustered = attend(num_clusters=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(clustered(q, k, v), clustered(q, k, v.clone()))


def test_a_layer_that_follows_needs_one_that_leads():
    order = SharedOrder()
    leading, following = (
        ClusteredAttention(Clustering(num_clusters=3, shared=True), order, leads) for leads in (True, False)
    )
    q, k, v = qkv()
    with pytest.raises(RuntimeError, match="share_order_every=1"):
        following(q, k, v)
    leading(q, k, v)
    expected = secvit.sec_attention(v, q, k, plan=secvit.cluster(k.transpose(1, 2).flatten(2), 3))
    torch.testing.assert_close(following(v, q, k), expected, **CLOSE)


# -- masks -----------------------------------------------------------------------------------------------------------


REAL = [23, 12, 4]  # real tokens, one of them prefix, of three images


def padding(shape: str, additive: bool) -> Tensor:
    real = torch.arange(23) < torch.tensor(REAL).unsqueeze(1)
    mask = {
        "(B, 1, 1, L)": real[:, None, None],
        "(B, h, 1, L)": real[:, None, None].expand(-1, 2, -1, -1),
        "(B, 1, L, L)": real[:, None, None].expand(-1, -1, 23, -1),
        "(B, 1, L, L), rows masked too": (real.unsqueeze(1) & real.unsqueeze(2)).unsqueeze(1),
    }[shape]
    if not additive:
        return mask
    # what transformers and timm add: the least number, which is finite
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)


SHAPES = ["(B, 1, 1, L)", "(B, h, 1, L)", "(B, 1, L, L)", "(B, 1, L, L), rows masked too"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_padded_tokens_are_in_no_cluster(shape, additive, backend):
    q, k, v = qkv()
    clustered = attend(num_clusters=5, num_prefix_tokens=1, backend=backend)
    out = clustered(q, k, v, padding(shape, additive))
    assert out.isfinite().all()
    for b, real in enumerate(REAL):
        alone = clustered(*(x[b : b + 1, :, :real] for x in (q, k, v)))
        torch.testing.assert_close(out[b : b + 1, :, :real], alone, **CLOSE)


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_for_all_images_is_taken(additive):
    q, k, v = qkv()
    mask = padding("(B, 1, L, L)", additive)[1:2, 0]
    clustered = attend(num_clusters=5, num_prefix_tokens=1)
    alone = clustered(*(x[:, :, :12] for x in (q, k, v)))
    for given in (mask, mask.unsqueeze(0), mask[0]):
        torch.testing.assert_close(clustered(q, k, v, given)[:, :, :12], alone, **CLOSE)


def test_a_mask_of_real_tokens_alone_changes_nothing():
    q, k, v = qkv()
    clustered = attend(num_clusters=5, num_prefix_tokens=1)
    for mask in (torch.ones(1, 1, 23, 23, dtype=torch.bool), torch.zeros(3, 1, 1, 23)):
        torch.testing.assert_close(clustered(q, k, v, mask), clustered(q, k, v), **CLOSE)


def test_masks_of_pairs_of_tokens_are_refused():
    q, k, v = qkv()
    clustered = attend(num_clusters=3)
    causal = torch.ones(23, 23, dtype=torch.bool).tril()
    block = torch.block_diag(torch.ones(11, 11), torch.ones(12, 12)).bool()
    head = torch.ones(3, 2, 1, 23, dtype=torch.bool)
    head[:, 1, :, 20:] = False
    for mask in (causal, block, head, torch.zeros(23, 23).masked_fill(~causal, float("-inf"))):
        with pytest.raises(ValueError, match=r"a causal or block mask\).*only padding can be masked.*layers="):
            clustered(q, k, v, mask)
    with pytest.raises(ValueError, match=r"depends on the pair of tokens \(a bias\)"):
        clustered(q, k, v, torch.randn(1, 2, 23, 23))


def test_causal_and_cross_attention_are_refused():
    q, k, v = qkv()
    clustered = attend(num_clusters=3, num_prefix_tokens=2)
    with pytest.raises(ValueError, match="cannot be causal: the centre and every token's rank"):
        clustered(q, k, v, is_causal=True)
    for bad in ((q[:, :, :4], k, v), (q[:, :, :2], k[:, :, :2], v[:, :, :2]), (q[0], k[0], v[0])):
        with pytest.raises(ValueError, match=r"no self-attention of image tokens \(B, h, L, D\); leave this layer out"):
            clustered(*bad)


# -- modules of one's own ----------------------------------------------------------------------------------------------


class Mixer(nn.Module):
    """A home-made attention that timm does not know."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Silent(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x)[..., : x.shape[-1]]


def mixers(*classes: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(c() for c in classes)).double()


def test_named_modules_are_clustered():
    model, x = mixers(Mixer, nn.Identity, Mixer), torch.randn(2, 15, 16, dtype=torch.float64)
    original, first = model(x), model[0](x)
    for share in (1, 2):
        expected = explicitly(lambda share=share: model(x), 4, 2, share)
        secvit.patch(model, num_clusters=4, modules=["0", "2"], num_prefix_tokens=2, share_order_every=share)
        torch.testing.assert_close(model(x), expected, **CLOSE)
        assert torch.equal(secvit.unpatch(model)(x), original)
    secvit.patch(model, num_clusters=4, modules=["2"])
    assert torch.equal(model[0](x), first) and not torch.equal(model(x), original)


def test_a_module_that_calls_no_attention_says_so():
    model = secvit.patch(mixers(Mixer, Silent), num_clusters=4, modules=["0", "1"])
    with pytest.raises(
        RuntimeError, match="Silent did not call scaled_dot_product_attention, so nothing was clustered"
    ):
        model(torch.randn(2, 15, 16, dtype=torch.float64))


def test_a_forward_set_by_another_tool_is_refused():
    model = mixers(Mixer)
    model[0].forward = model[0].forward
    with pytest.raises(ValueError, match="has a forward of its own"):
        secvit.patch(model, num_clusters=4, modules=["0"])


def test_parts_are_patched_once():
    model = mixers(Mixer, Mixer)
    outer = nn.Sequential(model)
    secvit.patch(model, num_clusters=4, modules=["0"])
    with pytest.raises(ValueError, match=r"0\.0 is patched already, as part of another model"):
        secvit.patch(outer, num_clusters=2, modules=["0.0", "0.1"])
    with pytest.raises(ValueError, match=r"a part of it is: secvit\.unpatch\(model\.0\)"):
        secvit.unpatch(outer)
    assert not hasattr(outer, "secvit_patch")


# -- bad arguments ---------------------------------------------------------------------------------------------------------


BAD = [
    ({"num_clusters": 2, "cluster_size": 4}, r"not both \(num_clusters=2, cluster_size=4\)"),
    ({"num_clusters": 0}, r"num_clusters=0; choose num_clusters >= 1"),
    ({"num_clusters": -1}, r"num_clusters=-1; choose num_clusters >= 1"),
    ({"cluster_size": 0}, r"cluster_size=0; choose cluster_size >= 1"),
    ({"num_clusters": 2, "score": "key"}, r"score='key'; choose one of keys, queries, values"),
    ({"num_clusters": 2, "centre": "median"}, r"centre='median'; choose one of mean, cls, pc1"),
    ({"num_clusters": 2, "partition": "grid"}, r"partition='grid'; choose one of sec, window"),
    ({"num_clusters": 2, "backend": "flash"}, r"backend='flash'; choose one of auto"),
    ({"num_clusters": 2, "partition": "random", "centre": "cls"}, r"partition='random' has no centre; drop centre='cls'"),
    ({"num_clusters": 2, "centre": "cls", "num_prefix_tokens": 0}, r"no prefix tokens; use centre=\"mean\""),
    ({"num_clusters": 2, "num_prefix_tokens": -1}, r"num_prefix_tokens=-1; choose num_prefix_tokens >= 0"),
    ({"num_clusters": 2, "backend": "reference", "shared": True}, r"leave the other options alone"),
    ({"num_clusters": 2, "backend": "reference", "share_order_every": 2}, r"use share_order_every=1"),
    ({"num_clusters": 2, "partition": "kmeans", "share_order_every": 2}, r"'kmeans'.* use share_order_every=1"),
    ({"num_clusters": 2, "share_order_every": 0}, r"share_order_every=0; choose share_order_every >= 1"),
    ({"num_clusters": 2, "layers": [2]}, r"layers=\[2\]; choose from 0 to 1, or negative ones from the end"),
    ({"num_clusters": 2, "layers": [-3]}, r"layers=\[-3\]; choose from 0 to 1"),
    ({"num_clusters": 2, "layers": []}, r"layers=\[\]; choose from 0 to 1"),
    ({"num_clusters": 2, "modules": []}, r"modules=\[\]; name the attention modules"),
    ({"num_clusters": 2, "modules": ["blocks.7.attn"]}, r"blocks\.7\.attn.*see model\.named_modules\(\)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=16, num_heads=2, img_size=32)


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_bad_arguments_name_the_value_and_the_remedy(vit, options, message):
    before = {name: sorted(vars(m)) for name, m in vit.named_modules()}
    with pytest.raises(ValueError, match=message):
        secvit.patch(vit, **options)
    assert {name: sorted(vars(m)) for name, m in vit.named_modules()} == before


def test_patching_twice_and_unpatching_nothing_are_refused(vit):
    model = copy.deepcopy(vit)
    with pytest.raises(ValueError, match="the model is not patched"):
        secvit.unpatch(model)
    secvit.patch(model, num_clusters=2)
    with pytest.raises(ValueError, match=r"patched already; secvit\.unpatch\(model\) first"):
        secvit.patch(model, num_clusters=3)
    assert model.secvit_patch.clustering.num_clusters == 2
    secvit.unpatch(model)
    with pytest.raises(ValueError, match="the model is not patched"):
        secvit.unpatch(model)


def test_tiny_grids_have_as_many_clusters_as_patches(vit):
    model = secvit.patch(copy.deepcopy(vit).double().eval(), num_clusters=16)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = model(x)
    torch.testing.assert_close(secvit.patch(secvit.unpatch(model), num_clusters=4)(x), out, **CLOSE)
