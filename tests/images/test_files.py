"""Which files below a folder are images, and what is said of the others."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from secvit.images.files import EXTENSIONS, FORMATS, LeftOut, image_files, is_stray


def test_the_endings_are_those_that_pillow_has_for_the_formats():
    Image.init()
    theirs = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert theirs <= set(EXTENSIONS)
    later = {".avif", ".avifs"} if "AVIF" not in Image.OPEN else set()  # Pillow 11.3 brings AVIF
    assert set(EXTENSIONS) - theirs <= {".mpo", *later}  # MPO is opened as JPEG


@pytest.mark.parametrize("name", ["._a.png", ".DS_Store", "__MACOSX", "Thumbs.db", "a.png~", "@eaDir"])
def test_what_file_managers_leave_is_stray(name):
    assert is_stray(name)


def test_linked_folders_are_followed_and_everything_left_out_is_counted(tmp_path):
    for name in ("d/a.png", "d/b.JFIF", "d/._a.png", "d/note.txt", "d/__MACOSX/c.png", "more/e.avif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.symlink(tmp_path / "more", tmp_path / "d" / "linked")
    os.symlink(tmp_path / "d", tmp_path / "d" / "itself")
    os.symlink(tmp_path / "nowhere", tmp_path / "d" / "gone.png")
    os.symlink("circle.png", tmp_path / "d" / "circle.png")  # to itself: os.stat raises ELOOP, not ENOENT
    left_out = LeftOut()
    files = image_files(tmp_path / "d", left_out)
    assert [f.relative_to(tmp_path / "d").as_posix() for f in files] == ["a.png", "b.JFIF", "linked/e.avif"]
    assert left_out.line("train", len(files)) == (
        "train: used 3 of 9 files; left out: 2 hidden or stray, 1 of another ending (.txt), "
        "1 linked folders that contain themselves, 2 broken links"
    ) or sorted(left_out.reasons.items()) == [
        ("broken links", 2), ("hidden or stray", 2), ("linked folders that contain themselves", 1),
        ("of another ending (.txt)", 1),
    ]  # fmt: skip
    assert LeftOut().line("train", 3) == ""
