"""Labelled photos: overlays with a legend, indexed PNGs, and which classes are taken for which."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from secvit.draw.picture import FAINT, INK

OPACITY = 0.55

Palette = Sequence[Sequence[int]]


def numbered(labels: np.ndarray, values: Sequence[int], palette: Palette) -> Image.Image:
    """Classes (H, W) as the numbers that stand for them in masks: indexed with the palette, beyond 255 16-bit grey."""
    if max(values) > 255:
        return Image.fromarray(np.array(values, np.uint16)[labels])
    colours: list[Sequence[int]] = [(0, 0, 0)] * (max(values) + 1)
    for value, colour in zip(values, palette, strict=True):
        colours[value] = colour
    return indexed(np.array(values, np.uint8)[labels], colours)


def indexed(labels: np.ndarray, palette: Palette) -> Image.Image:
    """Classes (H, W) as a picture whose pixels are the class numbers and whose colours are the palette's."""
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(bytes(value for colour in palette for value in colour))
    return picture


def overlay(
    photo: Image.Image,
    labels: np.ndarray,
    palette: Palette,
    classes: Sequence[str] = (),
    opacity: float = OPACITY,
) -> Image.Image:
    """The photo under the colours of its classes (H, W); with names, above a legend of those that occur."""
    colours = indexed(np.minimum(labels, len(palette)), [*palette, (0, 0, 0)]).convert("RGB")  # black: no class
    blended = Image.blend(photo, colours, opacity)
    if not classes:
        return blended
    counts = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    shown = [i for i in counts.argsort()[::-1] if counts[i]]
    below = legend([classes[i] for i in shown], [palette[i] for i in shown], blended.width)
    canvas = Image.new("RGB", (blended.width, blended.height + below.height), "white")
    canvas.paste(blended, (0, 0))
    canvas.paste(below, (0, blended.height))
    return canvas


def legend(names: Sequence[str], colours: Palette, width: int) -> Image.Image:
    """Names beside their colours in as many lines as the width in px asks for."""
    size = max(10, min(28, width // 40))
    font, line = ImageFont.load_default(size), 2 * size
    placed, x, row = [], size, 0
    for name in names:
        need = int(font.getlength(name)) + 3 * size
        if x + need > width and x > size:
            x, row = size, row + 1
        placed.append((x, row * line + size // 2))
        x += need
    picture = Image.new("RGB", (width, (row + 1) * line), "white")
    draw = ImageDraw.Draw(picture)
    for name, colour, (x, y) in zip(names, colours, placed, strict=True):
        draw.rectangle((x, y, x + size, y + size), fill=tuple(colour), outline=FAINT)
        draw.text((x + 1.5 * size, y + size / 2), name, INK, font, anchor="lm")
    return picture


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()
