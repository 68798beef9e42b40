"""`secvit.patch` on timm's vision transformers, small ones with all the specialities of their families."""

from __future__ import annotations

import copy
import io
import pickle
import shutil

import pytest
import timm
import torch
from torch import Tensor, nn

import secvit
from tests.adapt.explicit import explicitly
from tests.conftest import slow_but

# family: timm's name, what to change of it, prefix tokens, calls of SDPA per attention
FAMILIES = {
    "vit": ("vit_small_patch16_224", {}, 1, 1),
    "vit_qk_norm_gated": ("vit_small_patch16_224", {"qk_norm": True, "attn_layer": timm.layers.AttentionRope}, 1, 1),
    "vit_reg4": ("vit_medium_patch16_reg4_gap_256", {}, 4, 1),
    "vit_rope_mixed": ("vit_small_patch16_rope_mixed_224", {}, 1, 1),
    "vit_parallel_scaling": ("vit_base_patch16_xp_224", {}, 1, 1),
    "vit_parallel_things": ("vit_small_patch16_18x2_224", {}, 1, 1),
    "vit_post_norm": ("vit_base_patch16_rpn_224", {}, 0, 1),
    "vit_diff": ("vit_dlittle_patch16_reg1_gap_256", {}, 1, 2),
    "vit_diff_parallel": ("vit_dpwee_patch16_reg1_gap_256", {}, 1, 2),
    "deit": ("deit_small_patch16_224", {}, 1, 1),
    "deit_distilled": ("deit_small_distilled_patch16_224", {}, 2, 1),
    "deit3": ("deit3_small_patch16_224", {}, 1, 1),
    "beit3": ("beit3_base_patch16_224", {}, 1, 1),
    "eva": ("eva_giant_patch14_224", {"patch_size": 16}, 1, 1),
    "eva02": ("eva02_small_patch14_224", {"patch_size": 16}, 1, 1),
    "clip": ("vit_base_patch16_clip_224", {}, 1, 1),
    "pe": ("vit_pe_core_tiny_patch16_384", {}, 1, 1),
    "siglip": ("vit_base_patch16_siglip_224", {}, 0, 1),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}, 5, 1),
    "dinov3": ("vit_small_patch16_dinov3", {}, 5, 1),
    "naflex": ("naflexvit_base_patch16_gap", {}, 4, 1),
    "qwen3_vit": ("qwen3_vit_88m", {}, 0, 1),
}
FIXED_POSITIONS = ("naflex", "qwen3_vit")  # these take images of any size as they are
NEW = {"qwen3_vit"}  # of timm 1.0.31; earlier ones are supported without it


def unless_new(family: str):
    missing = family in NEW and not timm.is_model(FAMILIES[family][0])
    return pytest.param(family, marks=pytest.mark.skipif(missing, reason=f"timm {timm.__version__} has no {family}"))


every_family = pytest.mark.parametrize("family", [unless_new(family) for family in FAMILIES])

