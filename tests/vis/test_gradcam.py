"""Grad-CAM is what others compute, on every stage and kind of network, with frozen weights too."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secvit.models.saved import load_model
from secvit.vis.gradcam import CamMap, grad_cam, heat_overlay
from secvit.vis.record import layers
from tests.vis.make import patched, photo, sec_deit, sec_swin, secvit_nano


def stretched(x):
    """From 0 to 1."""
    return (x - x.min()) / (x.max() - x.min())


def with_evidence(maps):
    """Most of the maps are not all zero, so that comparing them compares something."""
    assert sum(bool(found.heat.any()) for found in maps) > len(maps) / 2
    return maps


def test_each_stage_equals_captum():
    attr = pytest.importorskip("captum.attr", reason="pip install captum: the oracle of Grad-CAM")
    model, image = secvit_nano(), torch.randn(3, 65, 96)
    for target in (1, 4):
        for found in with_evidence(grad_cam(model, image, target)):
            cam = attr.LayerGradCam(model, model.stages[found.stage])
            expected = cam.attribute(image[None], target, relu_attributions=True)[0, 0].detach()
            # of the greatest heat; float32 sums in another order
            torch.testing.assert_close(found.heat, expected, atol=1e-3 * float(expected.max()), rtol=0)


@pytest.mark.parametrize("make", [sec_swin, sec_deit, patched])
def test_each_block_equals_captum_whatever_the_layout(make):
    attr = pytest.importorskip("captum.attr", reason="pip install captum: the oracle of Grad-CAM")
    model, image = make(), torch.randn(3, 64, 64)
    found = with_evidence(grad_cam(model, image, 2, block="all"))
    for layer, ours in zip(layers(model), found, strict=True):
        probe = nn.Identity()  # captum wants (B, C, H, W) to go through a module
        if getattr(model, "output_fmt", "") == "NHWC":
            hook = layer.around.register_forward_hook(
                lambda _, args, out, probe=probe: probe(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            )
        else:
            hook = layer.around.register_forward_pre_hook(
                lambda _, args, probe=probe: (
                    torch.cat([args[0][:, :1], probe(args[0][:, 1:].mT.unflatten(2, (4, 4))).flatten(2).mT], dim=1),
                    *args[1:],
                )
            )
        expected = attr.LayerGradCam(model, probe).attribute(image[None], 2, relu_attributions=True)[0, 0].detach()
        hook.remove()
        # of the greatest heat; float32 sums in another order
        torch.testing.assert_close(ours.heat, expected, atol=1e-3 * float(expected.max()), rtol=0)


def test_a_picture_equals_pytorch_grad_cam():
    oracle = pytest.importorskip("pytorch_grad_cam", reason="pip install grad-cam: another oracle of Grad-CAM")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, image = load_model("secvit_nano.cifar10"), torch.randn(3, 64, 64)
    for found in with_evidence(grad_cam(model, image, 2)):
        with oracle.GradCAM(model, [model.stages[found.stage]]) as cam:
            expected = cam(image[None], [targets.ClassifierOutputTarget(2)])[0]
        if not found.heat.any():
            assert not expected.any()
            continue
        ours = F.interpolate(stretched(found.heat)[None, None], size=(64, 64), mode="bilinear")[0, 0]
        assert np.abs(stretched(ours).numpy() - expected).max() < 1e-3  # of 1; two ways of bilinear resizing


@pytest.mark.parametrize("make", [secvit_nano, sec_deit])
def test_frozen_weights_change_nothing_and_no_gradient_is_left(make):
    model, image = make(), torch.randn(3, 64, 64)
    before = grad_cam(model, image, 1)
    model.requires_grad_(False)
    with torch.inference_mode():
        after = grad_cam(model, image, 1)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.heat, other.heat)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_class_is_the_likeliest_unless_one_is_named():
    model, image = secvit_nano(), torch.randn(3, 32, 32)
    likeliest = int(model(image[None]).argmax())
    found = grad_cam(model, image, stages=[3])[0]
    assert found.target == likeliest and f"class {likeliest}" in str(found)
    assert grad_cam(model, image, 0, stages=[3])[0].share <= found.share


def test_the_last_block_of_a_vit_has_evidence_though_patches_behind_it_reach_no_class():
    assert any(grad_cam(sec_deit(), torch.randn(3, 64, 64), n, block=-1)[0].heat.any() for n in range(5))


def test_what_has_no_classes_is_refused():
    model = secvit_nano()
    with pytest.raises(ValueError, match="target=5; this model has classes 0 to 4"):
        grad_cam(model, torch.randn(3, 32, 32), 5)
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="needs a classifier"):
        grad_cam(model, torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match="no attention in clusters"):
        grad_cam(nn.Linear(2, 2), torch.randn(3, 32, 32))


def test_the_hottest_place_is_the_brightest_and_no_evidence_is_dark():
    heat = torch.zeros(4, 5)
    heat[1, 3] = 0.02
    picture = heat_overlay(photo(50, 40), CamMap(heat, 0, 0, 1, "cat", 0.5)).sum(-1)
    assert np.unravel_index(picture.argmax(), picture.shape)[0] // 10 == 1
    assert np.unravel_index(picture.argmax(), picture.shape)[1] // 10 == 3
    empty = CamMap(torch.zeros(4, 5), 0, 0, 1, "cat", 0.5)
    assert not empty.normalised.any() and "nothing speaks for it" in str(empty)
    assert heat_overlay(photo(50, 40), empty).max() <= 0.4  # the greyed photo, darkened
