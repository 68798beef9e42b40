import io
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.classification import load_split
from secvit.classification.augment import Augment
from secvit.classification.data import EvalView, TrainView

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def picture(seed, size=(20, 16)):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise)


def folder(root, classes=("cat", "dog"), count=4):
    for c in classes:
        (root / c).mkdir(parents=True)
        for i in range(count):
            picture(hash((c, i)) % 1000).save(root / c / f"{i}.png")
    return root


def pack(path, labels=(0, 1, 2, 0, 1, 2), classes=("a", "b", "c"), size=(8, 8), **changes):
    raw, offset = b"", [0]
    for i in range(len(labels)):
        file = io.BytesIO()
        picture(i, size).save(file, "png")
        raw += file.getvalue()
        offset.append(len(raw))
    content = {
        "jpeg": np.frombuffer(raw, np.uint8).copy(),
        "offset": np.array(offset),
        "label": np.array(labels),
        "name": np.array([f"{i}.png" for i in range(len(labels))]),
        "classes": np.array(classes),
    }
    content |= changes
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return path


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


def test_npz_decodes_every_image_once(tmp_path):
    images = load_split(pack(tmp_path / "x.npz", labels=[0, 1, 0, 1], classes=("a", "b")), "train")
    assert images.pixels.dtype == torch.uint8 and images.pixels.shape == (2, 3, 8, 8)


BAD_NPZ = [
    ({"label": np.array([0, 1, 2, 0, 7, 2])}, r"entry 4 has label 7, outside 0..2"),
    ({"label": np.array([0, 1, 2, 0, -1, 2])}, r"entry 4 has label -1"),
    ({"label": np.array([0, 1, 1, 0, 1, 0])}, r"no image of class 'c'"),
    ({"offset": np.array([0, 5])}, "6 labels and 2 offsets"),
    ({"offset": np.arange(7)}, "offsets do not rise"),
    ({"label": None}, "lacks label"),
    ({"classes": np.array(["a", None, "c"], object)}, "not an npz"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_NPZ)
def test_inconsistent_npz_is_refused_with_its_entry(tmp_path, changes, message):
    path = pack(tmp_path / "x.npz", **changes)
    with pytest.raises(ValueError, match=rf"x.npz.*{message}"):
        load_split(path)


def test_npz_of_mixed_sizes_is_refused(tmp_path):
    one, other = pack(tmp_path / "a.npz"), pack(tmp_path / "b.npz", size=(9, 8))
    a, b = (dict(np.load(p)) for p in (one, other))
    a["jpeg"] = np.concatenate([a["jpeg"], b["jpeg"]])
    a["offset"] = np.concatenate([a["offset"], a["offset"][-1] + b["offset"][1:]])
    a["label"] = np.concatenate([a["label"]] * 2)
    a["name"] = np.concatenate([a["name"]] * 2)
    np.savez(tmp_path / "c.npz", **a)
    with pytest.raises(ValueError, match=r"c.npz\[6\].* 9x8 px, but the first is 8x8"):
        load_split(tmp_path / "c.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz"):
        load_split(tmp_path / "x.npz")


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
    with pytest.raises(ValueError, match=r"3 classes, but .*train has 2; only here: cow"):
        load_split(tmp_path, "val")


def test_broken_training_images_are_counted_named_once_and_replaced(tmp_path, caplog):
    root = folder(tmp_path, count=60)
    images = load_split(root)
    broken = images.names[5]
    with open(broken, "wb") as file:
        file.write(b"no image")
    view = TrainView(images, Augment(crop="resized"), 8, MEAN, STD)
    with caplog.at_level(logging.WARNING):
        for draw in range(3):
            batch = view.__getitems__([draw * len(images) + i for i in range(4, 8)])
    assert batch["image"].shape == (4, 3, 8, 8) and batch["image"].isfinite().all()
    assert batch["target"].tolist() == images.labels[[4, 6, 6, 7]].tolist()
    assert view.skipped == [broken] and caplog.text.count("skipped:") == 1


def test_too_many_broken_images_are_fatal(tmp_path):
    images = load_split(folder(tmp_path, count=20))
    for name in images.names[:3]:
        open(name, "wb").close()
    view = TrainView(images, Augment(crop="resized"), 8, MEAN, STD)
    with pytest.raises(ValueError, match="too many to go on"):
        view.__getitems__([0, 1, 2, 3])


def test_broken_image_in_an_npz_is_skipped(tmp_path):
    labels = [0, 1] * 60
    path = pack(tmp_path / "x.npz", labels, ("a", "b"))
    content = dict(np.load(path))
    content["jpeg"][content["offset"][3] :][:40] = 0
    np.savez(path, **content)
    train, val = load_split(path, "train"), load_split(path, "val")
    assert len(train) + len(val) == 119 and "x.npz[3] (3.png)" in train.skipped[0]


def test_broken_images_drop_out_of_an_evaluation(tmp_path):
    images = load_split(folder(tmp_path, count=20))
    open(images.names[1], "wb").close()
    view = EvalView(images, 8, MEAN, STD)
    assert view.__getitems__([0, 1, 2])["image"].shape == (2, 3, 8, 8)
    assert view.skipped == [images.names[1]]
