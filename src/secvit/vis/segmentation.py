"""Labelled pictures: overlays with a legend, indexed PNGs, and which classes are taken for which."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from secvit.images import read_image
from secvit.segmentation.prediction import label_picture, load_trained
from secvit.train.checkpoint import check_writable
from secvit.vis.photos import listed, picture_names
from secvit.vis.picture import FAINT, INK, new_figure, save
from secvit.weights import write_atomically

OPACITY = 0.55
FIGURES = 25  # classes up to which each cell of a confusion matrix has its number

Palette = Sequence[Sequence[int]]


def segment_photos(
    photos: Iterable[str | os.PathLike[str]],
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str] = "segments",
    device: str | None = None,
    **look: Any,
) -> Iterator[str]:
    """Write PHOTO.png and PHOTO_overlay.jpg for each photo; yield a line about it.

    PHOTO.png holds the numbers of the masks that the run learned from, with colours, and the names of the classes by
        number as JSON in its text `classes`.
    A photo that cannot be read is left out; when all others are done, a ValueError names those left out.
    photos: files of any format and size, or folders of them.  output: the folder for the results, numbered where two
        photos have one name or a result would have a photo's; older ones are replaced.
    weights: of `secvit train segmentation...`.  look: other than the run's own, {"window": 512}.
    """
    folder = Path(output)
    paths = listed(photos, folder)
    names = picture_names(paths, folder, ".png", "_overlay.jpg")
    check_writable(folder)
    trained = load_trained(weights, device, **look)
    left_out = []
    classes = PngInfo()
    classes.add_itxt("classes", json.dumps(dict(zip(map(str, trained.values), trained.classes)), ensure_ascii=False))
    for path in paths:
        try:
            picture = read_image(path)
            labels = label_picture(trained.model, picture, trained.look, progress=True)
        except ValueError as error:
            left_out.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        files = names[path]
        mask = numbered(labels, trained.values, trained.palette)
        write_atomically(files[0], encoded(mask, "PNG", optimize=True, pnginfo=classes))
        seen = overlay(picture, labels, trained.palette, trained.classes)
        write_atomically(files[1], encoded(seen, "JPEG", quality=92))
        shares = 100 * np.bincount(labels.ravel(), minlength=len(trained.classes)) / labels.size
        largest = [i for i in shares.argsort()[::-1][:4] if shares[i]]
        most = ", ".join(f"{trained.classes[i]} {shares[i]:.0f} %" for i in largest)
        yield f"{path}: {most}; wrote {files[0]} and {files[1].name}"
    if left_out:
        raise ValueError("\n".join(f"left out {reason}" for reason in left_out))


def numbered(labels: np.ndarray, values: Sequence[int], palette: Palette) -> Image.Image:
    """Classes (H, W) as the numbers that stand for them in masks: indexed with the palette, beyond 255 16-bit grey."""
    if max(values) > 255:
        return Image.fromarray(np.array(values, np.uint16)[labels])
    colours = [(0, 0, 0)] * (max(values) + 1)
    for value, colour in zip(values, palette, strict=True):
        colours[value] = tuple(colour)
    return indexed(np.array(values, np.uint8)[labels], colours)


def indexed(labels: np.ndarray, palette: Palette) -> Image.Image:
    """Classes (H, W) as a picture whose pixels are the class numbers and whose colours are the palette's."""
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(bytes(value for colour in palette for value in colour))
    return picture


def overlay(
    picture: Image.Image,
    labels: np.ndarray,
    palette: Palette,
    classes: Sequence[str] = (),
    opacity: float = OPACITY,
) -> Image.Image:
    """The picture under the colours of its classes (H, W); with names, above a legend of those that occur."""
    colours = indexed(np.minimum(labels, len(palette)), [*palette, (0, 0, 0)]).convert("RGB")  # black: no class
    seen = Image.blend(picture, colours, opacity)
    if not classes:
        return seen
    counts = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    shown = [i for i in counts.argsort()[::-1] if counts[i]]
    below = legend([classes[i] for i in shown], [palette[i] for i in shown], seen.width)
    whole = Image.new("RGB", (seen.width, seen.height + below.height), "white")
    whole.paste(seen, (0, 0))
    whole.paste(below, (0, seen.height))
    return whole


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


def draw_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], output: str | os.PathLike[str]) -> Path:
    """Of each class's pixels (a row), the per cent that were given each label; IoU beside the names.

    Classes that do not occur have an empty row.  Returns the picture's path.
    """
    counts = np.asarray(matrix, dtype=float)
    true, said, hits = counts.sum(1), counts.sum(0), counts.diagonal()
    shares = np.divide(100 * counts, true[:, None], out=np.zeros_like(counts), where=true[:, None] > 0)
    ious = [f"{100 * h / u:.0f}" if u else "–" for h, u in zip(hits, true + said - hits, strict=True)]
    names = [f"{name}  {iou}" for name, iou in zip(classes, ious, strict=True)]
    side = 2.6 + 0.36 * min(len(classes), 40)
    figure = new_figure(side + 1, side)
    axes = figure.add_axes((0.3, 0.04, 0.66, 0.74))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    small = max(4, min(9, 360 / len(classes) / 3))
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="left", fontsize=small, color=INK)
    axes.set_yticks(range(len(classes)), names, fontsize=small, color=INK)
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
    axes.set_title("labelled as", loc="left", fontsize=10, color=FAINT)
    axes.set_ylabel("is (IoU, %)", fontsize=10, color=FAINT)
    for i, j in np.argwhere(shares >= 0.5) if len(classes) <= FIGURES else ():
        colour = "white" if shares[i, j] > 55 else INK
        axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=small, color=colour)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return save(figure, output)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()
