"""The picture of what `secvit bench` measured."""

import numpy as np
import pytest
from PIL import Image

from secvit.measure.bench_picture import draw_speeds


def result(names, lengths):
    ratios = {name: {"median": 1 + i / 4, "low": 0.9, "high": 2.0} for i, name in enumerate(names)}
    table = {
        "mode": "training", "dtype": "float32", "compiled": True, "base": names[0] if names else "",
        "rows": [{"name": name, "vs_base": ratio} for name, ratio in ratios.items()],
    }  # fmt: skip
    times = [
        {"length": n, "seconds": {"sec": [n * 1e-6], "sec (again)": [n * 1e-6], "global": [n * n * 1e-9]}}
        for n in lengths
    ]
    return {
        "models": [table] if names else [], "operation": [], "attention": times,
        "hardware": "a machine", "versions": {"torch": "2"}, "date": "2026-01-01",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "lengths"), [(["resnet18", "resnet18 (again)", "secvit_tiny"], [196, 784]), (["a"], [196]), ([], [1, 9])]
)
def test_what_there_is_is_drawn(tmp_path, names, lengths):
    image = Image.open(draw_speeds(result(names, lengths), tmp_path / "speeds.png")).convert("RGB")
    rows = bool(names) + (len(lengths) > 1)
    assert image.size[1] > 500 * rows
    colours = {tuple(colour) for colour in np.asarray(image).reshape(-1, 3)[::7]}
    assert (200, 85, 61) in colours or names == ["a"]  # ours, a bar or a line


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_speeds(result([], [196]), tmp_path / "speeds.png")
    assert not list(tmp_path.iterdir())
