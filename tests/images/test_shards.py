import bz2
import gzip
import json
import lzma
import pickle
import tarfile

import numpy as np
import pytest

from secvit.images import load_split, splits
from secvit.images.shards import expand
from tests.images.make import encoded, samples, shard


@pytest.fixture
def folder(tmp_path):
    shard(tmp_path / "train-000000.tar", samples(["cat", "dog", "cat"]))
    shard(tmp_path / "train-000001.tar", samples(["dog", "cat"], 3))
    shard(tmp_path / "val-000000.tar", samples(["dog"], 50))
    return tmp_path


def test_shards_give_each_image_with_its_label_in_any_order(folder):
    images = load_split(f"wds/{folder}")
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0, 1, 0, 1, 0]
    again = pickle.loads(pickle.dumps(images))  # as for loading processes that are spawned
    for i in (4, 0, 3, 1, 2):
        expected = np.asarray(again.image(i))
        np.testing.assert_array_equal(expected, np.asarray(images.image(i)))
        assert images.names[i].startswith(f"{folder}/train-00000{i // 3}.tar@")
    colours = {np.asarray(images.image(i)).tobytes() for i in range(5)}
    assert len(colours) == 5
    assert load_split(f"wds/{folder}", "val").labels.tolist() == [1]


def test_patterns_expand_as_in_a_shell():
    assert expand("a-{08..10}-{x,y}.tar")[:3] == ["a-08-x.tar", "a-08-y.tar", "a-09-x.tar"]
    assert expand("plain.tar") == ["plain.tar"]


def test_pattern_is_undivided_or_divided_by_the_names_of_its_shards(folder):
    train_only = f"wds/{folder}/train-{{000000..000001}}.tar"
    assert len(load_split(train_only, "train")) + len(load_split(train_only, "val")) == 5
    both = f"wds/{folder}/{{train-000000,train-000001,val-000000}}.tar"
    assert splits(both) == ("train", "val") and len(load_split(both)) == 5


def test_folders_of_shards_undivided_shards_and_odd_members(tmp_path):
    odd = [
        ("._000.png", b"x"), ("README", b"x"), ("000.seg.png", b"x"), ("__key__", b"x"),
        ("a/000.JPG", encoded(0, kind="jpeg")), ("a/000.json", json.dumps({"label": 3, "caption": "x"})),
        ("b/000.json", json.dumps({"label": 12})), ("b/000.png", encoded(1)), ("b/000.cls", "12\n"),
    ]  # fmt: skip
    shard(tmp_path / "split" / "train" / "0.tar", odd)
    shard(tmp_path / "split" / "validation" / "0.tar", samples([12]))
    assert splits(f"wds/{tmp_path}/split") == ("train", "val")
    images = load_split(f"wds/{tmp_path}/split", "train")
    assert images.classes == ("3", "12") and [n.rpartition(".tar")[2].partition("/")[2] for n in images.names] == [
        "a/000.JPG",
        "b/000.png",
    ]
    assert load_split(f"wds/{tmp_path}/split", "val").labels.tolist() == [1]
    shard(tmp_path / "flat" / "00.tar", samples([0, 1] * 20))
    parts = [load_split(f"wds/{tmp_path}/flat", s) for s in ("train", "val")]
    assert [len(p) for p in parts] == [34, 6] and not set(parts[0].names) & set(parts[1].names)


@pytest.mark.parametrize("listing", ["classes.txt", "_info.json"])
def test_class_names_beside_the_shards_order_the_classes(tmp_path, listing):
    names = ["zebra", "ant", "cow"]
    (tmp_path / listing).write_text("\n".join(names) if listing == "classes.txt" else json.dumps({"classes": names}))
    shard(tmp_path / "train" / "0.tar", samples(["ant", 2, "0"]))
    shard(tmp_path / "val" / "0.tar", samples([1]))
    images = load_split(f"wds/{tmp_path}")
    assert images.classes == tuple(names) and images.labels.tolist() == [1, 2, 0]
    shard(tmp_path / "train" / "1.tar", samples([3], 9))
    with pytest.raises(ValueError, match=r"1\.tar@.*000009\.png: label 3, which is neither 0\.\.2 nor one of the 3"):
        load_split(f"wds/{tmp_path}")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("edge", [0, 100, 512])
def test_truncated_shard_is_refused_by_name(folder, keep, edge):
    path = folder / "train-000001.tar"
    with tarfile.open(path) as tar:
        end = max(m.offset_data + m.size for m in tar)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * end) // 512 * 512 + edge])
    with pytest.raises(ValueError, match=r"train-000001\.tar: (not a whole tar|damaged or cut off).*copy it again"):
        load_split(f"wds/{folder}")


