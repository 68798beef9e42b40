"""`secvit.patch` on transformers' vision towers, small ones with random weights."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import secvit
from secvit.ops.partitions import SCORES
from tests.adapt.explicit import explicitly
from tests.conftest import slow_but

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'secvit[dev]'")

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 64, "patch_size": 16}

# family: model, its config, prefix tokens, whether position tables are resampled only when asked to
TOWERS = {
    "vit": ("ViTModel", "ViTConfig", IMAGES, 1, True),
    "deit": ("DeiTModel", "DeiTConfig", IMAGES, 2, True),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", IMAGES, 1, True),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", IMAGES, 0, True),
    "siglip2": ("Siglip2VisionModel", "Siglip2VisionConfig", {"patch_size": 16, "num_patches": 16}, 0, False),
    "dinov2": ("Dinov2Model", "Dinov2Config", IMAGES, 1, False),
    "dinov2_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 4, **IMAGES}, 5, False),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4, **IMAGES}, 5, False),
}  # fmt: skip
every_tower = pytest.mark.parametrize("family", TOWERS)

# float64: orders agree exactly, sums differ in the order of their terms
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
# transformers 5.24 resizes the positions of SigLIP 2 by a product in float32, which rounds otherwise in another shape
RESIZED = {"rtol": 1e-6, "atol": 1e-7}


def config(family: str, **changes):
    return getattr(transformers, TOWERS[family][1])(**(SMALL | TOWERS[family][2] | changes))


def tower(family: str = "vit", **changes):
    """In float64, with every parameter moved off its initial value."""
    torch.manual_seed(0)
    model = getattr(transformers, TOWERS[family][0])(config(family, **changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def inputs(family: str, height: int = 64, width: int = 64, batch: int = 2) -> dict[str, object]:
    if family == "siglip2":
        return naflex([(height // 16, width // 16)] * batch, height // 16 * (width // 16))
    pixels = torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    resample = {"interpolate_pos_encoding": True} if TOWERS[family][4] and (height, width) != (64, 64) else {}
    return {"pixel_values": pixels, **resample}


def naflex(grids: list[tuple[int, int]], length: int, junk: float = 0.0) -> dict[str, object]:
    """SigLIP2's input: patches (B, length, 768) of images with these grids, padded with junk."""
    pixels = torch.full((len(grids), length, 768), junk, dtype=torch.float64)
    mask = torch.zeros(len(grids), length, dtype=torch.long)
    for i, (height, width) in enumerate(grids):
        generator = torch.Generator().manual_seed(i)
        pixels[i, : height * width] = torch.randn(height * width, 768, generator=generator, dtype=torch.float64)
        mask[i, : height * width] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(grids)}


def tokens(model, given: dict[str, object]) -> Tensor:
    return model(**given).last_hidden_state


# -- what a patched tower computes ---------------------------------------------------------------------------


@every_tower
def test_one_cluster_is_the_original(family):
    model, given = tower(family), inputs(family)
    before = tokens(model, given)
    for backend in ("auto", "reference"):
        secvit.patch(model, num_clusters=1, backend=backend)
        assert model.secvit_patch.clustering.num_prefix_tokens == TOWERS[family][3]
        torch.testing.assert_close(tokens(model, given), before, **CLOSE)
        secvit.unpatch(model)


@every_tower
@pytest.mark.parametrize("share", [1, 2])
def test_tokens_see_their_cluster_and_the_prefix(family, share):
    model, given = tower(family), inputs(family)
    expected = explicitly(lambda: tokens(model, given), 3, TOWERS[family][3], share)
    assert not torch.allclose(expected, tokens(model, given), rtol=1e-3)
    out = tokens(secvit.patch(model, num_clusters=3, share_order_every=share), given)
    torch.testing.assert_close(out, expected, **CLOSE)


@every_tower
def test_fast_path_is_the_loops_with_gradients(family):
    model, given = tower(family), inputs(family, batch=1)
    results = []
    for backend in ("auto", "reference"):
        secvit.patch(model, num_clusters=3, backend=backend)
        model.zero_grad()
        out = tokens(model, given)
        out.square().sum().backward()
        results.append((out, [p.grad for p in model.parameters() if p.grad is not None]))
        secvit.unpatch(model)
    assert len(results[0][1]) > 20
    torch.testing.assert_close(*results, **CLOSE)


