"""Semantic FPN and UperNet: the paper's sizes, other people's numbers, any backbone, any size."""

import pytest
import torch
from torch.nn import functional as F

from secvit.measure import count_macs
from secvit.segmentation import semantic_fpn, upernet
from secvit.segmentation.models import SemanticFPN, UperNet
from tests.conftest import slow_if

MAKE = {"fpn": semantic_fpn, "upernet": upernet}
# Table 6: parameters in millions and 1e9 of modules alone at 512 x 2048, as counted here and as printed
ROWS = [
    ("fpn", "secvit_tiny", 17.7, 137.9, 18, 136),
    ("fpn", "secvit_small", 29.5, 180.0, 30, 180),
    ("fpn", "secvit_base", 60.1, 291.3, 60, 291),
    ("fpn", "secvit_large", 103.3, 475.3, 103, 475),
    ("upernet", "secvit_tiny", 43.7, 894.7, 44, 894),
    ("upernet", "secvit_small", 55.6, 936.8, 56, 936),
    ("upernet", "secvit_base", 86.3, 1048.6, 86, 1048),
    ("upernet", "secvit_large", 130.7, 1234.1, 131, 1256),
]
NOT_REPRODUCED = {("fpn", "secvit_tiny"), ("upernet", "secvit_large")}  # printed work that no reading gives
NANO = {"stem_stride": 4, "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 4, 4)}
SMALL = {"fpn": {"pyramid": 16, "channels": 8}, "upernet": {"channels": 8, "auxiliary_channels": 8}}


def small(kind, backbone="secvit_nano", **backbone_args):
    return MAKE[kind](backbone, 5, backbone_args=backbone_args or NANO, **SMALL[kind])


@pytest.mark.parametrize(
    ("kind", "backbone", "parameters", "work", "printed_m", "printed_g"),
    slow_if(lambda row: row[1].split("_")[1] in ("base", "large"), ROWS),
)
def test_sizes_are_those_of_table_6(kind, backbone, parameters, work, printed_m, printed_g):
    with torch.device("meta"):
        model = MAKE[kind](backbone, 150, backbone_args={"strict_img_size": False} if "swin" in backbone else None)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(parameters, abs=0.06) and round(count) == printed_m
    macs = count_macs(model, (3, 512, 2048))
    # norms are counted in other ways by other tools: less than 0.3 %
    assert macs.without_attention / 1e9 == pytest.approx(work, rel=3e-3)
    reproduced = abs(macs.without_attention / 1e9 - printed_g) < 1  # the paper rounds in either direction
    assert reproduced != ((kind, backbone) in NOT_REPRODUCED)
    assert macs.total > 1.1 * macs.without_attention


@pytest.mark.parametrize(
    ("kind", "backbone", "parameters"),
    [("fpn", "resnet50", 28.50), ("upernet", "swin_tiny_patch4_window7_224", 59.94)],
)
def test_sizes_with_known_backbones_are_those_that_mmsegmentation_gives(kind, backbone, parameters):
    with torch.device("meta"):
        model = MAKE[kind](backbone, 150, backbone_args={"strict_img_size": False} if "swin" in backbone else None)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)


def maps(sizes=((16, 24), (8, 12), (4, 6), (2, 3)), channels=(16, 32, 48, 64)):
    return [torch.randn(2, c, *size) for c, size in zip(channels, sizes)]


def with_statistics(head):
    """Batch norms of a network that has learned, so that one in the wrong place shows."""
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean), torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return head.eval()


def test_upernet_is_that_of_transformers():
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    ours = with_statistics(UperNet([16, 32, 48, 64], 5, 8, 0.1))
    config = UperNetConfig(hidden_size=8, num_labels=5, pool_scales=[1, 2, 3, 6], use_auxiliary_head=False)
    theirs = UperNetHead(config, [16, 32, 48, 64]).eval()
    pairs = [
        (ours.classify[1], theirs.classifier), (ours.bottleneck, theirs.bottleneck), (ours.fuse, theirs.fpn_bottleneck),
        *((a[1], b.layers[1]) for a, b in zip(ours.pools, theirs.psp_modules.blocks)),
        *zip(ours.laterals, theirs.lateral_convs), *zip(ours.smooth, theirs.fpn_convs),
    ]  # fmt: skip
    for mine, other in pairs:
        other.load_state_dict(dict(zip(other.state_dict(), mine.state_dict().values(), strict=True)))
    features = maps()
    torch.testing.assert_close(ours(features), theirs(features))


def test_semantic_fpn_doubles_its_levels_as_the_reference_does():
    """Kirillov et al. 2019, figure 3: convolution, norm, ReLU and a doubling until the finest level, then a sum."""
    head = with_statistics(SemanticFPN([16, 32, 48, 64], 5, 16, 8, 0.1))
    features = maps()
    levels = head.fpn({str(i): x for i, x in enumerate(features)}).values()
    total = 0
    for level, (x, layers) in enumerate(zip(levels, head.scale_heads)):
        assert len(layers) == max(1, level)
        for layer in layers:
            x = layer(x)
            x = F.interpolate(x, scale_factor=2, mode="bilinear") if level else x
        total = total + x
    torch.testing.assert_close(head(features), head.classify(total))


@pytest.mark.parametrize("kind", MAKE)
def test_every_weight_learns(kind):
    model = small(kind)
    sum(x.square().mean() for x in model.training_logits(torch.randn(2, 3, 75, 100))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(64, 96), (75, 100), (33, 47)])
@pytest.mark.parametrize("kind", MAKE)
def test_logits_are_as_large_as_the_image(kind, size):
    with torch.no_grad():
        assert small(kind).eval()(torch.randn(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("backbone", ["resnet18", "sec_swin_tiny", "convnext_atto"])
def test_other_backbones_of_timm_serve(kind, backbone):
    args = (
        {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 8)} if "swin" in backbone else {"in_chans": 3}
    )
    with torch.no_grad():
        assert small(kind, backbone, **args).eval()(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("secvit_tinny", "no model 'secvit_tinny'"),
        ("vit_small_patch32_224", "maps of strides .*; the head needs 4 that end with"),
    ],
)
def test_what_cannot_be_is_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        semantic_fpn(backbone)


# -- other people's heads on our backbones -----------------------------------------------------


def test_segmentation_models_pytorch_takes_our_backbones():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.UPerNet("tu-secvit_tiny", encoder_weights=None, classes=5, decoder_channels=16).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96)


def test_transformers_upernet_takes_our_backbones():
    from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

    body = TimmBackboneConfig(backbone="secvit_tiny", out_indices=[0, 1, 2, 3], use_pretrained_backbone=False)
    config = UperNetConfig(backbone_config=body, hidden_size=16, num_labels=5, auxiliary_in_channels=256)
    model = UperNetForSemanticSegmentation(config).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).logits.shape == (1, 5, 64, 96)
