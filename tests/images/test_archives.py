"""Tables, npz and shards that other hands wrote: every field is read by its type, and a fault is named."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import time
import zipfile

import numpy as np
import pytest

from secvit.images import load_split, splits
from tests.images.make import encoded, pack, samples, save, shard, table

# -- tables ------------------------------------------------------------------------------------

TABLES = [
    ("path,label\n1.png,a\n/dev/zero,b", r"1 of 2 files do not exist: /dev/zero \(line 3\)"),
    ("path,label\n1.png,a\n.,b", r"1 of 2 files do not exist: \S+ \(line 3\)"),
    ("path,label\n1.png,a\n2\0.png,b", r"line 3: path '2\\x00.png' has more than one line"),
    ('path,label\n1.png,"a\n2.png,b\n', "not a table of text .line 3: unexpected end of data"),
    ('path,label\n1.png,"a\n2.png,b"\n2.png,b\n', r"line 3: label 'a\\n2.png,b' has more than one line; is a quote"),
    ("path,label\nmy,2.png,a\n1.png,b", "line 2: 3 cells below 2 columns; put quotes around a cell that has a comma"),
    ("path,label,label\n1.png,a,b\n2.png,b,a", "line 1: 2 columns are called 'label'; keep one"),
    ("path,label,split\n1.png,a,train\n2.png,b,held", "line 3: split 'held'; expected one of train, training, val"),
    ("path,label,split\n1.png,a,val\n2.png,b,Valid", "line 3: split 'Valid', but 'val' above; both are val; use one"),
]


@pytest.mark.parametrize(("content", "message"), TABLES, ids=range(len(TABLES)))
def test_a_cell_that_is_not_what_it_should_be_is_named(content, message, tmp_path):
    save(tmp_path / "1.png"), save(tmp_path / "2.png")
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path / "x.csv")


def test_a_table_that_never_ends_is_refused_without_being_read(tmp_path):
    os.symlink("/dev/zero", tmp_path / "x.csv"), os.mkfifo(tmp_path / "y.csv")
    for name in ("x.csv", "y.csv"):
        with pytest.raises(ValueError, match=f"{name}: a device, pipe or socket, not a file"):
            load_split(tmp_path / name)


def test_a_file_that_is_named_again_counts_once_and_is_said(tmp_path, caplog):
    data = table(tmp_path / "x.csv", [f"{i}.png,{'ab'[i % 2]}" for i in range(8)])
    with open(data, "a") as file:
        file.write("1.png,b\n./2.png,a\n")
    assert len(load_split(data)) + len(load_split(data, "val")) == 8
    assert "used 8 of 10 lines; left out: 2 that name a file again" in caplog.text


def test_one_word_for_a_split_may_be_written_in_several_cases(tmp_path):
    rows = ["1.png,a,Train", "2.png,b,train", "3.png,a,VAL", "4.png,b,val", "5.png,a,TEST"]
    data = table(tmp_path / "x.csv", rows, "path,label,split")
    assert splits(data) == ("train", "val", "test") and len(load_split(data, "val")) == 2


# -- npz ---------------------------------------------------------------------------------------

N = 6
LABEL = np.array([0, 1, 2, 0, 1, 2])
ARRAYS = [
    ({"label": LABEL + 0.5}, "`label` of entry 0 is 0.5; expected a whole number .6 such"),
    ({"label": np.where(LABEL == 1, np.nan, LABEL)}, "`label` of entry 1 is nan; expected a whole number"),
    ({"label": np.where(LABEL == 2, np.inf, LABEL)}, "`label` of entry 2 is inf"),
    ({"label": LABEL.astype(complex)}, "`label` has the type complex128; expected whole numbers"),
    ({"label": LABEL.astype(str)}, "`label` has the type <U21; expected whole numbers"),
    ({"label": LABEL.astype(bool)}, "`label` has the type bool"),
    ({"label": LABEL[:, None]}, r"`label` has the shape \(6, 1\); expected one dimension"),
    ({"label": np.array(3)}, r"`label` has the shape \(\); expected one dimension"),
    ({"label": LABEL.astype(object)}, "`label` holds Python objects; save it as numbers"),
    ({"label": np.array([0, 1, 2, 0, 1, 2**63], np.uint64)}, "`label` of entry 5 is 9223372036854775808"),
    ({"offset": np.array([0.5] * 7)}, "`offset` of entry 0 is 0.5"),
    ({"offset": np.array([-1] * 7)}, "offsets do not rise from 0"),
    ({"offset": np.array([0, 2**62, 3, 4, 5, 6, 7])}, "`offset` of entry 1 is"),
    ({"offset": np.zeros((7, 2), int)}, "`offset` has the shape"),
    ({"jpeg": np.zeros(100)}, "`jpeg` has the type float64; expected the bytes of all images as uint8"),
    ({"jpeg": np.zeros((10, 10), np.uint8)}, "`jpeg` has the shape"),
    ({"classes": np.array([1.5, 2.5, 3.5])}, "`classes` has the type float64; expected names"),
    ({"classes": np.array(["a", "b", "a"])}, "class 2 is called 'a'; give each class its own name"),
    ({"classes": np.array(["a", " ", "c"])}, "class 1 is called ' '"),
    ({"classes": np.array(["a"]), "label": np.zeros(6, int)}, "1 classes; expected at least two"),
    ({"classes": np.array([b"a", b"\xff", b"c"])}, "`classes` holds what is no text"),
    ({"name": np.array(["x", "y"])}, "6 labels and 2 names; expected as many"),
    ({"name": np.arange(6.0)}, "`name` has the type float64; expected names"),
]


@pytest.mark.parametrize(("changes", "message"), ARRAYS, ids=range(len(ARRAYS)))
def test_an_array_of_another_kind_is_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=f"x.npz: .*{message}"):
        load_split(pack(tmp_path / "x.npz", **changes))


@pytest.mark.parametrize("classes", [np.array([b"a", b"b", b"c"]), np.array([10, 11, 12]), np.array(["a", "b", "c"])])
def test_what_is_meant_is_read(classes, tmp_path):
    data = pack(tmp_path / "x.npz", np.repeat(LABEL, 2).astype(float), classes)
    images = load_split(data)
    assert images.classes == tuple(x.decode() if isinstance(x, bytes) else str(x) for x in classes.tolist())
    assert len(images) + len(load_split(data, "val")) == 12


def with_label(path, content, **options):
    """An npz whose label.npy is replaced by some bytes."""
    pack(path, label=None)
    with zipfile.ZipFile(path, "a", **options) as file:
        file.writestr("label.npy", content)
    return path


def header(shape, dtype="<i8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


CLAIMS = [
    (header((2**60,)) + bytes(48), "`label` claims 9,223,372,036,854,775,808 bytes, of which there are"),
    (header((-6,)) + bytes(48), "x.npz: "),
    (header((6,), "|O") + bytes(48), "holds Python objects"),
    (header((2**26,)) + bytes(2**29), "`label` unpacks to 536,870,912 bytes, more than 100 times the file"),
    (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8'}", "x.npz: not an npz"),
    (b"no array", "x.npz: not an npz"),
    (b"", "x.npz: not an npz"),
]


@pytest.mark.parametrize(("content", "message"), CLAIMS, ids=range(len(CLAIMS)))
def test_an_array_that_claims_more_than_there_is_is_refused_at_once(content, message, tmp_path):
    data = with_label(tmp_path / "x.npz", content, compression=zipfile.ZIP_DEFLATED)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        load_split(data)
    assert time.perf_counter() - start < 5  # seconds, on a machine that is busy


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_an_npz_that_is_cut_off_or_damaged_is_named(keep, tmp_path):
    whole = pack(tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match="x.npz: not an npz of encoded images"):
        load_split(tmp_path / "x.npz")
    damaged = bytearray(whole)
    damaged[whole.index(b"offset.npy") + 200] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match="x.npz"):
        load_split(tmp_path / "x.npz")


def test_images_that_do_not_fit_into_memory_are_refused_after_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 30)
    with pytest.raises(ValueError, match="6 images of 8x8 px take 0.0 GiB decoded, this machine has 0.0; use an image"):
        load_split(pack(tmp_path / "x.npz"))


# -- shards ------------------------------------------------------------------------------------


def linked(path, links, symbolic=False):
    """A shard of four samples, with members that are links."""
    shard(path, samples([0, 1, 0, 1]))
    with tarfile.open(path, "a") as tar:
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE if symbolic else tarfile.LNKTYPE, target
            tar.addfile(info)
    return path


@pytest.mark.parametrize("symbolic", [True, False])
def test_images_and_labels_that_are_links_are_read(symbolic, tmp_path):
    links = [("d/9.png", "../000000.png" if symbolic else "000000.png"),
             ("d/9.cls", "../000001.cls" if symbolic else "./000001.cls")]  # fmt: skip
    linked(tmp_path / "train-0.tar", links, symbolic), shard(tmp_path / "val-0.tar", samples([0, 1]))
    images = load_split(f"wds/{tmp_path}")
    assert images.labels.tolist() == [0, 1, 0, 1, 1]
    np.testing.assert_array_equal(np.asarray(images.image(4)), np.asarray(images.image(0)))


@pytest.mark.parametrize("target", ["../outside.png", "none.png", "9.png", "/etc/passwd"])
def test_a_link_that_leads_out_of_the_shard_is_refused_by_name(target, tmp_path):
    linked(tmp_path / "train-0.tar", [("9.png", target), ("9.cls", "000000.cls")], symbolic=True)
    with pytest.raises(ValueError, match=r"train-0.tar/9.png: a link to \S+, which is no file of this shard; write"):
        load_split(f"wds/{tmp_path}")


def test_labels_without_an_image_and_stray_members_are_said(tmp_path, caplog):
    odd = [("9.cls", "1"), ("__MACOSX/._1.png", b"x"), ("._8.png", b"x")]
    shard(tmp_path / "train-0.tar", [*samples([0, 1]), *odd]), shard(tmp_path / "val-0.tar", samples([0, 1]))
    with caplog.at_level(logging.INFO):
        assert len(load_split(f"wds/{tmp_path}")) == 2
    assert "train: used 2 of 5 images; left out: 2 hidden or stray, 1 that have a label but no image" in caplog.text


@pytest.mark.parametrize(("train", "val"), [("Train-0", "Val-0"), ("train000", "val000"), ("x-TRAINING-1", "x-dev-1"),
                                            ("Train/0", "Validation/0"), ("train2017_0", "val2017_0")])  # fmt: skip
def test_shards_are_divided_by_every_word_for_a_split(train, val, tmp_path):
    shard(tmp_path / f"{train}.tar", samples([0, 1])), shard(tmp_path / f"{val}.TAR", samples([1], 5))
    assert splits(f"wds/{tmp_path}") == ("train", "val") and len(load_split(f"wds/{tmp_path}", "val")) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train-0", "val-0", "validation-0"), r"validation is a second val; keep one of them \(val, validation\)"),
        (("train-test-0", "val-0"), "train-test-0.tar: names train and test; put one split into the name"),
    ],
)
def test_shards_whose_names_say_two_things_are_refused(names, message, tmp_path):
    for name in names:
        shard(tmp_path / f"{name}.tar", samples([0, 1]))
    with pytest.raises(ValueError, match=message):
        load_split(f"wds/{tmp_path}")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("a{0..99999999999}.tar", "more than 100,000 shards"), ("a{5..0}.tar", "counts down; write the smaller"),
     ("{0..999}{0..999}.tar", "more than 100,000 shards"), ("a\0.tar", "do not exist"), ("{a,b}.tar", "do not exist")],
)  # fmt: skip
def test_a_pattern_that_cannot_be_meant_is_refused_at_once(pattern, message):
    with pytest.raises(ValueError, match=message):
        load_split(f"wds/{pattern}")


LISTS = [
    ("classes.txt", b"a\n\xff\n", "classes.txt: not UTF-8 text"),
    ("classes.txt", b"a\n\nb\n", "classes.txt, line 2: empty; expected a class in each line"),
    ("classes.txt", b"a\nb\na\n", "classes.txt: class 'a' occurs twice"),
    ("_info.json", b"{", "_info.json: not JSON"),
    ("_info.json", b"[" * 100_000, "_info.json: nested too deeply"),
    ("_info.json", b"[]", r"_info.json: \[\], expected an object"),
    ("_info.json", b'{"classes": 3}', r"_info.json: classes is 3, expected a list"),
    ("_info.json", b'{"classes": ["a", null]}', "_info.json: classes holds what is no name"),
    ("_info.json", b'{"classes": ["a", "a"]}', "_info.json: class 'a' occurs twice"),
]


@pytest.mark.parametrize(("name", "content", "message"), LISTS, ids=range(len(LISTS)))
def test_a_list_of_classes_that_cannot_be_read_is_named(name, content, message, tmp_path):
    shard(tmp_path / "train-0.tar", samples([0, 1]))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_split(f"wds/{tmp_path}")


def test_a_list_of_classes_saved_with_a_byte_order_mark_is_read(tmp_path):
    shard(tmp_path / "train-0.tar", samples(["a", 1] * 4))
    (tmp_path / "classes.txt").write_bytes("\ufeffa\r\nb\r\n\n".encode())
    assert load_split(f"wds/{tmp_path}").classes == ("a", "b")


def test_a_label_that_is_a_name_and_another_number_is_refused(tmp_path):
    shard(tmp_path / "train-0.tar", samples(["1", "2"]))
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    with pytest.raises(ValueError, match=r"label 1 is the name of a listed class and the number of another, '2'"):
        load_split(f"wds/{tmp_path}")
    (tmp_path / "classes.txt").write_text("0\n1\n2\n")
    assert load_split(f"wds/{tmp_path}").classes == ("0", "1", "2")


MEMBERS = [
    ([("0.png", b"x"), ("0.cls", "1"), ("0.json", json.dumps({"label": 2}))], "0.json: label '2', but its .cls says"),
    ([("0.png", b"x"), ("0.json", "[" * 100_000)], "0.json: cannot be read"),
    ([("0.png", b"x"), ("0.json", '{"label": NaN}')], "0.json: label nan; expected a class number or a name"),
    ([("0.png", b"x"), ("0.json", '{"label": true}')], "0.json: label True; expected a class number or a name"),
    ([("0.png", b"x"), ("0.json", '{"label": ' + "9" * 5000 + "}")], "0.json: "),
    ([("0.png", b"x"), ("0.cls", "1" * 2**25)], "0.cls: 33,554,432 bytes, too many for a label"),
]


@pytest.mark.parametrize(("members", "message"), MEMBERS, ids=range(len(MEMBERS)))
def test_a_label_of_another_kind_is_named(members, message, tmp_path):
    shard(tmp_path / "train-0.tar", members)
    with pytest.raises(ValueError, match=f"train-0.tar/{message}"):
        load_split(f"wds/{tmp_path}")


def test_a_size_beyond_the_end_of_the_shard_is_a_damaged_shard(tmp_path):
    path = shard(tmp_path / "train-0.tar", samples([0, 1]))
    with open(path, "rb+") as file:
        info = tarfile.TarInfo("huge.png")
        info.size = 2**40
        file.seek(0)
        file.write(info.tobuf(tarfile.GNU_FORMAT)[:512])
    with pytest.raises(ValueError, match="train-0.tar: (damaged or cut off|not a whole tar)"):
        load_split(f"wds/{tmp_path}")


def test_shards_that_are_not_read_are_said(tmp_path, caplog):
    shard(tmp_path / "train-0.tar", samples([0, 1])), shard(tmp_path / "train" / "1.tar", samples([0, 1]))
    (tmp_path / "train-1.tar.gz").write_bytes(encoded(0))
    (tmp_path / "._train-2.tar").write_bytes(b"x")
    load_split(f"wds/{tmp_path}")
    assert "used 1 of 4 shards" in caplog.text
    for reason in ("1 compressed", "1 in train/, as shards lie above it", "1 hidden or stray"):
        assert reason in caplog.text
