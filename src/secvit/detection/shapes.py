"""What the boxes and masks of a file are held against: their image, each other, and what training makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secvit.detection.masks import encode, measure
from secvit.detection.objects import Masks, ends
from secvit.fields import Wrong, integer, shown

EDGE = 2.0  # px that a polygon or a box may lie outside its image: annotators round
SMALLEST = 0.01  # px: a thinner box may have no area in float32 once it is flipped and scaled
INSIDE = 0.5  # least share of a box that lies in its image
OVERLAP = 0.5  # IoU of a box with its mask's, below which the two are said to differ
FEW = 0.2  # share of boxes that end outside their image, below which they are no corners
LONGEST = 2_000_000  # px of an outline that is drawn
LIMIT = 1e12  # px; what lies beyond is no coordinate
REAL = (int, float)


@dataclass
class Shapes:
    """Masks of m objects: what is wrong with each, which have any, their areas (NaN: not known) and boxes in px."""

    masks: Masks
    faults: dict[int, str]
    present: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def read_masks(segmentations: Sequence[Any], heights: np.ndarray, widths: np.ndarray, wanted: np.ndarray) -> Shapes:
    """Segmentations of m objects in images of some heights and widths (m).  wanted (m): those whose area is.

    Run lengths are decoded, polygons held against their image; one that might cover no pixel is drawn.
    """
    faults: dict[int, str] = {}
    polygons: list[list[Any]] = []
    counts, texts = [0] * len(segmentations), [b""] * len(segmentations)
    for i, segmentation in enumerate(segmentations):
        if not segmentation and (segmentation is None or segmentation == []):
            continue
        try:
            if type(segmentation) is list:
                parts = _polygons(segmentation)
                polygons += parts
                counts[i] = len(parts)
            else:
                texts[i] = _run_lengths(segmentation, int(heights[i]), int(widths[i]))
        except Wrong as error:
            faults[i] = str(error)
    points = _points(polygons, counts, faults)
    owner = np.repeat(np.arange(len(counts)), counts)
    sizes = [len(polygon) for polygon in polygons]
    areas, boxes = np.full(len(counts), np.nan), np.zeros((len(counts), 4))
    drawn = np.zeros(len(counts), bool)
    if sizes:
        sure = _check_polygons(points, np.array(sizes), owner, heights, widths, faults, boxes)
        drawn[owner] = True
        drawn &= ~sure | wanted
    masks = Masks.of(points, sizes, counts, texts)
    for i in np.flatnonzero(drawn).tolist():
        if i not in faults:
            size = (int(heights[i]), int(widths[i]))
            texts[i] = encode(masks.segmentation(i, *size), *size)["counts"]
    decoded = [i for i, text in enumerate(texts) if text]
    measured = measure([texts[i] for i in decoded], heights[decoded], widths[decoded])
    areas[decoded], boxes[decoded] = measured.areas, measured.boxes
    faults |= {i: f"has a mask that {fault}" for i, fault in zip(decoded, measured.faults) if fault}
    present = np.array([count > 0 or bool(text) for count, text in zip(counts, texts)], bool).reshape(-1)
    return Shapes(masks, faults, present, areas, boxes)


def _polygons(segmentation: list[Any]) -> list[list[Any]]:
    """COCO's list of polygons; a flat list of numbers is one."""
    parts = [segmentation] if type(segmentation[0]) in REAL else segmentation
    for part in parts:
        if type(part) is not list:
            raise Wrong(f"has a polygon {shown(part)}, expected a list of numbers x, y, x, y, ...")
        if len(part) < 6 or len(part) % 2:
            raise Wrong(f"has a polygon of {len(part) / 2:g} points, expected x, y, x, y, ... of at least 3")
    return parts


