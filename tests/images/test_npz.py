import numpy as np
import pytest
import torch

from secvit.images import load_split
from tests.images.make import pack


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
    ({"name": np.array(list("abcdac"))}, r"entries 0 and 4 are both called 'a' \(2 such names\)"),
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
    del a["name"]
    np.savez(tmp_path / "c.npz", **a)
    with pytest.raises(ValueError, match=r"c.npz\[6\].* 9x8 px, but the first is 8x8"):
        load_split(tmp_path / "c.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz"):
        load_split(tmp_path / "x.npz")


def test_broken_image_in_an_npz_is_skipped(tmp_path):
    labels = [0, 1] * 60
    path = pack(tmp_path / "x.npz", labels, ("a", "b"))
    content = dict(np.load(path))
    content["jpeg"][content["offset"][3] :][:40] = 0
    np.savez(path, **content)
    train, val = load_split(path, "train"), load_split(path, "val")
    assert len(train) + len(val) == 119 and "x.npz[3] (3.png)" in train.skipped[0]