# float64: orders agree exactly, sums differ in the order of their terms
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def tiny(family: str = "vit", depth: int = 2, **changes) -> nn.Module:
    """In float64, with every parameter moved off its initial value, so that layer scales and biases count."""
    name, own, _, _ = FAMILIES[family]
    args = {"depth": depth, "embed_dim": 32, "num_heads": 2, "num_classes": 5, **own}
    if family not in FIXED_POSITIONS:
        args |= {"img_size": 64, "dynamic_img_size": True}
    torch.manual_seed(0)
    model = timm.create_model(name, **(args | changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def image(height: int = 64, width: int = 80, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def tokens(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_features(x)


def traces(model: nn.Module) -> dict[str, object]:
    """All that `patch` could leave behind: attributes of every module, and its hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {name: (sorted(vars(m)), [len(getattr(m, h)) for h in hooks]) for name, m in model.named_modules()}


# -- what a patched model computes ---------------------------------------------------------------------


@every_family
def test_one_cluster_is_the_original(family):
    model, x = tiny(family), image()
    before = tokens(model, x), model(x)
    for backend in ("auto", "reference"):
        secvit.patch(model, num_clusters=1, backend=backend)
        assert model.secvit_patch.clustering.num_prefix_tokens == FAMILIES[family][2]
        torch.testing.assert_close((tokens(model, x), model(x)), before, **CLOSE)
        secvit.unpatch(model)


@every_family
def test_tokens_see_their_cluster_and_the_prefix(family):
    model, x = tiny(family), image(80, 64)
    expected = explicitly(lambda: tokens(model, x), 3, FAMILIES[family][2])
    assert not torch.allclose(expected, tokens(model, x), rtol=1e-3)
    torch.testing.assert_close(tokens(secvit.patch(model, num_clusters=3), x), expected, **CLOSE)


@every_family
def test_fast_path_is_the_loops_with_gradients(family):
    model, x = tiny(family), image(batch=1)
    results = []
    for backend in ("auto", "reference"):
        secvit.patch(model, num_clusters=3, backend=backend)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        results.append((out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        secvit.unpatch(model)
    assert len(results[0][1]) > 20
    torch.testing.assert_close(*results, **CLOSE)


@every_family
def test_unpatch_gives_back_the_model(family):
    model, x = tiny(family, depth=3), image()
    before, keys, out = traces(model), list(model.state_dict()), model(x)
    for share in (1, 2, 3):
        secvit.patch(model, num_clusters=2, share_order_every=share)
        assert list(model.state_dict()) == keys
        model(x)
        assert type(secvit.unpatch(model)) is type(model)
        assert traces(model) == before
        assert torch.equal(model(x), out)


@every_family
def test_any_size_and_count_runs_forward_and_backward(family):
    model = tiny(family)
    for height, width in ((64, 64), (48, 80), (112, 16)):  # 16, 15 and 7 patches
        for num_clusters in (2, 3, 16):
            secvit.patch(model, num_clusters=num_clusters)
            model.zero_grad()
            out = model(image(height, width, batch=1))
            out.sum().backward()
            assert out.isfinite().all()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            secvit.unpatch(model)


def test_pixels_that_fill_no_patch_run():
    model = secvit.patch(tiny("vit", dynamic_img_pad=True), num_clusters=3)
    assert model(image(53, 71)).isfinite().all()


# -- one order for several layers ------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("share", [2, 3])
def test_layers_of_a_group_go_by_one_order(family, share):
    model, x = tiny(family, depth=3), image()
    _, _, prefix, calls = FAMILIES[family]
    expected = explicitly(lambda: tokens(model, x), 3, prefix, share, calls)
    secvit.patch(model, num_clusters=3, share_order_every=share)
    for _ in range(2):
        torch.testing.assert_close(tokens(model, x), expected, **CLOSE)


@pytest.mark.parametrize(
    ("family", "travels"), [("vit", True), ("deit_distilled", True), ("naflex", True), ("dinov3", False)]
)
def test_tokens_travel_only_where_positions_are_in_them(family, travels):
    model, x = tiny(family, depth=3), image()
    plain = secvit.patch(copy.deepcopy(model), num_clusters=3, shared=True)
    secvit.patch(model, num_clusters=3, share_order_every=3)
    inside: dict[nn.Module, Tensor] = {}
    for m in (model, plain):
        m.blocks[0].register_forward_hook(lambda block, args, out, m=m: inside.update({m: out}))
        m.blocks[1].attn.register_forward_pre_hook(lambda block, args, m=m: inside.update({m: args[0]}))
        tokens(m, x)
    assert torch.equal(inside[model], inside[plain]) is not travels


@pytest.mark.parametrize("family", ["vit", "dinov3", "naflex"])
def test_intermediate_features_show_tokens_in_their_places(family):
    model, x = tiny(family, depth=3), image()
    shared = secvit.patch(copy.deepcopy(model), num_clusters=3, share_order_every=3)
    final, between = shared.forward_intermediates(x)
    torch.testing.assert_close(final, tokens(shared, x), **CLOSE)
    expected = explicitly(lambda: model.forward_intermediates(x)[1], 3, FAMILIES[family][2], 3)
    torch.testing.assert_close(between, expected, **CLOSE)
    first = shared.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(first[0], expected[1], **CLOSE)
    torch.testing.assert_close(tokens(shared, x), final, **CLOSE)


def test_a_pyramid_of_features_shows_tokens_in_their_places():
    model, x = tiny(depth=3, features_only=True, out_indices=[0, 1, 2]), image(64, 64)
    expected = explicitly(lambda: model(x), 3, 1, 3)
    torch.testing.assert_close(secvit.patch(model, num_clusters=3, share_order_every=3)(x), expected, **CLOSE)


def test_a_forward_that_fails_leaves_the_next_one_right():
    model = tiny(depth=3)
    secvit.patch(model, cluster_size=8, share_order_every=3)
    large, small = image(64, 64), image(32, 32)
    expected = tokens(model, large), tokens(model, small)

    def fail(block, args):
        raise FloatingPointError

    for x, out in zip((large, small), expected):  # four patches are one cluster, which needs no plan
        handle = model.blocks[2].register_forward_pre_hook(fail)
        with pytest.raises(FloatingPointError):
            model(large)
        handle.remove()
        assert torch.equal(tokens(model, x), out)


@pytest.mark.parametrize("keep", [0, 1])
def test_a_shortened_model_has_the_right_outputs(keep):
    model, x = tiny(depth=3), image()
    patched = secvit.patch(copy.deepcopy(model), num_clusters=3, share_order_every=3)
    for m in (model, patched):
        m.prune_intermediate_layers([keep])
    expected = explicitly(lambda: tokens(model, x), 3, 1, 3)
    torch.testing.assert_close(tokens(patched, x), expected, **CLOSE)
    assert torch.equal(tokens(secvit.unpatch(patched), x), tokens(model, x))
    assert traces(patched) == traces(model)


# -- compiled, exported, copied, saved, trained ------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    slow_but(
        ("eva02",),
        ("vit", "deit_distilled", "vit_diff", "vit_parallel_scaling", "eva02", "siglip", "dinov2", "dinov3"),
    ),
)
def test_compiled_is_eager_with_gradients(family):
    model, x = secvit.patch(tiny(family, depth=1), num_clusters=3), image(batch=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for forward in (model, compiled):
        model.zero_grad()
        out = forward(x)
        out.sum().backward()
        results.append((out, [p.grad for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*results, **CLOSE)


@torch.no_grad()
def test_compiled_tokens_travel():
    model, x = secvit.patch(tiny(), num_clusters=3, share_order_every=2), image()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x), **CLOSE)


def test_patching_a_compiled_model_is_noticed():
    model, x = tiny(depth=1), image()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    original = compiled(x)
    secvit.patch(model, num_clusters=3)
    torch.testing.assert_close(compiled(x), model(x), **CLOSE)
    secvit.unpatch(model)
    torch.testing.assert_close(compiled(x), original, **CLOSE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a compiler")
def test_inductor_is_eager():
    model, x = secvit.patch(tiny(), num_clusters=3), image()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), **CLOSE)


@pytest.mark.parametrize("share", [1, 2])
def test_exported_is_eager(share):
    model, x = secvit.patch(tiny(depth=share), num_clusters=3, share_order_every=share), image()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), **CLOSE)


@pytest.mark.parametrize("share", [1, 3])
def test_a_copy_is_patched_by_itself(share):
    model, x = tiny(depth=3), image()
    original = model(x)
    secvit.patch(model, num_clusters=3, share_order_every=share)
    clustered = model(x)
    twins = {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}
    for twin in twins.values():
        assert torch.equal(twin(x), clustered)
        secvit.unpatch(twin)
        assert torch.equal(twin(x), original)
        assert torch.equal(model(x), clustered)
    with torch.no_grad():
        model.head.bias.zero_()
    assert torch.equal(twins["deepcopy"](x), original)


def test_weights_move_between_patched_and_original():
    patched, original, x = secvit.patch(tiny(), num_clusters=3), tiny(), image()
    with torch.no_grad():
        for p in patched.parameters():
            p.mul_(1.1)
    file = io.BytesIO()
    torch.save(patched.state_dict(), file)
    file.seek(0)
    original.load_state_dict(torch.load(file, weights_only=True))
    back = secvit.patch(tiny(), num_clusters=3)
    back.load_state_dict(original.state_dict())
    assert torch.equal(back(x), patched(x))
    assert torch.equal(original(x), secvit.unpatch(patched)(x))


@pytest.mark.parametrize("share", [1, 2])
def test_training_lowers_the_loss(share):
    model, x = secvit.patch(tiny(), num_clusters=3, share_order_every=share).train(), image()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_recomputed_activations_have_the_same_gradients():
    model, x = secvit.patch(tiny(), num_clusters=3).train(), image()
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(x).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, **CLOSE)


def test_recomputing_a_shared_order_is_refused():
    model = secvit.patch(tiny(), num_clusters=3, share_order_every=2).train()
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="share_order_every=1"):
        model(image())
    with torch.no_grad():
        assert model(image()).isfinite().all()


# -- options -------------------------------------------------------------------------------------------------


OPTIONS = [
    {"score": "queries"}, {"score": "values"}, {"centre": "cls"}, {"centre": "pc1"}, {"shared": True},
    {"centre": "cls", "shared": True}, {"partition": "window", "grid": (4, 5)}, {"partition": "raster"},
    {"partition": "random_projection"}, {"partition": "pc1"}, {"partition": "kmeans"},
    {"partition": "balanced_kmeans"}, {"layers": [1]}, {"layers": [-1]}, {"num_prefix_tokens": 0},
    {"cluster_size": 7}, {"cluster_size": 20},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_option_changes_the_partition(options):
    model, x = tiny(), image()
    original = tokens(model, x)
    secvit.patch(model, num_clusters=3)
    plain = tokens(model, x)
    secvit.unpatch(model)
    count = {} if "cluster_size" in options else {"num_clusters": 3}
    out = tokens(secvit.patch(model, **count, **options), x)
    if options.get("cluster_size") == 7:  # 20 patches are three clusters of at most seven
        assert torch.equal(out, plain)
    elif options.get("cluster_size") == 20:
        assert torch.equal(out, original)
    else:
        assert not torch.allclose(out, plain, rtol=1e-6)


def test_layers_left_out_attend_to_all():
    model, x = tiny(depth=3), image()
    one = secvit.patch(copy.deepcopy(model), num_clusters=3, layers=[2])
    again = secvit.patch(copy.deepcopy(model), num_clusters=3, layers=[-1])
    assert one.secvit_patch.layers == ["blocks.2.attn"]
    before = [m.forward_intermediates(x, indices=[0, 1], intermediates_only=True) for m in (model, one)]
    assert all(torch.equal(a, b) for a, b in zip(*before))
    assert not torch.equal(tokens(one, x), tokens(model, x))
    assert torch.equal(tokens(one, x), tokens(again, x))


def test_layers_apart_can_share_an_order():
    model, x = tiny(depth=3), image()
    secvit.patch(model, num_clusters=3, layers=[0, 2], share_order_every=2)
    clustered = tokens(model, x)
    secvit.unpatch(model)
    secvit.patch(model, num_clusters=3, layers=[0, 2], shared=True)
    own = tokens(model, x)
    assert clustered.isfinite().all() and not torch.allclose(clustered, own, rtol=1e-6)


# -- images of different sizes, padded (NaFlexViT) --------------------------------------------------------------


def padded(grids: list[tuple[int, int]], length: int, junk: float = 0.0) -> dict[str, Tensor]:
    """NaFlexViT's input: patches (B, length, 768) of images with these grids, padded with junk."""
    patches = torch.full((len(grids), length, 768), junk, dtype=torch.float64)
    coords = torch.zeros(len(grids), length, 2, dtype=torch.long)
    valid = torch.zeros(len(grids), length, dtype=torch.bool)
    for i, (height, width) in enumerate(grids):
        generator = torch.Generator().manual_seed(i)
        place = torch.arange(height * width)
        patches[i, : len(place)] = torch.randn(len(place), 768, generator=generator, dtype=torch.float64)
        coords[i, : len(place)] = torch.stack([place // width, place % width], dim=1)
        valid[i, : len(place)] = True
    return {"patches": patches, "patch_coord": coords, "patch_valid": valid}


@pytest.mark.parametrize(
    "changes", [{}, {"rope_type": "axial"}, {"class_token": True, "reg_tokens": 0, "global_pool": "token"}], ids=str
)
@pytest.mark.parametrize("share", [1, 2])
def test_padding_changes_nothing(changes, share):
    model = secvit.patch(tiny("naflex", **changes), num_clusters=3, share_order_every=share)
    grids = [(4, 3), (2, 4), (1, 2)]  # the last has fewer patches than clusters
    together = model(padded(grids, 14))
    torch.testing.assert_close(model(padded(grids, 14, junk=9.0)), together, **CLOSE)
    for i in range(len(grids)):
        alone = {name: x[i : i + 1, : grids[i][0] * grids[i][1]] for name, x in padded(grids, 14).items()}
        torch.testing.assert_close(model(alone)[0], together[i], **CLOSE)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_cluster_of_padded_images_is_the_original(backend):
    model, x = tiny("naflex"), padded([(4, 3), (2, 4)], 14)
    original = model(x)
    torch.testing.assert_close(secvit.patch(model, num_clusters=1, backend=backend)(x), original, **CLOSE)


# -- models that cannot be patched ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224",
        "vit_relpos_small_patch16_224",
        "samvit_base_patch16",
        "swin_tiny_patch4_window7_224",
        "cait_xxs24_224",
        "resnet18",
    ],
)
def test_windows_biases_and_convolutions_are_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match="without windows or position biases"):
        secvit.patch(model, num_clusters=4)
    assert not hasattr(model, "secvit_patch")


def test_a_class_token_at_an_unknown_place_is_refused():
    with torch.device("meta"):
        model = timm.create_model("crossvit_9_240")
    with pytest.raises(ValueError, match=r"give num_prefix_tokens="):
        secvit.patch(model, num_clusters=4)
    assert secvit.patch(model, num_clusters=4, num_prefix_tokens=1).secvit_patch.clustering.num_prefix_tokens == 1


def test_causal_calls_and_biases_are_refused():
    model, x = secvit.patch(tiny(), num_clusters=3), image(64, 64)
    with pytest.raises(ValueError, match="cannot be causal"):
        model(x, is_causal=True)
    with pytest.raises(ValueError, match="block mask"):
        model(x, attn_mask=torch.ones(17, 17, dtype=torch.bool).tril())


def test_attention_written_out_is_refused():
    model = tiny()
    model.blocks[1].attn.fused_attn = False
    with pytest.raises(ValueError, match=r"blocks\.1\.attn.*set_fused_attn"):
        secvit.patch(model, num_clusters=3)
    model.blocks[1].attn.fused_attn = True
    secvit.patch(model, num_clusters=3)
    model.blocks[1].attn.fused_attn = False
    with pytest.raises(RuntimeError, match="nothing was clustered"):
        model(image())