@every_tower
def test_any_size_and_count_runs_forward_and_backward(family):
    model = tower(family)
    for height, width in ((64, 64), (48, 80), (112, 16)):  # 16, 15 and 7 patches
        for num_clusters in (2, 3, 16):
            secvit.patch(model, num_clusters=num_clusters)
            model.zero_grad()
            out = tokens(model, inputs(family, height, width, batch=1))
            out.sum().backward()
            assert out.isfinite().all()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            secvit.unpatch(model)


@pytest.mark.parametrize("family", slow_but(("dinov3",), ("vit", "clip", "siglip", "dinov2", "dinov3")))
def test_compiled_is_eager(family):
    model, given = secvit.patch(tower(family, num_hidden_layers=1), num_clusters=3), inputs(family)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(tokens(compiled, given), tokens(model, given), **CLOSE)


@pytest.mark.parametrize("share", [1, 2])
def test_padding_changes_nothing(share):
    model = secvit.patch(tower("siglip2"), num_clusters=3, share_order_every=share)
    grids = [(4, 4), (2, 4), (1, 2)]  # the last has fewer patches than clusters
    together, junk = model(**naflex(grids, 16)), model(**naflex(grids, 16, junk=9.0))
    torch.testing.assert_close(junk.pooler_output, together.pooler_output, **CLOSE)
    for i, (height, width) in enumerate(grids):
        real = height * width
        given = naflex(grids, 16)
        alone = model(
            given["pixel_values"][i : i + 1, :real],
            given["pixel_attention_mask"][i : i + 1, :real],
            given["spatial_shapes"][i : i + 1],
        )
        torch.testing.assert_close(alone.pooler_output[0], together.pooler_output[i], **RESIZED)
        torch.testing.assert_close(alone.last_hidden_state[0], together.last_hidden_state[i, :real], **RESIZED)
        torch.testing.assert_close(junk.last_hidden_state[i, :real], together.last_hidden_state[i, :real], **CLOSE)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_cluster_of_padded_images_is_the_original(backend):
    model, given = tower("siglip2"), naflex([(4, 4), (2, 4)], 16)
    before = model(**given)
    after = secvit.patch(model, num_clusters=1, backend=backend)(**given)
    torch.testing.assert_close(after.pooler_output, before.pooler_output, **CLOSE)
    torch.testing.assert_close(after.last_hidden_state[1, :8], before.last_hidden_state[1, :8], **CLOSE)


def test_layers_left_out_attend_to_all():
    model, given = tower(), inputs("vit")
    both = secvit.patch(copy.deepcopy(model), num_clusters=3)
    second = secvit.patch(copy.deepcopy(model), num_clusters=3, layers=[-1])
    assert second.secvit_patch.layers == ["layers.1.attention"]
    hidden = [m(**given, output_hidden_states=True).hidden_states for m in (model, second, both)]
    assert torch.equal(hidden[0][1], hidden[1][1])
    assert not torch.equal(hidden[0][2], hidden[1][2])
    assert not torch.equal(hidden[1][1], hidden[2][1])


# -- the attention interface ---------------------------------------------------------------------------------


@every_tower
def test_unpatch_gives_back_the_tower(family):
    model, given = tower(family), inputs(family)
    own = model.config
    before = {name: sorted(vars(m)) for name, m in model.named_modules()}
    keys, out = list(model.state_dict()), tokens(model, given)
    for share in (1, 2):
        secvit.patch(model, num_clusters=3, share_order_every=share, layers=[0] if share == 1 else None)
        assert model.config._attn_implementation == "secvit"
        assert list(model.state_dict()) == keys
        tokens(model, given)
        secvit.unpatch(model)
        assert model.config is own and own._attn_implementation == "sdpa"
        assert {name: sorted(vars(m)) for name, m in model.named_modules()} == before
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert torch.equal(tokens(model, given), out)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_another_implementation_on_a_patched_tower_is_refused(name):
    model, given = tower(), inputs("vit")
    original = tokens(model, given)
    clustered = tokens(secvit.patch(model, num_clusters=3), given)
    model.set_attn_implementation(name)
    with pytest.raises(
        ValueError, match=rf"is patched, and its attention was set to '{name}'.*secvit\.unpatch\(model\)"
    ):
        tokens(model, given)
    model.set_attn_implementation("secvit")
    assert torch.equal(tokens(model, given), clustered)
    assert torch.equal(tokens(secvit.unpatch(model), given), original)
    assert model.config._attn_implementation == "sdpa"


