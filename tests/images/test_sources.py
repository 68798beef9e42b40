import sys

import pytest

from secvit.images import load_split, splits
from tests.images.make import folder, pack, samples, save, shard, table


def test_folders_with_splits(tmp_path):
    for split in ("train", "val", "test"):
        folder(tmp_path / split)
    images = load_split(tmp_path, "test")
    assert images.classes == ("cat", "dog") and len(images) == 8 and images.majority == 0.5


@pytest.mark.parametrize("kind", ["folder", "npz", "digits", "train_only"])
def test_held_out_part_is_fixed_disjoint_and_stratified(tmp_path, kind):
    data = {
        "folder": lambda: folder(tmp_path, count=20),
        "train_only": lambda: (folder(tmp_path / "train", count=20), tmp_path)[1],
        "npz": lambda: pack(tmp_path / "x.npz", labels=[0, 1] * 20, classes=("a", "b")),
        "digits": lambda: "digits",
    }[kind]()
    train, val, again = (load_split(data, s) for s in ("train", "val", "val"))
    assert val.names == again.names and not set(val.names) & set(train.names)
    parts = val.labels.bincount() / (val.labels.bincount() + train.labels.bincount())
    assert ((parts - 0.15).abs() < 0.03).all()


def test_digits_are_the_1797_real_ones():
    train, val = load_split("digits", "train"), load_split("digits", "val")
    assert len(train) + len(val) == 1797 and train.pixels.shape[1:] == (3, 32, 32)


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install \"secvit\[demo\]\""):
        load_split("digits")


def test_missing_places_and_splits_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such data"):
        load_split(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="0 class folders"):
        load_split(tmp_path)
    for split in ("train", "val"):
        folder(tmp_path / split)
    with pytest.raises(ValueError, match="no split 'test', only train, val"):
        load_split(tmp_path, "test")


def test_empty_class_folder_is_refused(tmp_path):
    (folder(tmp_path) / "emu").mkdir()
    with pytest.raises(ValueError, match="emu: class folder without images"):
        load_split(tmp_path)


def test_splits_with_other_classes_are_refused(tmp_path):
    folder(tmp_path / "train", ("cat", "dog"))
    folder(tmp_path / "val", ("cat", "cow", "dog"))
    with pytest.raises(
        ValueError, match=rf"{tmp_path}: val and train have other classes \(3 and 2\); only in val: 'cow'"
    ):
        load_split(tmp_path, "val")


@pytest.mark.parametrize("word", ["validation", "valid"])
def test_other_names_of_val_are_val_but_two_of_them_are_refused(tmp_path, word):
    folder(tmp_path / "train")
    folder(tmp_path / word, count=2)
    assert splits(tmp_path) == ("train", "val") and len(load_split(tmp_path, "val")) == 4
    folder(tmp_path / "val")
    with pytest.raises(ValueError, match=f"{word} is a second val; keep one"):
        load_split(tmp_path)


def test_table_beside_the_folder_of_its_images_is_taken(tmp_path):
    table(tmp_path / "train.csv", ["train/1.png,x", "train/2.png,y"])
    assert load_split(tmp_path).classes == ("x", "y")


def test_split_without_train_is_refused(tmp_path):
    folder(tmp_path / "val")
    with pytest.raises(ValueError, match="has val but no train; add it"):
        load_split(tmp_path)


def test_file_of_another_kind_is_refused_with_what_can_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"1.png: not a folder, nor an .npz"):
        load_split(save(tmp_path / "1.png"))
    with pytest.raises(ValueError, match=r"x.tar: .* given as wds/\S+x.tar"):
        load_split(shard(tmp_path / "x.tar", samples([0, 1])))
