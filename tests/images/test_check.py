import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from secvit.images import Images, check_examples, check_overlap, describe, load_split
from tests.images.make import folder, make_image, pack, samples, save, shard, table


def few(classes, counts):
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
    return Images("train", classes, labels, None, tuple(map(str, range(len(labels)))))


def test_data_is_described_in_one_line(caplog):
    assert describe(few(("shirt", "hat"), [1715, 101])) == (
        "train: 1,816 images, 2 classes, 101 (hat) to 1,715 (shirt) each"
    )
    assert describe(few(("a", "b"), [5, 5])) == "train: 10 images, 2 classes, 5 each"
    assert not caplog.records


def test_rare_classes_are_warned_of(caplog):
    describe(few(("a", "b", "c", "d"), [1, 0, 50, 60]))
    assert "2 classes with fewer than two images: a, b" in caplog.text
    caplog.clear()
    describe(few(("a", "b"), [200, 2]))
    assert not caplog.records
    describe(few(("a", "b"), [201, 2]))
    assert "a has 201 images, b only 2" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "csv", "shards"])
def test_broken_first_images_stop_a_run_before_its_first_step(tmp_path, kind):
    if kind == "folder":
        data = folder(tmp_path / "train", count=60).parent
        folder(tmp_path / "val")
    elif kind == "csv":
        data = table(
            tmp_path / "train.csv", [f"train/{c}/{i}.png,{c}" for c in ("cat", "dog") for i in range(60)]
        ).parent
        table(tmp_path / "val.csv", ["1.png,cat"])
    else:
        members = [*samples([0, 1] * 60)]
        data = f"wds/{tmp_path}"
        shard(tmp_path / "train-0.tar", [(n, b"x" if n in ("000000.png", "000001.png") else c) for n, c in members])
        shard(tmp_path / "val-0.tar", members)
    for path in tmp_path.glob("train/*/0.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 broken images of 3\d, which is too many to go on: .*0\.png"):
        check_examples(load_split(data))


def test_one_broken_example_is_named_and_no_more(tmp_path, caplog):
    folder(tmp_path / "train", count=20), folder(tmp_path / "val")
    (tmp_path / "train" / "dog" / "0.png").write_bytes(b"")
    check_examples(load_split(tmp_path))
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and "dog/0.png: the file is empty" in caplog.text


def test_examples_are_spread_over_classes_and_images(tmp_path):
    opened = []
    images = few(tuple(map(str, range(100))), [3] * 100)
    images = replace(images, read=lambda name: opened.append(int(name)) or make_image(0))
    check_examples(images, 10)
    assert opened == list(range(0, 300, 30))
    opened.clear()
    check_examples(replace(few(("a", "b"), [100, 100]), read=images.read), 12)
    assert {0, 100} <= set(opened) and len(opened) in range(10, 13)  # one may be chosen twice


def test_images_in_memory_need_no_check(tmp_path, caplog):
    check_examples(load_split(pack(tmp_path / "x.npz")))
    assert not caplog.records


@pytest.mark.parametrize("kind", ["same_bytes", "same_path", "memory"])
def test_images_that_are_in_both_splits_are_warned_of(tmp_path, kind, caplog):
    if kind == "same_bytes":
        folder(tmp_path / "train"), folder(tmp_path / "val")
        copy = tmp_path / "val" / "dog" / "2.png"
        copy.write_bytes((tmp_path / "train" / "cat" / "1.png").read_bytes())
        data, twice = tmp_path, str(copy)
    elif kind == "same_path":
        rows = ["1.png,a,train", "2.png,b,train", "2.png,b,val", "3.png,a,val"]
        data = table(tmp_path / "x.csv", rows, "path,label,split")
        twice = str(tmp_path / "2.png")
    else:
        data, twice = tmp_path, "4.png"
        pack(tmp_path / "train.npz", (0, 1, 0, 1, 0), ("a", "b"))
        pack(tmp_path / "val.npz", (0, 1, 0, 1, 0, 1), ("a", "b"))
        content = load_split(tmp_path, "val")
        val = replace(content, pixels=content.pixels.flip(1).contiguous())
        val.pixels[4] = content.pixels[4]
        assert check_overlap(load_split(tmp_path), val) == [twice]
        assert "1 of 6 images of val are in train as well" in caplog.text
        return
    assert check_overlap(load_split(data), load_split(data, "val")) == [twice]
    assert f"of val are in train as well, so the score will be too good: {twice}" in caplog.text


def test_disjoint_splits_and_missing_files_pass(tmp_path, caplog):
    folder(tmp_path / "train"), folder(tmp_path / "val")
    train, val = load_split(tmp_path), load_split(tmp_path, "val")
    Path(val.names[0]).unlink()
    assert check_overlap(train, val) == [] and not caplog.records


def test_shards_and_large_sets_are_compared_by_name(tmp_path, monkeypatch):
    for split in ("train", "val"):
        shard(tmp_path / f"{split}-0.tar", samples([0, 1]))
    data = f"wds/{tmp_path}"
    assert check_overlap(load_split(data), load_split(data, "val")) == []
    monkeypatch.setattr("secvit.images.check.FEW_FILES", 3)
    copies = table(
        tmp_path / "x.csv", ["1.png,a,train", "2.png,b,train", "1.png,a,val", "3.png,b,val"], "path,label,split"
    )
    save(tmp_path / "3.png").write_bytes((tmp_path / "2.png").read_bytes())
    assert check_overlap(load_split(copies), load_split(copies, "val")) == [str(tmp_path / "1.png")]
