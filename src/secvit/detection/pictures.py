"""What a detector finds in photos, drawn over them: masks, boxes, names and scores."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from secvit.draw.picture import font_of
from secvit.images import to_rgb

SMALLEST = 640  # px of the long side: smaller images are enlarged, so that names can be read
OPACITY = 0.4
NAMED = 0.2  # share of the picture that names may cover: in a crowd of small objects the surest have names
GOLDEN = 0.6180339887  # of a turn between neighbouring classes' hues: near classes never look alike
Box = tuple[float, float, float, float]


def draw_detections(
    image: Image.Image, detections: Mapping[str, Tensor], classes: Sequence[str] = (), opacity: float = OPACITY
) -> Image.Image:
    """A photo with masks, boxes, names and scores over it; a small one is enlarged a whole number of times.

    detections: boxes (n, 4) as corners in px, labels (n) from 0 on and, if there are any, scores (n) and masks
        (n, H, W) or (n, 1, H, W): what `secvit.detection.predict` or a torchvision detector returns, or a ground truth.
    classes: names of the labels; numbers where there are none.
    A class has the same colour in every picture.
    """
    factor = max(1, round(SMALLEST / max(image.size)))
    size = (image.width * factor, image.height * factor)
    picture = to_rgb(image).resize(size, Image.Resampling.BICUBIC)
    scale = (max(size) / 640) ** 0.8  # large photos are looked at shrunk, but not wholly
    line = max(2, round(2 * scale))
    boxes = detections["boxes"].double() * factor
    labels = detections["labels"].tolist()
    scores = detections["scores"].tolist() if "scores" in detections else [None] * len(labels)
    # large ones first: what lies on them stays visible
    order = sorted(range(len(labels)), key=lambda i: -float((boxes[i, 2:] - boxes[i, :2]).prod()))
    if "masks" in detections:
        masks = detections["masks"].reshape(len(labels), image.height, image.width)
        for i in order:
            _lay_mask(picture, (masks[i] > 0.5).cpu().numpy(), class_colour(labels[i]), factor, line, opacity)
    pen = ImageDraw.Draw(picture)
    for i in order:
        _outline(pen, boxes[i].tolist(), class_colour(labels[i]), line)
    taken: list[Box] = []
    font = font_of(max(11, round(14 * scale)))
    surest = sorted(range(len(labels)), key=lambda i: -(scores[i] or 0.0))
    for i in surest:
        if sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in taken) > NAMED * size[0] * size[1]:
            break
        name = str(classes[labels[i]] if classes else labels[i])
        words = name if scores[i] is None else f"{name} {scores[i]:.2f}"
        _tag(pen, words, boxes[i].tolist(), class_colour(labels[i]), font, size, taken)
    return picture


def class_colour(label: int) -> tuple[int, int, int]:
    """A colour that depends on the class alone, in 0..255."""
    hue = (0.58 + label * GOLDEN) % 1
    lightness = (0.6, 0.45, 0.75, 0.36)[label % 4]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def _lay_mask(
    picture: Image.Image, mask: np.ndarray, colour: tuple[int, int, int], factor: int, line: int, opacity: float
) -> None:
    """Tint a mask's pixels and draw its contour, within its own bounds."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = Image.fromarray(np.pad(mask[top:bottom, left:right], 1).astype(np.uint8) * 255)
    inside = inside.resize((inside.width * factor, inside.height * factor), Image.Resampling.BILINEAR)
    inside = inside.point(lambda value: 255 if value > 127 else 0)
    core = inside.filter(ImageFilter.BoxBlur(line // 2)).point(lambda value: 255 * (value == 255))
    inside = inside.point(lambda value: round(0.9 * value))
    inside.paste(round(255 * opacity), mask=core)
    picture.paste(colour, (int(left - 1) * factor, int(top - 1) * factor), inside)


def _outline(pen: ImageDraw.ImageDraw, box: Sequence[float], colour: tuple[int, int, int], line: int) -> None:
    """A box with a thin dark rim, which keeps it apart from an image of its own colour."""
    left, top, right, bottom = (round(x) for x in box)
    right, bottom = max(right, left + line), max(bottom, top + line)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(20, 20, 20), width=line + 2)
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def _tag(
    pen: ImageDraw.ImageDraw, words: str, box: Sequence[float], colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont, size: tuple[int, int], taken: list[Box],
) -> None:  # fmt: skip
    """Name and score at the first free place along a box's edges, if there is one."""
    left, top, right, bottom = box
    pad = font.size / 4
    width, height = pen.textlength(words, font=font) + 2 * pad, 1.25 * font.size
    tags = []
    for y, x in itertools.product(
        (top - height, top, bottom, bottom - height), (left, right - width, (left + right - width) / 2)
    ):
        if 0 <= y <= size[1] - height:
            x = max(0, min(x, size[0] - width))
            tags.append((x, y, x + width, y + height))
    place = next((tag for tag in tags if not any(_overlap(tag, other) for other in taken)), None)
    if place is None:
        return
    taken.append(place)
    pen.rectangle(place, fill=colour)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    ink = (15, 15, 15) if light else (255, 255, 255)
    pen.text((place[0] + pad, place[1] + height / 2), words, fill=ink, font=font, anchor="lm")


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