def _run_lengths(segmentation: Any, height: int, width: int) -> bytes:
    """The compressed counts of a COCO mask."""
    if not isinstance(segmentation, dict):
        raise Wrong(f"has a mask {shown(segmentation)}, expected polygons or run lengths")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    try:
        agrees = isinstance(size, list) and [integer(value) for value in size] == [height, width]
    except Wrong:
        agrees = False
    if not agrees:
        raise Wrong(f"has a mask of size {shown(size)} on an image of {[height, width]}")
    if isinstance(counts, str) and counts:
        if not counts.isascii():
            raise Wrong("has a mask that has characters that are no run lengths")
        return counts.encode("ascii")
    if not isinstance(counts, list) or not counts:
        raise Wrong(f"has a mask of counts {shown(counts)}, expected run lengths")
    try:
        lengths = counts if set(map(type, counts)) == {int} else [integer(value) for value in counts]
    except Wrong as error:
        raise Wrong(f"has a mask of counts {shown(counts)}, each expected {error}") from None
    if min(lengths) < 0 or sum(lengths) != height * width:
        total = f"of {sum(lengths):,} px" if min(lengths) >= 0 else "below 0"
        raise Wrong(f"has a mask that has run lengths {total} for an image of {height * width:,} px")
    return encode({"size": [height, width], "counts": lengths}, height, width)["counts"]


def _points(polygons: list[list[Any]], counts: list[int], faults: dict[int, str]) -> np.ndarray:
    """All coordinates as one array; polygons with others than finite numbers leave their lists, and become faults."""
    flat = list(itertools.chain.from_iterable(polygons))
    try:
        if set(map(type, flat)) <= set(REAL):
            points = np.array(flat, np.float64)
            if (np.abs(points) < LIMIT).all():
                return points
    except OverflowError:
        pass
    at, kept = 0, []
    for i, count in enumerate(counts):
        parts = polygons[at : at + count]
        at += count
        wrong = [value for part in parts for value in part if type(value) not in REAL or not -LIMIT < value < LIMIT]
        if wrong:
            faults[i], counts[i] = f"has a polygon with {shown(wrong[0])}, expected a number of px", 0
        else:
            kept += parts
    polygons[:] = kept
    return np.array(list(itertools.chain.from_iterable(kept)), np.float64)


