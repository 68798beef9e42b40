"""`secvit.patch` on vision towers as current language models have them: packed, padded, with windows in some layers."""

from __future__ import annotations

import pytest
import torch

import secvit

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'secvit[dev]'")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PACKED = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}
GRIDS = torch.tensor([[1, 8, 8], [1, 4, 12]])
# float64: sums in another order
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def tower(name: str, **more):
    """A random one in float64."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4VisionConfig, Gemma4VisionModel
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionConfig, Idefics3VisionTransformer
    from transformers.models.pixtral.modeling_pixtral import PixtralVisionConfig, PixtralVisionModel
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionConfig, Qwen3VLVisionModel
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionConfig, SmolVLMVisionTransformer

    square = {"image_size": 32, "patch_size": 4}
    model, config = {
        "smolvlm": (SmolVLMVisionTransformer, lambda: SmolVLMVisionConfig(**SMALL, **square)),
        "idefics3": (Idefics3VisionTransformer, lambda: Idefics3VisionConfig(**SMALL, **square)),
        "gemma4": (
            Gemma4VisionModel,
            lambda: Gemma4VisionConfig(
                **SMALL, num_key_value_heads=2, head_dim=16, patch_size=4, pooling_kernel_size=2
            ),
        ),
        "pixtral": (PixtralVisionModel, lambda: PixtralVisionConfig(**SMALL, **square)),
        "qwen2_5_vl": (
            qwen2_5.Qwen2_5_VisionTransformerPretrainedModel,
            lambda: qwen2_5.Qwen2_5_VLVisionConfig(**PACKED, window_size=16, fullatt_block_indexes=[1], **more),
        ),
        "qwen3_vl": (
            Qwen3VLVisionModel,
            lambda: Qwen3VLVisionConfig(**PACKED, deepstack_visual_indexes=[0], num_position_embeddings=64),
        ),
    }[name]
    torch.manual_seed(0)
    return model(config()).double().eval()


def features(name: str, model, which: slice = slice(None)):
    """Of two images (or some of them): tokens, one image after the other."""
    noise = torch.Generator().manual_seed(1)
    if name.startswith("qwen"):
        packed = torch.randn(64 + 48, 96, generator=noise, dtype=torch.float64).split([64, 48])
        out = model(torch.cat(packed[which]), grid_thw=GRIDS[which])
        return out.pooler_output if torch.is_tensor(out.pooler_output) else torch.cat(out.pooler_output)
    if name == "gemma4":
        y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        places = torch.stack([x, y], dim=-1).flatten(0, 1).repeat(2, 1, 1)
        places[1, 32:] = -1  # the second image has half the patches, and padding
        pixels = torch.rand(2, 64, 48, generator=noise, dtype=torch.float64)
        return model(pixels[which], places[which]).last_hidden_state
    pixels = torch.randn(2, 3, 32, 32, generator=noise, dtype=torch.float64)
    real = torch.ones(2, 8, 8, dtype=torch.bool)
    real[1, 4:] = False  # padding in the second image
    out = model(pixels[which], patch_attention_mask=real[which]).last_hidden_state
    return torch.cat([tokens[mask.flatten()] for tokens, mask in zip(out, real[which])])


every_tower = pytest.mark.parametrize("name", ["smolvlm", "idefics3", "gemma4", "qwen2_5_vl", "qwen3_vl"])


@every_tower
@torch.no_grad()
def test_one_cluster_is_the_original_and_more_are_not(name):
    model = tower(name)
    expected = features(name, model)
    torch.testing.assert_close(features(name, secvit.patch(model, 1, backend="math")), expected, **CLOSE)
    secvit.unpatch(model)
    torch.testing.assert_close(features(name, model), expected, **CLOSE)
    clustered = features(name, secvit.patch(model, 4))
    assert clustered.isfinite().all()
    assert not torch.allclose(clustered, expected, **CLOSE)


@every_tower
@torch.no_grad()
def test_clusters_never_cross_images(name):
    model = secvit.patch(tower(name), 4)
    alone = torch.cat([features(name, model, slice(i, i + 1)) for i in range(2)])
    torch.testing.assert_close(features(name, model), alone, **CLOSE)


def test_layers_with_windows_are_left_as_they_are():
    model = tower("qwen2_5_vl")
    assert secvit.patch(model, 4).secvit_patch.layers == ["blocks.1.attn"]
    secvit.unpatch(model)
    with pytest.raises(ValueError, match=r"layer 0 .* attends inside windows.* choose layers from \[1\]"):
        secvit.patch(model, 4, layers=[0, 1])
    assert secvit.patch(model, 4, layers=[-1]).secvit_patch.layers == ["blocks.1.attn"]


def test_a_tower_that_keeps_images_apart_by_a_mask_is_refused_before_it_runs():
    with pytest.raises(ValueError, match="under a mask that keeps images apart"):
        secvit.patch(tower("pixtral"), 4)


def test_the_tower_of_a_whole_model_is_named():
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SMALL, "num_key_value_heads": 2, "vocab_size": 64},
        vision_config=PACKED | {"fullatt_block_indexes": [1]},
    )
    with pytest.raises(ValueError, match=r"secvit.patch\(model.visual, ...\)"):
        secvit.patch(transformers.Qwen2_5_VLModel(config), 4)
