"""The task: nothing of a hidden pixel reaches the encoder, and the loss is SimMIM's."""

import pytest
import timm
import torch
from torch import nn

from secvit.simmim import MaskedImageTask
from secvit.simmim.task import masked_l1, stretch, visible_mean

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 3, 4], "head_hidden_size": 32}


def task(**arguments):
    return MaskedImageTask(timm.create_model("secvit_nano", num_classes=0, **{**SMALL, **arguments}))


def batch(size=64, rows=4, columns=4, count=2):
    mask = torch.rand(count, rows, columns) < 0.6
    mask[:, 0, 0], mask[:, -1, -1] = True, False
    return {"image": torch.randn(count, 3, size, size), "mask": mask}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stem_stride", [2, 4])
def test_prediction_does_not_depend_on_hidden_pixels(stem_stride, training):
    """Exactly: no gradient, and any other value there, infinities included, changes not one bit."""
    simmim, data = task(stem_stride=stem_stride).train(training), batch()
    image = data["image"].requires_grad_()
    hidden = stretch(data["mask"], 64, 64).expand_as(image)
    features, predicted = simmim.encode(image, data["mask"]), simmim.reconstruct(image, data["mask"])
    for out in (features, predicted):
        (slope,) = torch.autograd.grad(out.square().sum(), image, retain_graph=True)
        assert (slope[hidden] == 0).all() and (slope[~hidden] != 0).float().mean() > 0.9
    with torch.no_grad():
        changed = image.masked_fill(hidden, float("inf"))
        assert torch.equal(simmim.encode(changed, data["mask"]), features)


def test_every_place_under_the_mask_begins_as_the_mask_token():
    simmim, data = task(stem_stride=4).eval(), batch()
    seen = []
    simmim.model.stages.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        simmim.mask_token.fill_(7.0)
        simmim.encode(data["image"], data["mask"])
        stem = simmim.model.forward_stem(data["image"].masked_fill(stretch(data["mask"], 64, 64), 0))
    hidden = stretch(data["mask"], 16, 16).expand_as(stem)
    assert (seen[0][hidden] == 7).all() and torch.equal(seen[0][~hidden], stem[~hidden])


def test_loss_and_baseline_are_those_of_a_loop_over_pixels():
    simmim, data = task().double().eval(), batch(size=32, rows=2, columns=2)
    image, mask = data["image"].double(), data["mask"]
    with torch.no_grad():
        out = simmim({"image": image, "mask": mask})
        predicted = simmim.reconstruct(image, mask).double()
    total, baseline, count = 0.0, 0.0, 0
    for b in range(2):
        visible = [(y, x) for y in range(32) for x in range(32) if not mask[b, y // 16, x // 16]]
        mean = sum(image[b, :, y, x] for y, x in visible) / len(visible)
        for y in range(32):
            for x in range(32):
                if mask[b, y // 16, x // 16]:
                    total += float((predicted[b, :, y, x] - image[b, :, y, x]).abs().sum())
                    baseline += float((mean - image[b, :, y, x]).abs().sum())
                    count += 1
    # float64 sums of some thousand terms in another order
    assert float(out["loss"]) == pytest.approx(total / count / 3, rel=1e-12)
    assert float(out["mean_baseline"]) == pytest.approx(baseline / count / 3, rel=1e-12)


def test_error_on_visible_pixels_costs_nothing():
    image, hidden = torch.randn(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    hidden[:, :, :4] = True
    wrong = torch.where(hidden, image, image + 100)
    assert masked_l1(wrong, image, hidden) == 0
    torch.testing.assert_close(masked_l1(image + 1, image, hidden), torch.tensor(1.0))


def test_mean_visible_colour_sees_visible_pixels_alone():
    image, hidden = torch.full((1, 3, 4, 4), 2.0), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hidden[:, :, 0] = True
    image[:, :, 0] = float("inf")
    assert (visible_mean(image, hidden) == 2).all()


def test_every_trained_parameter_gets_a_gradient_and_the_head_none():
    """DistributedDataParallel stops at a trained parameter without a gradient."""
    simmim = task()
    simmim(batch())["loss"].backward()
    trained = {name: p.grad is not None for name, p in simmim.named_parameters() if p.requires_grad}
    frozen = [name for name, p in simmim.named_parameters() if not p.requires_grad]
    assert all(trained.values()) and {"mask_token", "decoder.0.weight"} <= set(trained)
    assert frozen and all(name.startswith("model.head.") for name in frozen)


def test_pretrained_weights_load_into_a_classifier():
    simmim, classifier = task(), timm.create_model("secvit_nano", num_classes=5, **SMALL)
    report = classifier.load_state_dict(simmim.model.state_dict(), strict=False)
    assert report.missing_keys == ["head.fc.weight", "head.fc.bias"] and not report.unexpected_keys
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(classifier.eval().forward_features(x), simmim.model.eval().forward_features(x))


def test_decoder_gives_images_of_the_input_size():
    data = batch()
    for stride in (2, 4):
        simmim = task(stem_stride=stride)
        assert simmim.stride == 8 * stride
        assert simmim.reconstruct(data["image"], data["mask"]).shape == data["image"].shape


def test_another_backbone_with_the_seam_can_be_pretrained():
    class Plain(nn.Module):
        feature_info = ({"num_chs": 6, "reduction": 2}, {"num_chs": 8, "reduction": 4})

        def __init__(self):
            super().__init__()
            self.stem, self.rest = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 8, 2, 2)

        def no_weight_decay(self):
            return {"stem.weight"}

        def forward_stem(self, x):
            return self.stem(x)

        def forward_stages(self, x):
            return self.rest(x)

    simmim = MaskedImageTask(Plain())
    assert simmim(batch(size=16))["loss"].isfinite() and simmim.no_weight_decay() == {"model.stem.weight"}


def test_model_without_the_seam_is_refused():
    with pytest.raises(ValueError, match="ResNet has no forward_stem, forward_stages; pre-training needs a model with"):
        MaskedImageTask(timm.create_model("test_resnet"))


@pytest.mark.parametrize(
    ("size", "rows", "message"),
    [
        (64, 3, r"3x3 patches does not divide 64x64 pixels.* choose a mask patch"),
        (64, 64, r"64x64 patches does not divide 16x16 .* multiple of the stem's stride"),
        (48, 4, r"48x48 px; choose multiples of the model's stride, 32"),
    ],
)
def test_images_and_masks_that_do_not_fit_are_refused(size, rows, message):
    with pytest.raises(ValueError, match=message):
        task(stem_stride=4)(batch(size=size, rows=rows, columns=rows))
