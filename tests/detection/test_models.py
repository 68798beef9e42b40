"""The detectors: the paper's sizes, torchvision's numbers with one stage, any backbone."""

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align

from secvit.detection import cascade_mask_rcnn, mask_rcnn, retinanet
from secvit.detection.roi_heads import AlignedRoIAlign, plain_roi_align
from secvit.measure.detectors import detector_macs
from tests.conftest import slow_but, slow_if

MAKE = {"mask": mask_rcnn, "cascade": cascade_mask_rcnn, "retina": retinanet}
# tables 4 and 5 as the project counts them: parameters in millions, 1e9 of modules alone at 800 x 1280
ROWS = [
    ("mask", "secvit_tiny", 33.6, 221.0),
    ("mask", "secvit_small", 45.4, 262.1),
    ("mask", "secvit_base", 76.0, 370.8),
    ("mask", "secvit_large", 119.2, 550.5),
    ("cascade", "secvit_small", 83.3, 741.0),
    ("cascade", "secvit_base", 113.8, 849.7),
    ("retina", "secvit_tiny", 23.7, 202.4),
    ("retina", "secvit_small_release", 35.5, 240.6),
    ("retina", "secvit_base_release", 63.4, 349.3),
    ("retina", "secvit_large_release", 105.5, 527.1),
]
NANO = {"stem_stride": 4, "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 4, 4)}
SMALL = {"backbone_args": NANO, "min_size": 64, "max_size": 96}


@pytest.mark.parametrize(
    ("kind", "backbone", "parameters", "work"), slow_if(lambda row: row[1].split("_")[1] in ("base", "large"), ROWS)
)
def test_sizes_are_those_of_tables_4_and_5(kind, backbone, parameters, work):
    with torch.device("meta"):
        model = MAKE[kind](backbone, 80)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.06)
    macs = detector_macs(model)
    # norms are counted in other ways by other tools: less than 0.25 %
    assert macs.without_attention / 1e9 == pytest.approx(work, rel=2.5e-3)
    assert macs.total > 1.1 * macs.without_attention