def test_file_that_is_no_tar_is_refused_by_name(folder):
    (folder / "train-000001.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"train-000001\.tar: not a whole tar file"):
        load_split(f"wds/{folder}")
    (folder / "train-000001.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-000001\.tar"):
        load_split(f"wds/{folder}")


BAD = [
    ([("0.png", b"x")], r"train-0.tar: 0 has an image but no label; add 0.cls"),
    ([("0.png", b"x"), ("0.json", "{}")], r"0 has an image but no label"),
    ([("0.cls", "1")], r"train-0.tar: no image .*\.png"),
    ([("0.png", b"x"), ("0.jpg", b"x"), ("0.cls", "1")], r"two images are called 0;"),
    ([("0.png", b"x"), ("0.cls", " ")], r"train-0.tar/0.cls: label ' '; expected a class number or a name"),
    ([("0.png", b"x"), ("0.json", '{"label": [1, 2]}')], r"0.json: label \[1, 2\]"),
    ([("0.png", b"x"), ("0.json", "{")], r"train-0.tar/0.json: cannot be read"),
    ([("0.png", b"x"), ("0.cls", b"\xff")], r"train-0.tar/0.cls: cannot be read"),
    ([("0.png", b"x"), ("0.cls", "-1")], r"train-0.tar@.*0.png: label -1, but classes count from 0"),
    ([("0.png", b"x"), ("0.cls", "1")], r"0.png: all 1 images are of class '1'"),
]


@pytest.mark.parametrize(("members", "message"), BAD, ids=range(len(BAD)))
def test_inconsistent_shard_is_refused_with_its_entry(tmp_path, members, message):
    shard(tmp_path / "train-0.tar", members)
    with pytest.raises(ValueError, match=message):
        load_split(f"wds/{tmp_path}")


def test_missing_or_packed_shards_and_splits_are_named(folder):
    (empty := folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"2 of 4 shards do not exist, the first: .*train-000002.tar"):
        load_split(f"wds/{folder}/train-{{000000..000003}}.tar")
    with pytest.raises(ValueError, match="no .tar file there or in train/, val/"):
        load_split(f"wds/{empty}")
    (folder / "x.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="x.tar.gz is not a plain .tar file"):
        load_split(f"wds/{folder}/x.tar.gz")
    with pytest.raises(ValueError, match="has val but no train"):
        load_split(f"wds/{folder}/val-000000.tar")
    shard(folder / "more.tar", samples(["cat"]))
    with pytest.raises(ValueError, match="more.tar names no split, others do"):
        load_split(f"wds/{folder}")


def test_class_of_another_split_that_train_lacks_is_refused(folder):
    shard(folder / "val-000001.tar", samples(["emu"], 80))
    with pytest.raises(ValueError, match=r"val-000001.tar@.*000080.png: class 'emu', which train lacks"):
        load_split(f"wds/{folder}", "val")


def test_damaged_image_in_a_shard_is_named_when_it_is_read(folder):
    shard(folder / "train-000001.tar", [("9.png", b"no image"), ("9.cls", "cat")])
    images = load_split(f"wds/{folder}")
    with pytest.raises(ValueError, match=r"train-000001.tar@512\+8/9.png: not an image"):
        images.image(3)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000001.tar@512\+8/9.png: cannot be read"):
        images.image(3)


def test_shard_that_was_replaced_is_listed_anew(folder):
    assert len(load_split(f"wds/{folder}")) == 5
    shard(folder / "train-000001.tar", samples(["dog"] * 8, 3))
    assert len(load_split(f"wds/{folder}")) == 11


def test_images_with_a_further_dot_in_their_name_are_counted(tmp_path, caplog):
    dotted = [("shot.0.png", encoded(9)), ("shot.0.cls", "1")]
    shard(tmp_path / "a" / "0.tar", [*samples([0, 1, 0, 1]), *dotted])
    assert len(load_split(f"wds/{tmp_path}/a")) == 2
    assert "used 4 of 5 images; left out: 1 images with a further dot in their name" in caplog.text
    shard(tmp_path / "b" / "0.tar", dotted)
    with pytest.raises(ValueError, match=r"no image .*; 1 images with a further dot in their name \(shot.0.png\)"):
        load_split(f"wds/{tmp_path}/b")


def test_a_second_image_of_a_sample_is_no_reason_to_warn(tmp_path, caplog):
    shard(tmp_path / "0.tar", [*samples([0, 1, 0, 1]), ("000000.seg.png", encoded(9))])
    load_split(f"wds/{tmp_path}")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (gzip.compress, "compressed with gzip, though it is called .tar; unpack it first"),
        (bz2.compress, "compressed with bzip2"),
        (lzma.compress, "compressed with xz"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
    ],
)
def test_what_is_only_called_a_tar_is_named(tmp_path, pack, message):
    path = shard(tmp_path / "0.tar", samples([0, 1]))
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_split(f"wds/{tmp_path}")


@pytest.mark.parametrize("name", ["val-000000.tar", "val"])
def test_a_split_that_is_a_link_to_nothing_is_named(tmp_path, name):
    shard(tmp_path / "train-000000.tar", samples([0, 1] * 4))
    (tmp_path / name).symlink_to(tmp_path / "annex" / "x")
    with pytest.raises(ValueError, match=f"{name}: a link to nothing; fetch what it links to"):
        load_split(f"wds/{tmp_path}")


def test_a_list_of_classes_that_is_a_link_to_nothing_is_named(tmp_path):
    shard(tmp_path / "train-000000.tar", samples([0, 1] * 4))
    (tmp_path / "classes.txt").symlink_to(tmp_path / "annex" / "x")
    with pytest.raises(ValueError, match="classes.txt: cannot be read"):
        load_split(f"wds/{tmp_path}")


def test_numbers_that_are_written_in_two_ways_are_refused(tmp_path):
    shard(tmp_path / "train-000000.tar", samples(["0", "1", "00", "1.0"]))
    with pytest.raises(ValueError, match="classes under two names each: '0' and '00', '1' and '1.0'"):
        load_split(f"wds/{tmp_path}")


def test_two_lists_of_classes_that_differ_are_refused_with_both(tmp_path):
    shard(tmp_path / "train-000000.tar", samples([0, 1] * 4))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "_info.json").write_text('{"classes": ["cat", "dog"]}')
    assert load_split(f"wds/{tmp_path}").classes == ("cat", "dog")
    (tmp_path / "_info.json").write_text('{"classes": ["dog", "cat"]}')
    with pytest.raises(ValueError, match="classes.txt and .*_info.json list other classes"):
        load_split(f"wds/{tmp_path}")
