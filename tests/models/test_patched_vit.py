"""vit_sec_patched: a patched ViT that timm and transformers load by its config.json."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import secvit

NETWORK = "deit_tiny_patch16_224"
PATCH = {"cluster_size": 4, "partition": "sec"}
SMALL = {"img_size": 64, "depth": 2}


def small(**changes):
    torch.manual_seed(0)
    model = timm.create_model("vit_sec_patched", network=NETWORK, patch=PATCH, num_classes=10, **{**SMALL, **changes})
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    """A folder as timm's hub has them: config.json and weights, of a patched ViT."""
    model = small()
    config = {
        "architecture": "vit_sec_patched",
        "num_classes": 10,
        "model_args": {"network": NETWORK, "patch": PATCH, **SMALL},
        "pretrained_cfg": {
            "input_size": [3, 64, 64], "num_classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3,
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        return tmp_path, images, model(images)


def test_it_is_the_network_patched():
    model = small()
    torch.manual_seed(0)
    same = secvit.patch(timm.create_model(NETWORK, num_classes=10, **SMALL).eval(), **PATCH)
    same.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), same(images))
        assert not torch.allclose(secvit.unpatch(same)(images), model(images), atol=1e-6)
    assert type(model) is type(same) and model.secvit_patch.layers == ["blocks.0.attn", "blocks.1.attn"]


def test_timm_loads_a_folder_patched(folder):
    path, images, logits = folder
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(images), logits)
    assert model.secvit_patch.options == {"cluster_size": 4}
    data = timm.data.resolve_data_config(model=model)
    assert [list(data[key]) for key in ("input_size", "mean", "std")] == [[3, 64, 64], [0.5] * 3, [0.25] * 3]
    assert timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=3)(images).shape == (2, 3)


def test_transformers_loads_and_saves_a_folder_patched(folder):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'secvit[vlm]'"
    )
    path, images, logits = folder
    for place in (path, path / "again"):
        model = transformers.AutoModelForImageClassification.from_pretrained(place)
        with torch.no_grad():
            assert torch.equal(model(images).logits, logits)
        model.save_pretrained(path / "again")


def test_what_timm_saves_of_it_is_loaded_patched(tmp_path):
    model, images = small(), torch.randn(1, 3, 64, 64)
    arguments = {"network": NETWORK, "patch": PATCH, **SMALL}
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_args=arguments)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "vit_sec_patched"
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_it_gives_feature_maps():
    model = timm.create_model(
        "vit_sec_patched", network=NETWORK, patch=PATCH, features_only=True, **SMALL, out_indices=(0, 1)
    )
    assert {tuple(x.shape) for x in model(torch.randn(1, 3, 64, 64))} == {(1, 192, 4, 4)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, r"needs a network: timm\.create_model\("),
        (
            {"network": "deit_tini_patch16_224", "patch": PATCH},
            "no model 'deit_tini_patch16_224'.*near it: deit_tiny_p",
        ),
        ({"network": "resnet18", "patch": PATCH}, "no attention that can be clustered in ResNet"),
        ({"network": NETWORK, "patch": {"size": 4}}, "unexpected keyword argument 'size'; the arguments are those of"),
        ({"network": NETWORK, "patch": {"cluster_size": 4, "partition": "wndow"}}, "near it: window"),
    ],
)
def test_what_is_missing_or_unknown_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("vit_sec_patched", **arguments)
