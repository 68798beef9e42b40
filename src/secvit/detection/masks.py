"""Masks as COCO writes them, polygons and run lengths: checked, measured and turned into pixels.

Run lengths count pixels column by column, those outside the object first.  In their compressed form each number takes
characters of five bits, and from the fourth on it is the difference to the number two places before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as rle

MOST = 1 << 22  # characters of run lengths that are decoded together
CHARACTERS = bytes(range(48, 112))
LONG = re.compile(rb"[P-o]{7}")  # eight characters, forty bits, in one number


class Measured(NamedTuple):
    """Of n masks: pixels in the object (n), boxes (n, 4) as corners in px, what is wrong with each ("" if nothing)."""

    areas: np.ndarray
    boxes: np.ndarray
    faults: list[str]


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons or run lengths as pixels.  -> (H, W) of 0 and 1"""
    counts = encode(segmentation, height, width)["counts"]
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    lengths, _ = _numbers(np.frombuffer(text, np.uint8), np.array([0, len(text)]))
    inside = (np.arange(len(lengths)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(inside, lengths).reshape(width, height).T)


def encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons or run lengths, compressed or not, as one compressed mask."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def measure(texts: Sequence[bytes], heights: np.ndarray, widths: np.ndarray) -> Measured:
    """Decode compressed run lengths, all at once, against the sizes of their images in px."""
    areas, boxes = np.zeros(len(texts)), np.zeros((len(texts), 4))
    faults = ["" if text else "is empty" for text in texts]
    start = 0
    while start < len(texts):
        stop, size = start, 0
        while stop < len(texts) and (stop == start or size + len(texts[stop]) <= MOST):
            size += len(texts[stop])
            stop += 1
        these = [i for i in range(start, stop) if not faults[i]]
        for i in these:
            faults[i] = _malformed(texts[i])
        _measure([i for i in these if not faults[i]], texts, heights, widths, areas, boxes, faults)
        start = stop
    return Measured(areas, boxes, faults)


def _malformed(text: bytes) -> str:
    """Why characters are no compressed run lengths, "" if they are."""
    if text.translate(None, CHARACTERS):
        return "has characters that are no run lengths"
    if (text[-1] - 48) & 32:
        return "ends in the middle of a number"
    if LONG.search(text):
        return "has a number beyond any image"
    return ""


def _measure(
    chosen: list[int], texts: Sequence[bytes], heights: np.ndarray, widths: np.ndarray,
    areas: np.ndarray, boxes: np.ndarray, faults: list[str],
) -> None:  # fmt: skip
    if not chosen:
        return
    ends = np.cumsum([0, *(len(texts[i]) for i in chosen)])
    lengths, first = _numbers(np.frombuffer(b"".join(texts[i] for i in chosen), np.uint8), ends)
    count = np.diff(first)
    owner = np.repeat(np.arange(len(chosen)), count)
    h, w = heights[chosen].astype(np.int64), widths[chosen].astype(np.int64)
    total = np.add.reduceat(lengths, first[:-1])
    wild = (lengths < 0) | (lengths > np.repeat(h * w, count))
    wild = np.logical_or.reduceat(wild, first[:-1])
    for k in np.flatnonzero(wild | (total != h * w)):
        faults[chosen[k]] = (
            "has a run length below 0 or beyond the image"
            if wild[k]
            else f"has run lengths of {total[k]:,} px for an image of {h[k] * w[k]:,} px"
        )
    stop = np.cumsum(lengths)
    begin = stop - lengths
    base = np.repeat(begin[first[:-1]], count)
    odd = ((np.arange(len(lengths)) - np.repeat(first[:-1], count)) % 2 == 1) & (lengths > 0)
    who, begin, stop = owner[odd], (begin - base)[odd], (stop - base)[odd] - 1
    areas[chosen] = np.bincount(who, lengths[odd], len(chosen))
    if not len(who):
        return
    some, place = np.unique(who, return_index=True)
    rows = h[who]
    left, right = begin // rows, stop // rows
    top = np.where(left == right, begin % rows, 0)
    bottom = np.where(left == right, stop % rows, rows - 1)
    corners = [np.minimum.reduceat(x, place) for x in (left, top)]
    corners += [np.maximum.reduceat(x, place) + 1 for x in (right, bottom)]
    boxes[np.array(chosen)[some]] = np.stack(corners, 1)


def _numbers(text: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The run lengths in compressed strings, one after the other, and where those of each begin, (n + 1)."""
    code = text.astype(np.int64) - 48
    last = np.flatnonzero(code & 32 == 0)
    start = np.concatenate([[0], last[:-1] + 1])
    size = last - start + 1
    shift = 5 * (np.arange(len(code)) - np.repeat(start, size))
    values = np.add.reduceat((code & 31) << shift, start)
    values -= np.where(code[last] & 16, np.int64(1) << 5 * size, 0)
    first = np.searchsorted(last, ends)
    # from the fourth number on the difference to the one two places before: sums over every second number
    count = np.diff(first)
    row = np.concatenate([[0], np.cumsum((count + 1) // 2)])
    place = np.arange(len(values)) - np.repeat(first[:-1] - 2 * row[:-1], count)
    pairs = np.zeros((row[-1], 2), np.int64)
    pairs.reshape(-1)[place] = values
    heads = pairs[row[:-1], 0].copy()
    pairs[row[:-1], 0] = 0
    total = np.cumsum(pairs, 0)
    before = np.where(row[:-1, None] > 0, total[row[:-1] - 1], 0)
    total -= np.repeat(before, np.diff(row), 0)
    total[row[:-1], 0] = heads
    return total.reshape(-1)[place], first