def _check_polygons(
    points: np.ndarray, sizes: np.ndarray, owner: np.ndarray, heights: np.ndarray, widths: np.ndarray,
    faults: dict[int, str], boxes: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Add the faults and boxes of polygons, and tell which objects surely have a pixel, (m).

    A region with more area than its outline is long has a point farther from the outline than any pixel's centre
    is from its corners.  A path gone twice encloses nothing: inside is what it goes around an odd number of times.
    """
    x, y = points[::2], points[1::2]
    start = ends(sizes // 2)
    each = np.repeat(np.arange(len(sizes)), sizes // 2)
    wide, high = widths[owner][each], heights[owner][each]
    with np.errstate(all="ignore"):
        outside = (x < -EDGE) | (x > wide + EDGE) | (y < -EDGE) | (y > high + EDGE)
        following = np.arange(1, len(x) + 1)
        following[start[1:] - 1] = start[:-1]
        dx, dy = x[following] - x, y[following] - y
        outline = np.add.reduceat(np.hypot(dx, dy), start[:-1])
        area = np.abs(np.add.reduceat(x * dy - y * dx, start[:-1])) / 2
    half = (sizes // 4)[each]
    point = np.arange(len(x))
    again = np.where(point - start[each] < half, point + half, point)
    twice = np.logical_and.reduceat((x == x[again]) & (y == y[again]), start[:-1]) & (sizes % 4 == 0)
    for part in np.unique(each[outside]):
        i = owner[part]
        faults.setdefault(int(i), f"has a mask outside its {widths[i]}x{heights[i]} px")
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    for i in owner[first][np.add.reduceat(outline, first) > LONGEST]:
        faults.setdefault(int(i), f"has a mask with an outline of more than {LONGEST:,} px")
    clipped = np.clip(x, 0, wide), np.clip(y, 0, high)
    corners = [np.minimum.reduceat(value, start[:-1][first]) for value in clipped]
    corners += [np.maximum.reduceat(value, start[:-1][first]) for value in clipped]
    boxes[owner[first]] = np.stack(corners, 1)
    return np.bincount(owner, (area > outline) & ~twice, len(heights)) > 0


@dataclass
class Geometry:
    """Of m boxes: faults, those of no area (m) and those that end outside their image (m); what is wrong with all."""

    faults: dict[int, str]
    empty: np.ndarray
    beyond: np.ndarray
    of_all: str


def check_boxes(boxes: np.ndarray, heights: np.ndarray, widths: np.ndarray, areas: np.ndarray) -> Geometry:
    """Boxes against their images of some heights and widths (m), and the areas that the file says (NaN: none)."""
    x, y, w, h = boxes.T
    corners = boxes.astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    limit = np.stack([widths, heights, widths, heights], 1).astype(np.float32)
    clipped = np.clip(corners, 0, limit)
    sides = clipped[:, 2:] - clipped[:, :2]
    empty = (w >= 0) & (h >= 0) & ((w < SMALLEST) | (h < SMALLEST))
    negative = (w < 0) | (h < 0)
    outside = ~empty & ~negative & ((x >= widths) | (y >= heights) | (x + w <= 0) | (y + h <= 0))
    some = ~(empty | negative | outside)
    share = np.ones(len(boxes))
    share[some] = sides[some].astype(np.float64).prod(1) / (w * h)[some]
    faults: dict[int, str] = {}
    for i in np.flatnonzero(negative | outside | (share < INSIDE)):
        box, size = boxes[i].tolist(), f"{widths[i]}x{heights[i]} px"
        faults[int(i)] = (
            f"has a box {box} of a negative size, expected x, y, width, height"
            if negative[i]
            else f"has a box {box} outside its {size}"
            if outside[i]
            else f"has a box {box} of which {share[i]:.0%} lies in its {size}; expected x, y, width, height"
        )
    beyond = some & ((corners[:, 2:] > limit[:, 2:] + EDGE) | (corners[:, :2] < -EDGE)).any(1)
    return Geometry(
        faults, empty | (some & (sides < SMALLEST).any(1)), beyond, _other_kind(boxes, limit, beyond, areas)
    )


def _other_kind(boxes: np.ndarray, limit: np.ndarray, beyond: np.ndarray, areas: np.ndarray) -> str:
    """Why all boxes of a file look like shares of the image, or like corners; "" if they do not."""
    x, y, w, h = boxes.T
    sized = (w > 0) & (h > 0)
    if not sized.any():
        return ""
    if (x + w <= 1.0001).all() and (y + h <= 1.0001).all() and (w < 1).any() and limit.min() > 2:
        return (
            f"all {len(boxes)} boxes lie within the first pixel, as shares of the image would; write x, y, width "
            "and height in pixels"
        )
    corners = (w > x) & (h > y) & (boxes[:, 2:] <= limit[:, 2:] + EDGE).all(1)
    if corners[sized].all() and beyond.sum() >= FEW * sized.sum():
        return (
            f"{beyond.sum()} of {len(boxes)} boxes end outside their image, and all are x1, y1, x2, y2 of a box in it; "
            "write x, y, width and height"
        )
    between = np.isclose(areas, (w - x) * (h - y), 1e-3, 1)  # areas may be rounded to whole px
    if corners[sized].all() and between[sized].all() and not np.isclose(areas, w * h, 1e-3, 1)[sized].all():
        return (
            f"the areas of all {len(boxes)} annotations are those of boxes x1, y1, x2, y2, not x, y, width, height; "
            "write x, y, width and height"
        )
    return ""


def check_masks(boxes: np.ndarray, shapes: Shapes) -> tuple[dict[int, str], np.ndarray]:
    """Boxes (m, 4) as x, y, w, h against those of their masks: faults of masks elsewhere, and which differ (m)."""
    x, y, w, h = boxes.T
    left, top, right, bottom = shapes.boxes.T
    some = shapes.present & (right > left) & (bottom > top) & (w > 0) & (h > 0)
    wide = np.minimum(x + w, right) - np.maximum(x, left)
    high = np.minimum(y + h, bottom) - np.maximum(y, top)
    both = wide.clip(0) * high.clip(0)
    with np.errstate(all="ignore"):
        iou = both / (w * h + (right - left) * (bottom - top) - both)
    faults = {
        int(i): f"has a box {boxes[i].tolist()}, but its mask lies elsewhere, at {_as_box(shapes.boxes[i])}"
        for i in np.flatnonzero(some & ((wide < -EDGE) | (high < -EDGE)))
    }
    # a box and its mask may be a pixel apart on each side, much for a small one
    apart = np.abs(np.stack([x - left, y - top, x + w - right, y + h - bottom])).max(0)
    return faults, some & (iou < OVERLAP) & (apart > EDGE)


def _as_box(corners: np.ndarray) -> list[float]:
    left, top, right, bottom = (round(float(value), 2) for value in corners)
    return [left, top, right - left, bottom - top]
