"""The picture of what `secvit bench` measured."""

import numpy as np
import pytest
from PIL import Image

from secvit.measure.bench_picture import draw_speeds
from secvit.measure.bench_results import BenchResult, LengthTimes, ModelRow, ModelSpeeds
from secvit.measure.rounds import Ratio


def result(names, lengths):
    rows = [ModelRow(name, Ratio(1 + i / 4, 0.9, 2.0), None, 1, None) for i, name in enumerate(names)]
    base = names[0] if names else ""
    table = ModelSpeeds("training", "float32", True, 1, 32, base, True, {}, {}, rows, {})
    times = [
        LengthTimes(n, True, {}, {"sec": [n * 1e-6], "sec (again)": [n * 1e-6], "global": [n * n * 1e-9]})
        for n in lengths
    ]
    made = {"hardware": "a machine", "versions": {"torch": "2"}, "date": "2026-01-01"}
    return BenchResult(made, 0.0, "processor time", models=[table] if names else [], attention=times)


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
