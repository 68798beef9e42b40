"""Curves from the logs of a run."""

import pytest
from PIL import Image

from secvit.draw import curves
from secvit.draw.curves import draw_curves

LOG = "step,epoch,loss,top1,lr\n10,0.5,2.1,0.2,0.1\n20,1,nan,0.5,0.1\n30,1.5,0.8,,0.1\n"
EVAL = "step,epoch,top1,majority_floor\n20,1,0.4,0.1\n30,1.5,0.9,0.1\n"


def test_a_log_with_gaps_gives_a_picture(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    alone = draw_curves(tmp_path / "log.csv", tmp_path / "alone.png")
    (tmp_path / "eval.csv").write_text(EVAL)
    both = draw_curves(tmp_path / "log.csv", tmp_path / "both.png")
    with Image.open(alone) as a, Image.open(both) as b:
        assert a.size == b.size
        assert a.tobytes() != b.tobytes()


def test_what_is_no_number_is_left_out(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    columns = curves._columns(tmp_path / "log.csv")
    assert curves._points(columns, "loss") == [(10, 2.1), (30, 0.8)]
    assert curves._points(columns, "top1") == [(10, 0.2), (20, 0.5)]
    assert curves._points(columns, "top5") == []


@pytest.mark.parametrize("text", [None, "", "step,loss\n", "a,b\n1,2\n"])
def test_a_log_without_numbers_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=r"log\.csv"):
        draw_curves(tmp_path / "log.csv", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_an_output_without_a_folder_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    with pytest.raises(ValueError, match="no such folder"):
        draw_curves(tmp_path / "log.csv", tmp_path / "nowhere" / "out.png")


def test_miou_is_drawn_where_there_is_no_accuracy(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n10,2.0\n20,1.0\n")
    (tmp_path / "eval.csv").write_text("step,miou\n10,0.2\n20,0.5\n")
    wide = draw_curves(tmp_path / "log.csv", tmp_path / "wide.png")
    (tmp_path / "eval.csv").unlink()
    narrow = draw_curves(tmp_path / "log.csv", tmp_path / "narrow.png")
    with Image.open(wide) as a, Image.open(narrow) as b:
        assert a.width > b.width
