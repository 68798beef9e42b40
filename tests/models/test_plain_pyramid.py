"""Plain ViTs in dense prediction: maps of four scales from the one they have."""

import pytest
import timm
import torch
from torch.nn import functional as F

from secvit.detection import mask_rcnn, retinanet
from secvit.models.features import FeatureMaps, start_from
from secvit.models.plain_pyramid import PlainPyramid
from secvit.segmentation import upernet
from secvit.weights import weight_bytes

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 4}
DEIT = {**SMALL, "dynamic_img_size": True}
BACKBONES = {
    "deit_small_patch16_224": DEIT,
    "sec_deit_small": SMALL,
    "vit_sec_patched": {**DEIT, "network": "deit_small_patch16_224", "patch": {"num_clusters": 4}},
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(64, 96), (101, 75)])
def test_maps_have_the_sizes_of_a_hierarchical_backbones(name, size):
    maps = FeatureMaps(name, BACKBONES[name]).eval()
    assert (maps.strides, maps.channels) == ([4, 8, 16, 32], [12, 24, 48, 48])
    wanted = [(c, *(-(-side // s) for side in size)) for c, s in zip(maps.channels, maps.strides, strict=True)]
    assert [tuple(x.shape[1:]) for x in maps(torch.zeros(1, 3, *size))] == wanted


def test_the_pyramid_is_vitdets_written_out():
    torch.manual_seed(0)
    pyramid, x = PlainPyramid(8).double(), torch.randn(2, 8, 5, 6, dtype=torch.float64)
    first, norm, _, second = pyramid.scales[0]

    def doubled(layer, x):
        """Each pixel becomes 2x2, each of them a linear map of its own."""
        out = torch.einsum("bchw,cdij->bdhiwj", x, layer.weight) + layer.bias[:, None, None, None, None]
        return out.flatten(4, 5).flatten(2, 3)

    between = F.gelu(F.layer_norm(doubled(first, x).permute(0, 2, 3, 1), (4,), eps=norm.eps)).permute(0, 3, 1, 2)
    expected = [
        doubled(second, between),
        doubled(pyramid.scales[1], x),
        x,
        F.max_pool2d(F.pad(x, (0, 0, 0, 1), value=-9e9), 2),
    ]
    for found, wanted in zip(pyramid(x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_clusters_of_a_patched_backbone_are_there():
    name = "vit_sec_patched"
    clustered, plain = (FeatureMaps(name, BACKBONES[name]), FeatureMaps("deit_small_patch16_224", DEIT))
    plain.load_state_dict(clustered.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, other = (maps.eval()(x)[2] for maps in (clustered, plain))
    assert not torch.allclose(found, other)


@pytest.mark.parametrize("make", [mask_rcnn, retinanet, upernet])
def test_every_weight_behind_a_plain_backbone_learns(make):
    """Else many processes would wait for the gradients of the others."""
    model = make("sec_deit_small", 3, backbone_args=SMALL).train()
    if make is upernet:
        torch.stack(
            [x.float().square().mean() for x in model.training_logits(torch.randn(2, 3, 64, 64))]
        ).sum().backward()
    else:
        target = {"boxes": torch.tensor([[5.0, 5, 40, 50]]), "labels": torch.tensor([2])}
        target |= {"masks": torch.ones(1, 64, 64).byte()} if make is mask_rcnn else {}
        model.transform.min_size, model.transform.max_size = (64,), 64
        sum(model([torch.rand(3, 64, 64)], [target]).values()).backward()
    still = [name for name, p in model.backbone.named_parameters() if p.grad is None]
    assert not still


@pytest.mark.parametrize("name", ["deit_small_patch16_224", "sec_deit_small"])
def test_a_classifiers_weights_fill_the_backbone(tmp_path, name):
    torch.manual_seed(0)
    classifier = timm.create_model(name, num_classes=7, **BACKBONES[name])
    (tmp_path / "w.safetensors").write_bytes(weight_bytes(classifier.state_dict()))
    model = upernet(name, 3, backbone_args=BACKBONES[name])
    new = start_from(model, tmp_path / "w.safetensors")
    assert all(not key.startswith("backbone.body") for key in new) and any("backbone.scales" in key for key in new)
    again = model.backbone.network().state_dict()
    assert all(
        torch.equal(again[key], value)
        for key, value in classifier.state_dict().items()
        if key in again and not key.startswith("norm")
    )


def test_a_backbone_of_one_image_size_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="'dynamic_img_size': True"):
        FeatureMaps("deit_small_patch16_224", SMALL)
    with pytest.raises(ValueError, match="'strict_img_size': False"):
        FeatureMaps("swin_tiny_patch4_window7_224")


def test_swin_takes_sides_that_its_patches_do_not_divide():
    args = {"strict_img_size": False, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
    maps = FeatureMaps("swin_tiny_patch4_window7_224", args).eval()(torch.zeros(1, 3, 101, 75))
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 26, 19), (48, 13, 10), (96, 7, 5), (192, 4, 3)]
