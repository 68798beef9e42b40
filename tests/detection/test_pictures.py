"""Detections over a photo: in its place, in the colour of its class, readable at any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.detection import pictures as module
from secvit.detection.pictures import class_colour, draw_detections

GREY = (128, 128, 128)


def detections(boxes, labels, scores=None, size=None):
    found = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels).long()}
    if scores is not None:
        found["scores"] = torch.tensor(scores)
    if size is not None:
        found["masks"] = torch.zeros(len(labels), size[1], size[0], dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(found["masks"], found["boxes"].int().tolist(), strict=True):
            mask[top + 10 : bottom - 10, left + 10 : right - 10] = True
    return found


def drawn(image, found, *more):
    return np.asarray(draw_detections(image, found, *more)).astype(int)


def test_mask_box_and_name_lie_where_the_object_is():
    image = Image.new("RGB", (640, 480), GREY)
    pixels = drawn(image, detections([[200, 150, 400, 300]], [4], [0.9], image.size), ["a"] * 5)
    colour = np.array(class_colour(4))
    assert (pixels[150, 380] == colour).all() and (pixels[280, 200] == colour).all()  # the box
    assert (np.abs(pixels[225, 300] - (0.4 * colour + 0.6 * 128)) <= 2).all()  # the mask, rounded twice
    assert (np.abs(pixels[160, 300] - (0.9 * colour + 0.1 * 128)) <= 2).all()  # its contour
    assert (pixels[155, 300] == 128).all()  # between mask and box
    assert (pixels[136, 202] == colour).all()  # the name, above the box
    untouched = pixels.copy()
    untouched[130:303, 197:403] = 128
    assert (untouched == 128).all()


def test_a_photo_without_objects_stays_as_it_is():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    assert (drawn(image, detections([], [], [])) == np.asarray(image)).all()


def test_torchvisions_soft_masks_are_drawn_like_hard_ones():
    image = Image.new("RGB", (640, 480), GREY)
    found = detections([[200, 150, 400, 300]], [0], [0.9], image.size)
    soft = {**found, "masks": 0.2 + 0.6 * found["masks"][:, None].float()}
    assert (drawn(image, found) == drawn(image, soft)).all()


def test_classes_of_a_set_have_colours_of_their_own():
    colours = [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    near = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(colours) for b in colours[i + 1 : i + 4]]
    assert min(near) > 60  # of 765: neighbours in a list of classes are told apart


@pytest.mark.parametrize("size", [(1, 1), (28, 20), (5, 900), (900, 5), (2000, 1500)])
def test_any_size_of_photo_keeps_its_proportions(size):
    width, height = size
    found = detections([[0, 0, width, height], [width / 2, height / 2, width, height]], [0, 1], [0.9, 0.4])
    picture = draw_detections(Image.new("RGB", size, GREY), found, ["a long name of a class", "b"])
    factor = picture.width // width
    assert picture.size == (width * factor, height * factor) and (factor == 1 or max(picture.size) <= 960)


def test_small_photos_are_enlarged_with_their_boxes_and_masks():
    found = {**detections([[8, 4, 24, 16]], [2]), "masks": torch.zeros(1, 20, 32)}
    found["masks"][0, 4:16, 8:24] = 1
    pixels = drawn(Image.new("RGB", (32, 20), GREY), found)
    assert pixels.shape == (400, 640, 3)
    tinted = (pixels != 128).any(-1)
    rows, columns = np.flatnonzero(tinted[:, 480 - 6]), np.flatnonzero(tinted[320 - 6])
    # box and its rim end within 3 px of 20 times the box's corners
    assert abs(columns[0] - 160) <= 3 and abs(columns[-1] - 480) <= 3 and abs(rows[-1] - 320) <= 3


def test_the_name_of_a_second_object_in_the_same_place_covers_neither_the_first_nor_runs_off_the_photo():
    found = detections([[200, 0, 400, 300]] * 2, [0, 1], [0.8, 0.9])
    pixels = drawn(Image.new("RGB", (640, 480), GREY), found)
    # no room above: the surer one stands within the box at its left corner, the other at its right
    assert (pixels[2, 205] == class_colour(1)).all() and (pixels[2, 395] == class_colour(0)).all()


def test_names_leave_a_crowd_visible(monkeypatch):
    random = np.random.default_rng(0)
    corners = random.uniform(0, (600, 440), (300, 2))
    found = detections(np.concatenate([corners, corners + 30], 1).tolist(), [0] * 300, random.random(300).tolist())
    image = Image.new("RGB", (640, 480), GREY)
    named = drawn(image, found, ["person"])
    monkeypatch.setattr(module, "NAMED", -1.0)
    bare = drawn(image, found, ["person"])
    assert 0.05 < (named != bare).any(-1).mean() < 0.22  # a fifth, and one more name