def test_another_implementation_for_all_of_a_model_with_a_patched_tower_is_refused():
    model, given = llava()
    secvit.patch(model.model.vision_tower, cluster_size=4)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="CLIPVisionModel is patched, and its attention was set to 'eager'"):
        model(**given)


def test_ours_without_a_patch_is_refused():
    secvit.unpatch(secvit.patch(tower(), num_clusters=3))  # registers the name
    model = tower()
    model.set_attn_implementation("secvit")
    with pytest.raises(ValueError, match=r"secvit\.patch\(model, \.\.\.\)"):
        tokens(model, inputs("vit"))


def test_models_with_one_config_do_not_disturb_each_other():
    shared, given = config("vit"), inputs("vit")
    first, second, third = (transformers.ViTModel(shared).double().eval() for _ in range(3))
    original = [tokens(m, given) for m in (first, second, third)]
    secvit.patch(first, num_clusters=2)
    secvit.patch(second, num_clusters=4, centre="cls")
    twins = [secvit.patch(copy.deepcopy(third), num_clusters=2), secvit.patch(copy.deepcopy(third), num_clusters=4)]
    assert not torch.equal(tokens(twins[0], given), tokens(twins[1], given))
    clustered = tokens(second, given)
    assert torch.equal(tokens(third, given), original[2])
    secvit.unpatch(first)
    assert torch.equal(tokens(first, given), original[0])
    assert torch.equal(tokens(second, given), clustered)


def test_a_copy_is_patched_by_itself():
    model, given = tower(), inputs("vit")
    original = tokens(model, given)
    clustered = tokens(secvit.patch(model, num_clusters=3), given)
    twin = copy.deepcopy(model)
    assert torch.equal(tokens(twin, given), clustered)
    assert torch.equal(tokens(secvit.unpatch(twin), given), original)
    assert torch.equal(tokens(model, given), clustered)


@every_tower
def test_attention_weights_are_refused(family):
    model, given = secvit.patch(tower(family), num_clusters=3), inputs(family)
    with pytest.raises(ValueError, match="no L x L weights"):
        model(**given, output_attentions=True)


def test_gradient_checkpointing_needs_orders_of_its_own():
    model, given = tower(), inputs("vit", batch=1)
    new_name = hasattr(model, "activation_checkpointing_enable")
    enable = model.activation_checkpointing_enable if new_name else model.gradient_checkpointing_enable
    gradients = []
    secvit.patch(model, num_clusters=3).train()
    for checkpointing in (False, True):
        if checkpointing:
            enable()
        model.zero_grad()
        tokens(model, given).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, **CLOSE)
    secvit.patch(secvit.unpatch(model), num_clusters=3, share_order_every=2)
    with pytest.raises(ValueError, match="share_order_every=1"):
        tokens(model, given)


# -- saving and loading --------------------------------------------------------------------------------------

OPTIONS = {
    "a number of clusters": {"num_clusters": 3},
    "the last layer": {"cluster_size": 5, "layers": range(-1, 0), "partition": "window", "grid": (4, 4)},
    "one order for two layers": {"num_clusters": 3, "share_order_every": 2, "num_prefix_tokens": 1},
    "modules by name": {"num_clusters": 3, "modules": ["layers.1.attention"]},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_saved_patch_is_there_again(tmp_path, options):
    model, given = tower(attn_implementation="sdpa"), inputs("vit")
    original, keys = tokens(model, given), list(model.state_dict())
    clustered = tokens(secvit.patch(model, **OPTIONS[options]), given)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["secvit_patch"]
    assert written.keys() == OPTIONS[options].keys()
    assert not torch.equal(original, clustered)
    for loader in (transformers.ViTModel, transformers.AutoModel):
        loaded = loader.from_pretrained(tmp_path, dtype=torch.float64)
        assert list(loaded.state_dict()) == keys
        torch.testing.assert_close(tokens(loaded, given), clustered, **CLOSE)
        assert loaded.config.secvit_patch == written
    assert not hasattr(secvit.unpatch(loaded).config, "secvit_patch")
    torch.testing.assert_close(tokens(loaded, given), original, **CLOSE)
    loaded.save_pretrained(tmp_path / "unpatched")
    assert "secvit" not in (tmp_path / "unpatched" / "config.json").read_text()


def test_a_patched_classifier_loads_patched_and_so_does_its_tower_alone(tmp_path):
    model, given = transformers.ViTForImageClassification(config("vit", num_labels=3)).eval(), torch.randn(2, 3, 64, 64)
    secvit.patch(model, num_clusters=3)
    expected = model(given)
    model.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(loaded(given).logits, expected.logits) and not info["missing_keys"]
    assert transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).secvit_patch.layers == [
        "layers.0.attention", "layers.1.attention",
    ]  # fmt: skip


