"""`secvit.patch` without numbers: clusters by the number of tokens, and all tokens where they are few."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

import secvit
from secvit.adapt import ClusteredAttention
from secvit.models.saved import load_model
from secvit.ops import QUALITIES, Clustering
from tests.adapt.test_timm import CLOSE, image, padded, tiny, tokens
from tests.adapt.test_transformers import inputs, naflex, tower
from tests.conftest import ROOT, slow_but

RULED = {"fast": 1, "balanced": 2, "faithful": 4}  # near


@pytest.fixture
def from_few(monkeypatch):
    """Clusters from 8 tokens on, so that small images have some."""
    for name, quality in QUALITIES.items():
        monkeypatch.setitem(QUALITIES, name, replace(quality, break_even=8))


# -- the rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_number_of_clusters_is_that_of_the_formula(quality):
    clustering, finer = Clustering(quality=quality), 2 if quality == "faithful" else 1
    least = QUALITIES[quality].break_even
    for length in [*range(least, least + 999), 8190, 9216, 16384, 100_000]:
        if length == 2048:  # half way between two powers of two, where float sums decide
            continue
        assert clustering.clusters_for(length) == finer * 2 ** round(math.log2(math.sqrt(length) / 2)), length
    assert {clustering.clusters_for(length) for length in range(1, least)} == {1}
    assert clustering.sight(16) == {"near": RULED[quality], "far": True}


def test_the_page_has_the_numbers_of_the_rule():
    rows = re.findall(
        r'\| `"(\w+)"` \| ([\d,]+) tokens \|[^|]*\| (\d+) / (\d+) \| (\d) \|', (ROOT / "docs/patching.md").read_text()
    )
    page = {name: tuple(int(number.replace(",", "")) for number in numbers) for name, *numbers in rows}
    counts = {name: [Clustering(quality=name).clusters_for(length) for length in (4096, 9216)] for name in QUALITIES}
    assert page == {name: (one.break_even, *counts[name], one.near) for name, one in QUALITIES.items()}


@pytest.mark.parametrize("quality", [None, *QUALITIES])
def test_many_tokens_go_by_a_tree_with_near_and_far(from_few, quality):
    model = tiny("deit_distilled")
    patched = secvit.patch(copy.deepcopy(model), **({} if quality is None else {"quality": quality}))
    near, finer = RULED[quality or "balanced"], 2 if quality == "faithful" else 1
    for height, width, count in ((112, 96, 4), (176, 192, 8)):  # 42 and 132 tokens
        x = image(height, width, batch=1)
        other = secvit.patch(copy.deepcopy(model), finer * count, partition="tree", near=near, far=True)
        assert torch.equal(tokens(patched, x), tokens(other, x))
        assert not torch.allclose(tokens(patched, x), tokens(model, x), rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"share_order_every": 2}, {"backend": "math"}, {"partition": "window"}], ids=str
)
@pytest.mark.parametrize("family", slow_but(("deit_distilled",), ("deit_distilled", "dinov3", "siglip", "vit_diff")))
def test_few_tokens_attend_to_all_to_the_bit(family, options):
    model, x = tiny(family), image()
    before = tokens(model, x)
    assert torch.equal(tokens(secvit.patch(model, **options), x), before)


@pytest.mark.parametrize("family", ["vit", "siglip2", "dinov3"])
def test_few_tokens_of_a_tower_attend_to_all_to_the_bit(family):
    model = tower(family)
    given = inputs(family)
    before = model(**given).last_hidden_state
    assert torch.equal(secvit.patch(model)(**given).last_hidden_state, before)


def test_an_attention_of_ones_own_takes_a_quality(from_few):
    q, k, v = torch.randn(3, 1, 2, 41, 8).unbind(0)
    out = ClusteredAttention(Clustering(quality="fast", num_prefix_tokens=1))(q, k, v)
    seen = {"partition": "tree", "near": 1, "far": True}
    assert torch.equal(out, secvit.sec_attention(q, k, v, 4, num_prefix_tokens=1, **seen))


def test_padding_changes_nothing(from_few):
    model = secvit.patch(tiny("naflex"), quality="fast")
    grids = [(4, 3), (2, 4), (1, 2)]
    torch.testing.assert_close(model(padded(grids, 14, junk=9.0)), model(padded(grids, 14)), **CLOSE)
    model = secvit.patch(tower("siglip2"), quality="fast")
    clean, junk = (model(**naflex([(4, 4), (2, 4)], 16, junk=junk)).pooler_output for junk in (0.0, 9.0))
    torch.testing.assert_close(junk, clean, **CLOSE)


# -- words beside numbers --------------------------------------------------------------------------


def test_with_a_number_the_options_are_what_they_were():
    model = secvit.patch(tiny(), num_clusters=3)
    assert model.secvit_patch.options == {"num_clusters": 3}
    assert model.secvit_patch.clustering == Clustering(3, num_prefix_tokens=1, partition="sec", near=1, far=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "best"}, "quality='best'; choose one of fast, balanced, faithful"),
        ({"quality": "fast", "num_clusters": 4}, "quality='fast' chooses the number of clusters; drop num_clusters=4"),
        ({"quality": "fast", "cluster_size": 4}, "drop cluster_size=4, or quality"),
        ({"quality": "fast", "near": 1}, "quality='fast' chooses near and far; drop near=1, or give num_clusters"),
        ({"near": 4, "far": False}, "quality='balanced' chooses near and far; drop near=4 and far=False"),
        ({"score": "values"}, "a tree is grown from queries and keys; drop score='values'"),
        ({"num_clusters": 2, "cluster_size": 4}, "not both"),
    ],
)
def test_what_contradicts_is_refused_by_name(options, message):
    model = tiny(depth=1)
    with pytest.raises(ValueError, match=message):
        secvit.patch(model, **options)
    assert not hasattr(model, "secvit_patch")


def test_a_printed_model_says_from_how_many_tokens_on_it_has_clusters():
    shown = "ClusteredAttention(num_prefix_tokens=1, quality='balanced', all tokens below 2048)"
    assert shown in repr(secvit.patch(tiny(depth=1)))


# -- saved, compiled, exported ---------------------------------------------------------------------


def test_a_tower_is_saved_with_its_quality_and_not_with_numbers(tmp_path, from_few):
    transformers = pytest.importorskip("transformers", reason="pip install 'secvit[dev]'")
    model = secvit.patch(tower())
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["secvit_patch"] == {"quality": "balanced"}
    loaded = transformers.ViTModel.from_pretrained(tmp_path, dtype=torch.float64)
    for height in (64, 112):
        given = inputs("vit", height)
        torch.testing.assert_close(loaded(**given).last_hidden_state, model(**given).last_hidden_state, **CLOSE)


def test_a_network_of_timm_without_a_choice_is_patched_by_default():
    model = timm.create_model("vit_sec_patched", network="deit_tiny_patch16_224", depth=1)
    assert model.secvit_patch.options == {"quality": "balanced"}


def test_a_run_keeps_its_quality(tmp_path):
    args = {"img_size": 32, "depth": 1}
    save_file(
        timm.create_model("deit_tiny_patch16_224", num_classes=2, **args).state_dict(), tmp_path / "model.safetensors"
    )
    patch = {"quality": "faithful"}
    model = {"name": "deit_tiny_patch16_224", "args": args, "patch": patch, "image_size": 32}
    (tmp_path / "config.yaml").write_text(yaml.dump({"task": "classification", "model": model, "classes": ["a", "b"]}))
    assert load_model(checkpoint=tmp_path).secvit_patch.options == patch


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_one_compiled_attention_has_the_clusters_of_each_length(from_few, dynamic):
    attend = ClusteredAttention(Clustering(quality="fast"))
    torch.compiler.reset()
    compiled = torch.compile(attend, backend="eager", fullgraph=True, dynamic=dynamic)
    for length in (40, 20, 7):
        q, k, v = torch.randn(3, 1, 2, length, 8, dtype=torch.float64).unbind(0)
        torch.testing.assert_close(compiled(q, k, v), attend(q, k, v), **CLOSE)
    torch.compiler.reset()


@pytest.mark.slow
def test_an_exported_attention_has_the_clusters_of_its_length(from_few):
    attend = ClusteredAttention(Clustering(quality="fast", num_prefix_tokens=1))
    q, k, v = torch.randn(3, 2, 2, 41, 8).unbind(0)
    exported = torch.export.export(attend, (q, k, v), strict=False).module()
    torch.testing.assert_close(exported(q, k, v), attend(q, k, v))


def test_an_export_for_any_length_is_refused(from_few):
    q, k, v = torch.randn(3, 2, 2, 41, 8).unbind(0)
    shapes = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},) * 3
    with pytest.raises(ValueError, match="an export for any size leaves open; export one size"):
        attend = ClusteredAttention(Clustering(quality="fast"))
        torch.export.export(attend, (q, k, v), dynamic_shapes=shapes, strict=False)