def pyramid(batch=2, side=64):
    maps = {str(i): torch.randn(batch, 256, side // 2**i, side // 2**i) for i in range(4)}
    return {**maps, "pool": torch.randn(batch, 256, 4, 4)}


def proposals(batch=2):
    base = torch.tensor([[10.0, 10, 60, 60], [20, 30, 90, 99], [100, 100, 200, 220]])
    return [base.repeat(5, 1) + torch.randn(15, 4) for _ in range(batch)]


def test_one_stage_is_torchvisions_mask_rcnn():
    """Same weights, same samples: the same losses and the same detections."""
    ours = mask_rcnn("secvit_nano", 3, box_loss="smooth_l1", aligned=False, **SMALL).roi_heads
    theirs = RoIHeads(
        ours.box_roi_pool, ours.box_heads[0], ours.box_predictors[0], 0.5, 0.5, 512, 0.25, None, 0.0, 0.5, 100,
        ours.mask_pool, ours.mask_heads[0], ours.mask_predictors[0],
    )  # fmt: skip
    ours.score_thresh = 0.0
    features, boxes, shapes = pyramid(), proposals(), [(256, 256)] * 2
    truth = [
        {
            "boxes": torch.tensor([[12.0, 9, 58, 61], [100, 100, 200, 220]]),
            "labels": torch.tensor([0, 2]),
            "masks": (torch.rand(2, 256, 256) > 0.5).byte(),
        }
        for _ in range(2)
    ]
    from_one = [{**t, "labels": t["labels"] + 1} for t in truth]
    torch.manual_seed(1)
    found = ours.train()(features, boxes, shapes, truth)[1]
    torch.manual_seed(1)
    expected = theirs.train()(features, [b.clone() for b in boxes], shapes, from_one)[1]
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
    with torch.no_grad():
        found, expected = (h.eval()(features, boxes, shapes)[0] for h in (ours, theirs))
    for ours_, theirs_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_["labels"] + 1, theirs_["labels"])
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(ours_[name], theirs_[name])


STRIDES = {"0": 4, "1": 8, "2": 16, "3": 32}


@pytest.mark.parametrize("width", [33, 45, 65, 67, 90])
@pytest.mark.parametrize("aligned", [True, False])
def test_maps_of_narrow_images_are_read_by_their_true_strides(width, aligned):
    """Padded to 64 or 96 px, which the widest image alone would not tell."""
    padded = 32 * -(-width // 32)
    # each pixel of a map holds its own place in the image, x and y in px
    maps = {}
    for name, stride in STRIDES.items():
        x = (torch.arange(padded // stride) + 0.5) * stride
        y = (torch.arange(1216 // stride) + 0.5) * stride
        maps[name] = torch.stack([x.expand(len(y), -1), y.unsqueeze(1).expand(-1, len(x))])[None]
    pool = (AlignedRoIAlign if aligned else plain_roi_align)(STRIDES, 7)
    box = torch.tensor([[10.0, 100, 30, 140]])  # its middle is (20, 120)
    out = pool(maps, [box], [(1200, width)]).mean((2, 3))
    torch.testing.assert_close(out, torch.tensor([[20.0, 120.0]]) + (0 if aligned else 2), atol=0.1, rtol=0)


def test_aligned_pooling_takes_each_box_from_its_level():
    features, boxes = pyramid(batch=1), [torch.tensor([[8.0, 8, 40, 40], [0, 0, 255, 255]])]
    pool = AlignedRoIAlign(STRIDES, 7)
    out = pool(features, boxes, [(256, 256)])
    for row, (level, stride) in enumerate([("0", 4), ("2", 16)]):  # 32 px and 255 px: FPN's rule around 224 px
        box = torch.cat([torch.zeros(1, 1), boxes[0][row : row + 1]], dim=1)
        expected = roi_align(features[level], box, 7, 1 / stride, 0, aligned=True)
        torch.testing.assert_close(out[row : row + 1], expected)


TARGETS = [
    {"boxes": torch.tensor([[5.0, 5, 40, 50]]), "labels": torch.tensor([2]), "masks": torch.ones(1, 60, 90).byte()},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 80, 70).byte()},
]
IMAGES = [torch.rand(3, 60, 90), torch.rand(3, 80, 70)]
# each stage of a cascade takes a second for a hundred proposals
FEW = {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_test": 20}


@pytest.mark.parametrize(
    ("kind", "options"),
    slow_if(
        lambda row: row[0] == "cascade",
        [("retina", {}), *((kind, {"box_loss": loss}) for kind in MAKE if kind != "retina" for loss in ("l1", "giou"))],
    ),
)
def test_every_weight_learns_from_images_of_different_sizes(kind, options):
    model = MAKE[kind]("secvit_nano", 3, **SMALL, **options, **({} if kind == "retina" else FEW))
    sum(model(IMAGES, TARGETS).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        found = model.eval()(IMAGES)
    assert all(0 <= int(label) < 3 for out in found for label in out["labels"])
    if kind != "retina":
        assert [out["masks"].shape[-2:] for out in found] == [(60, 90), (80, 70)]


@pytest.mark.parametrize("backbone", slow_but(("convnext_atto",), ("resnet18", "sec_swin_tiny", "convnext_atto")))
def test_other_backbones_of_timm_serve(backbone):
    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 8)} if "swin" in backbone else {}
    model = mask_rcnn(backbone, 2, backbone_args=small, min_size=64, max_size=96).eval()
    with torch.no_grad():
        assert len(model(IMAGES)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "secvit_tinny"}, "no model 'secvit_tinny'"),
        ({"backbone": "vit_small_patch32_224"}, "strides .*; the head needs 4"),
        ({"box_loss": "l3", "backbone_args": NANO}, "box_loss='l3'; choose one of l1"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mask_rcnn(**{"backbone": "secvit_nano", "backbone_args": {}, **arguments})


def test_an_option_that_torchvision_would_ignore_is_refused():
    for make, option in ((mask_rcnn, "box_fg_iou_thresh"), (retinanet, "rpn_nms_thresh"), (retinanet, "mask_head")):
        with pytest.raises(ValueError, match=f"has no option {option}; choose from .*min_size"):
            make("secvit_nano", 3, backbone_args=NANO, **{option: 0.5})