def test_the_patched_tower_of_a_language_model_is_saved_and_loaded_with_it(tmp_path):
    model, given = llava()
    original = model(**given).logits
    secvit.patch(model.model.vision_tower, cluster_size=4)
    clustered = model(**given).logits
    model.save_pretrained(tmp_path / "one")
    assert not hasattr(model.config.vision_config, "secvit_patch")  # that config may be another model's too
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "one")
    assert loaded.model.vision_tower.secvit_patch.options == {"cluster_size": 4}
    assert torch.equal(loaded(**given).logits, clustered) and not torch.equal(original, clustered)
    loaded.save_pretrained(tmp_path / "two")
    assert torch.equal(
        transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "two")(**given).logits, clustered
    )
    secvit.unpatch(loaded.model.vision_tower)
    loaded.save_pretrained(tmp_path / "three")
    assert "secvit" not in (tmp_path / "three" / "config.json").read_text()


def test_a_partition_of_ones_own_is_saved_by_its_name(tmp_path, monkeypatch):
    def own(tokens, *_):
        return tokens.norm(dim=-1)

    model, given = secvit.patch(tower(), 3, partition=own), inputs("vit")
    with pytest.raises(ValueError, match=r"partition=own is a function.*secvit\.register_partition\("):
        model.save_pretrained(tmp_path)
    monkeypatch.setitem(SCORES, "own_name", own)
    secvit.patch(secvit.unpatch(model), 3, partition=own).save_pretrained(tmp_path)
    loaded = transformers.ViTModel.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(tokens(loaded, given), tokens(model, given), **CLOSE)
    monkeypatch.delitem(SCORES, "own_name")
    with pytest.raises(ValueError, match=r"saved with clusters.*partition='own_name'.*register_partition\("):
        transformers.ViTModel.from_pretrained(tmp_path)


def test_clusters_that_a_config_has_no_place_for_are_named_when_they_are_not_saved(tmp_path):
    model = transformers.TimmWrapperModel(
        transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 1, "img_size": 32})
    )
    secvit.patch(model.timm_model, cluster_size=4)
    with pytest.warns(UserWarning, match=r"not saved.*secvit\.patch\(model\.timm_model, \*\*\{'cluster_size': 4\}\)"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "first", slow_but(("secvit, transformers",), ("secvit, transformers", "transformers.modeling_utils, secvit"))
)
def test_a_fresh_process_loads_what_was_saved_patched_whichever_is_imported_first(tmp_path, first):
    secvit.patch(tower(), num_clusters=3).save_pretrained(tmp_path)
    code = f"import {first}; print(transformers.ViTModel.from_pretrained({str(tmp_path)!r}).secvit_patch.options)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "{'num_clusters': 3}", done.stderr


def test_a_model_loaded_without_secvit_is_patched_by_one_line(tmp_path):
    model, given = tower(), inputs("vit")
    original = tokens(model, given)
    clustered = tokens(secvit.patch(model, num_clusters=3), given)
    plain = secvit.unpatch(model)
    plain.config.secvit_patch = {"num_clusters": 3}  # what a process without secvit has read
    secvit.patch(plain, **plain.config.secvit_patch)
    assert torch.equal(tokens(plain, given), clustered)
    assert torch.equal(tokens(secvit.unpatch(plain), given), original) and not hasattr(plain.config, "secvit_patch")


def test_a_patched_model_says_so_when_it_is_printed():
    model = tower()
    before = repr(model)
    assert "ClusteredAttention(num_clusters=3, num_prefix_tokens=1)" in repr(secvit.patch(model, num_clusters=3))
    assert repr(secvit.unpatch(model)) == before


