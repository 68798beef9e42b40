"""Run lengths and polygons are what the field's own reader makes of them, and flat arrays give back what went in."""

import subprocess
import sys

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle

from secvit.detection.data import load
from secvit.detection.masks import decode, measure
from secvit.detection.objects import Masks
from secvit.detection.shapes import read_masks
from tests.detection.make import coco_folder


def drawn(seed):
    """A mask of any kind: noise, a rectangle, nothing, everything."""
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 90, 2)
    mask = np.zeros((height, width), np.uint8, order="F")
    if seed % 4 == 0:
        mask[random.random(mask.shape) < random.random()] = 1
    elif seed % 4 == 1:
        mask[height // 3 : height // 2 + 1, width // 4 :] = 1
    elif seed % 4 == 2:
        mask[:] = seed % 8 == 2
    else:
        mask[:, width // 2] = 1
    return mask


def test_run_lengths_are_decoded_and_measured_like_the_fields_own_reader():
    masks = [drawn(seed) for seed in range(200)]
    texts = [rle.encode(mask)["counts"] for mask in masks]
    heights, widths = np.array([mask.shape for mask in masks]).T
    found = measure(texts, heights, widths)
    assert not any(found.faults)
    for i, mask in enumerate(masks):
        assert np.array_equal(decode({"size": list(mask.shape), "counts": texts[i]}, *mask.shape), mask)
        assert found.areas[i] == mask.sum()
        rows, columns = np.where(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert found.boxes[i].tolist() == box


def test_many_run_lengths_are_decoded_in_parts(monkeypatch):
    masks = [drawn(seed) for seed in range(40)]
    heights, widths = np.array([mask.shape for mask in masks]).T
    texts = [rle.encode(mask)["counts"] for mask in masks]
    at_once = measure(texts, heights, widths)
    monkeypatch.setattr("secvit.detection.masks.MOST", 50)
    in_parts = measure(texts, heights, widths)
    assert np.array_equal(at_once.areas, in_parts.areas) and np.array_equal(at_once.boxes, in_parts.boxes)


def test_a_polygon_that_is_not_drawn_has_pixels():
    """Slivers, dots and stars of any size: whatever passes without being drawn covers some pixel."""
    random = np.random.default_rng(0)
    polygons = []
    for _ in range(3000):
        centre, size = random.uniform(5, 60, 2), random.uniform(0.1, 30, 2) * random.choice([0.1, 1], 2)
        polygons.append((centre + size * random.normal(size=(random.integers(3, 9), 2))).clip(0, 64).ravel().tolist())
    polygons += [polygon * 2 for polygon in polygons[:100]]  # a path gone twice encloses nothing
    sizes = np.full(len(polygons), 64)
    found = read_masks([[p] for p in polygons], sizes, sizes, np.zeros(len(polygons), bool))
    areas = np.array([rle.area(rle.frPyObjects([p], 64, 64))[0] for p in polygons])
    passed = np.isnan(found.areas)
    assert passed.sum() > 300 and (areas[passed] > 0).all()
    assert np.array_equal(found.areas[~passed], areas[~passed]) and (found.areas == 0).sum() > 100


def test_an_outline_too_long_to_draw_is_refused_in_bounded_time():
    zigzag = [[0, 0, 60000, 60000] * 20000]
    found = read_masks([zigzag], np.array([60000]), np.array([60000]), np.array([True]))
    assert "an outline of more than 2,000,000 px" in found.faults[0]


@pytest.mark.parametrize("step", [0.01, 0.001])
def test_flat_arrays_give_back_the_very_numbers_of_the_file(step):
    random = np.random.default_rng(0)
    points = [round(float(x), 2 if step == 0.01 else 3) for x in random.uniform(0, 640, 60)]
    masks = Masks.of(np.array(points), [6, 8, 20, 6, 20], [2, 0, 1, 2, 0], [b"", b"abc", b"", b"", b""])
    assert (masks.scale == 100) == (step == 0.01)
    assert masks.segmentation(0, 9, 9) == [points[:6], points[6:14]]
    assert masks.segmentation(1, 9, 9) == {"size": [9, 9], "counts": b"abc"} and masks.segmentation(4, 9, 9) == []
    turned = masks.take(np.array([3, 1, 0]))
    assert turned.segmentation(0, 9, 9) == [points[34:40], points[40:]]
    assert turned.segmentation(1, 9, 9)["counts"] == b"abc" and turned.segmentation(2, 9, 9)[1] == points[6:14]


def test_a_split_cannot_be_written_to_and_forked_workers_share_it(tmp_path):
    coco = load(coco_folder(tmp_path), "train")
    with pytest.raises(ValueError, match="read-only"):
        coco.table.boxes[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        coco.table.masks.points[0] = 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_forked_worker_that_reads_every_target_copies_no_annotations(tmp_path):
    """Private memory of a fork that reads all boxes of 200,000 objects stays below a tenth of the arrays'."""
    code = """
import os, sys
from pathlib import Path
import numpy as np
from secvit.detection.objects import Objects, frozen
n = 200_000
table = Objects(frozen(np.ones((n, 4))), frozen(np.zeros(n, int)), frozen(np.zeros(n, bool)), frozen(np.ones(n)),
                frozen(np.arange(0, n + 1, 10)), None)
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))
if os.fork() == 0:
    before = private()
    for i in range(n // 10):
        table.boxes[table.of(i)].sum(), table.labels[table.of(i)].sum()
    os._exit(private() - before > table.nbytes / 10)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
