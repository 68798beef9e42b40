"""Pieces of images: boxes, labels and masks stay what they were of it."""

import pytest
import torch
from torchvision import tv_tensors

from secvit.detection.augment import cut


def scene(height=300, width=400):
    """Two objects whose masks fill their boxes; red and green tell where they are."""
    image, masks = torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(2, height, width, dtype=torch.bool)
    boxes = torch.tensor([[20.0, 30, 120, 130], [250, 150, 390, 290]])
    for i, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        image[i, y1:y2, x1:x2] = 255
        masks[i, y1:y2, x1:x2] = True
    return tv_tensors.Image(image), {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([0, 1]),
        "masks": tv_tensors.Mask(masks),
    }


def test_what_a_piece_shows_is_what_its_target_says():
    kept = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = cut(*scene())
        assert target["masks"].shape[-2:] == image.shape[-2:] and len(target["boxes"]) == len(target["labels"])
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            assert torch.equal(mask, image[label] == 255)
            ys, xs = mask.nonzero().T
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        kept.add(tuple(target["labels"].tolist()))
    assert {(0, 1), (1,)} <= kept  # some pieces lose an object


def test_pieces_have_the_fields_sizes():
    """384 to 600 px of an image whose short side is 400, 500 or 600 px; here each px of 300 is 4/3, 5/3 or 2."""
    sides = []
    for seed in range(100):
        torch.manual_seed(seed)
        sides.append(tuple(cut(*scene())[0].shape[-2:]))
    heights, widths = zip(*sides, strict=True)
    assert min(heights) >= 384 / 2 and max(heights) == 300 and min(widths) >= 384 / 2 and max(widths) <= 400
    assert len(set(sides)) > 60


def test_a_piece_without_objects_is_a_piece():
    image, target = scene(900, 900)
    target = {name: value[:1] for name, value in target.items()}
    target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(900, 900))
    lengths = []
    for seed in range(40):
        torch.manual_seed(seed)
        lengths.append(len(cut(image, dict(target))[1]["boxes"]))
    assert set(lengths) == {0, 1}


@pytest.mark.parametrize("size", [(8, 500), (500, 8), (1, 1)])
def test_narrow_images_are_cut_too(size):
    image = tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size)
    piece, target = cut(image, {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.long)})
    assert min(piece.shape[-2:]) >= 1 and len(target["boxes"]) == 0