# -- models that cannot be patched, and models around a tower --------------------------------------------------


def meta(model: str, settings):
    with torch.device("meta"):
        return getattr(transformers, model)(settings)


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_text_towers_are_refused_and_the_vision_tower_named(family):
    text = {**SMALL, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with pytest.raises(ValueError, match="reads input_ids, not images.*cannot be clustered.*patch the vision tower"):
        secvit.patch(meta(f"{family}TextModel", getattr(transformers, f"{family}TextConfig")(**text)), num_clusters=3)
    both = getattr(transformers, f"{family}Config")(text_config=text, vision_config={**SMALL, **IMAGES})
    model = meta(f"{family}Model", both)
    with pytest.raises(ValueError, match=r"has a text tower.*secvit\.patch\(model\.vision_model, \.\.\.\)"):
        secvit.patch(model, num_clusters=3)
    assert secvit.patch(model.vision_model, num_clusters=3).config._attn_implementation == "secvit"
    assert model.text_model.config._attn_implementation == "sdpa"


def test_causal_calls_and_biases_are_refused():
    from secvit.adapt import hf

    module = secvit.patch(tower(), num_clusters=3).get_submodule("layers.0.attention")
    q = torch.randn(1, 2, 17, 16)
    with pytest.raises(ValueError, match="cannot be causal"):
        hf.attend(module, q, q, q, None, is_causal=True)
    module.is_causal = True
    with pytest.raises(ValueError, match="cannot be causal"):
        hf.attend(module, q, q, q, None)
    module.is_causal = False
    with pytest.raises(ValueError, match="causal or block mask"):
        hf.attend(module, q, q, q, torch.ones(1, 1, 17, 17, dtype=torch.bool).tril())
    with pytest.raises(ValueError, match="adds position_bias"):
        hf.attend(module, q, q, q, None, position_bias=torch.zeros(1, 2, 17, 17))


def test_windows_biases_and_convolutions_are_refused():
    with pytest.raises(ValueError, match="windows or position biases"):
        secvit.patch(meta("SwinModel", transformers.SwinConfig(embed_dim=8, depths=[1], num_heads=[2])), num_clusters=3)
    backbone = transformers.Sam3ViTConfig(**SMALL, **IMAGES)
    with pytest.raises(ValueError, match=r"windows or position biases \(window_size\)"):
        secvit.patch(meta("Sam3VisionModel", transformers.Sam3VisionConfig(backbone_config=backbone)), num_clusters=3)
    with pytest.raises(ValueError, match="windows or position biases"):
        secvit.patch(
            meta("BeitModel", transformers.BeitConfig(use_relative_position_bias=True, **SMALL, **IMAGES)),
            num_clusters=3,
        )
    with pytest.raises(ValueError, match="does not go through transformers' attention interface"):
        secvit.patch(meta("ResNetModel", transformers.ResNetConfig()), num_clusters=3)


def llava():
    """A small LLaVA, and what it is called with."""
    text = transformers.LlamaConfig(**SMALL, vocab_size=64, num_key_value_heads=2)
    vision = transformers.CLIPVisionConfig(**SMALL, **IMAGES)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
    ).eval()
    return model, {
        "input_ids": torch.tensor([[1] + [63] * 16 + [2, 3]]),
        "attention_mask": torch.ones(1, 19, dtype=torch.long),
        "pixel_values": torch.randn(1, 3, 64, 64),
    }


def test_the_tower_of_a_language_model_is_patched_alone():
    model, given = llava()
    with pytest.raises(ValueError, match=r"secvit\.patch\(model\.model\.vision_tower, \.\.\.\)"):
        secvit.patch(model, num_clusters=4)
    with torch.no_grad():
        original = model(**given).logits
        secvit.patch(model.model.vision_tower, cluster_size=4)
        assert model.model.language_model.config._attn_implementation == "sdpa"
        clustered = model(**given).logits
        assert clustered.isfinite().all() and not torch.allclose(clustered, original, rtol=1e-3)
        assert model.generate(**given, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 22)
        with pytest.raises(ValueError, match=r"secvit\.unpatch\(model\.model\.vision_tower\)"):
            secvit.unpatch(model)
        secvit.unpatch(model.model.vision_tower)
        assert torch.equal(model(**given).logits, original)
