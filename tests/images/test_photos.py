"""Which photos are meant, and what the pictures of them are called."""

import pytest

from secvit.images.photos import listed, picture_names


def touch(*paths):
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()


def test_folders_stand_for_their_images_and_each_counts_once(tmp_path):
    touch(tmp_path / "a/2.PNG", tmp_path / "a/1.jpg", tmp_path / "a/notes.txt", tmp_path / "a/deeper/3.png")
    found = listed([tmp_path / "a/2.PNG", tmp_path / "a", tmp_path / "missing.jpg"])
    assert found == [tmp_path / "a/2.PNG", tmp_path / "a/1.jpg", tmp_path / "missing.jpg"]
    with pytest.raises(ValueError, match="no photo"):
        listed([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: folder without images"):
        listed([tmp_path / "empty"])
    with pytest.raises(ValueError, match="choose another output"):
        listed([tmp_path / "a"], tmp_path / "a")


def test_no_name_is_given_twice_nor_is_a_photos(tmp_path):
    paths = [tmp_path / name for name in ("x.png", "X.jpg", "x_seen.jpg")]
    names = picture_names(paths, tmp_path, ".png", "_seen.jpg")
    assert [tuple(p.name for p in names[path]) for path in paths] == [
        ("x_2.png", "x_seen_2.jpg"), ("X_3.png", "X_seen_3.jpg"), ("x_seen.png", "x_seen_seen.jpg")
    ]  # fmt: skip


def test_files_that_exist_are_left_alone_unless_they_may_be_replaced(tmp_path):
    touch(tmp_path / "x_seen.jpg")
    where = tmp_path / "photos/x.png"
    assert picture_names([where], tmp_path, "_seen.jpg")[where] == (tmp_path / "x_seen.jpg",)
    assert picture_names([where], tmp_path, "_seen.jpg", replace=False)[where] == (tmp_path / "x_seen_2.jpg",)
