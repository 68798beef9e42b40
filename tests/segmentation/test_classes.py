"""Which values of masks are classes: names files of every shape, 255, gaps, names that never occur."""

import json
import logging

import numpy as np
import pytest

from secvit.segmentation.data import load
from tests.segmentation.make import mask_folder, save, scene


def striped(*values, shape=(30, 40), dtype=np.uint8):
    """Vertical stripes of these values."""
    return np.array(values, dtype)[np.arange(shape[1]) * len(values) // shape[1]][None].repeat(shape[0], 0)


def folder(root, *values, names=None, val=None, count=3, dtype=np.uint8):
    """Masks of stripes in train and val; names: of classes.json (an object) or classes.txt (text)."""
    for split, held in (("train", values), ("val", val or values)):
        for i in range(count):
            save(root / "images" / split / f"{i}.png", scene(i)[0][:30, :40])
            save(root / "masks" / split / f"{i}.png", striped(*held, dtype=dtype))
    if isinstance(names, str):
        (root / "classes.txt").write_text(names)
    elif names is not None:
        (root / "classes.json").write_text(json.dumps(names))
    return root


def seen(split):
    return np.unique(split.mask(0)).tolist()


# values in the masks, names files, and then: names of the classes, their values, classes of the stripes
READ = {
    "binary, two names": ((0, 255), {"classes": ["no", "yes"]}, ("no", "yes"), (0, 255), [0, 1]),
    "binary, classes.txt": ((0, 255), "no\nyes\n", ("no", "yes"), (0, 255), [0, 1]),
    "binary, another value ignored": (
        (0, 255), {"classes": ["no", "yes"], "ignore_index": 254}, ("no", "yes"), (0, 255), [0, 1]
    ),
    "binary, without names": ((0, 255), None, ("0", "255"), (0, 255), [0, 1]),
    "binary, named values": ((0, 255), {"classes": {"0": "no", "255": "yes"}}, ("no", "yes"), (0, 255), [0, 1]),
    "0, 1 and 255": ((0, 1, 255), {"classes": ["no", "yes"]}, ("no", "yes"), (0, 1), [0, 1, 255]),
    "numbers from 1": ((1, 2, 255), None, ("1", "2"), (1, 2), [0, 1, 255]),
    "gaps, named": ((0, 128), {"classes": {"0": "no", "128": "yes"}}, ("no", "yes"), (0, 128), [0, 1]),
    "values by name": ((3, 90), {"classes": {"b": 90, "a": 3}}, ("a", "b"), (3, 90), [0, 1]),
    "gaps, classes.txt": ((0, 128), "128: yes\n0: no\n", ("no", "yes"), (0, 128), [0, 1]),
    "more than one value ignored": (
        (0, 1, 2, 3), {"classes": ["a", "b"], "ignore_index": [0, 2]}, ("a", "b"), (1, 3), [0, 1, 255]
    ),
    "nothing ignored but 255": ((0, 1, 255), {"classes": ["a", "b"], "ignore_index": None}, ("a", "b"), (0, 1), [0, 1, 255]),
    "ignored -1": ((0, 1, 255), {"classes": ["a", "b"], "ignore_index": -1}, ("a", "b"), (0, 1), [0, 1, 255]),
    "empty lines between named values": ((0, 1), "0: a\n\n1: b\n", ("a", "b"), (0, 1), [0, 1]),
    "a BOM": ((0, 1), "\ufeffa\nb", ("a", "b"), (0, 1), [0, 1]),
    "Windows' lines": ((0, 1), "a\r\nb\r\n\r\n \r\n", ("a", "b"), (0, 1), [0, 1]),
    "numbers as names": ((0, 1), {"classes": [7, "8"]}, ("7", "8"), (0, 1), [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize(("values", "names", "classes", "numbers", "stripes"), READ.values(), ids=READ)
def test_the_values_in_masks_decide(tmp_path, values, names, classes, numbers, stripes):
    folder(tmp_path, *values, names=names)
    for split in ("train", "val"):
        found = load(tmp_path, split)
        assert (found.classes, found.labels.values, seen(found)) == (classes, numbers, stripes)


def test_values_beyond_255_are_classes_where_they_are_named(tmp_path):
    folder(tmp_path, 0, 7000, 65535, names={"classes": {"7000": "a", "65535": "b"}, "ignore_index": 0}, dtype=np.uint16)
    assert seen(load(tmp_path, "train")) == [0, 1, 255]


def test_the_masks_of_train_decide_what_255_is_in_val(tmp_path):
    folder(tmp_path / "a", 0, 1, 255, val=(0, 255), names={"classes": ["no", "yes"]})
    assert seen(load(tmp_path / "a", "val")) == [0, 255]
    folder(tmp_path / "b", 0, 255, val=(0,), names={"classes": ["no", "yes"]})
    assert load(tmp_path / "b", "val").labels.values == (0, 255)


REFUSED = {
    "gaps": ((0, 128), None, r"hold the values 0, 128, with gaps .*classes.json: ..classes.: ..0.: .*.128."),
    "gaps of three": ((0, 100, 200), None, "hold the values 0, 100, 200, with gaps"),
    "gaps with 255": ((0, 1, 254), None, "hold the values 0, 1, 254, with gaps"),
    "a first value far from 0": ((40, 41), None, "hold the values 40, 41, with gaps"),
    "gaps, named in order": ((0, 128), {"classes": ["a", "b"]}, "0.png holds 128, which is none of 2 classes"),
    "one class": ((0,), None, "masks hold no class but 0"),
    "nothing": ((255,), None, "masks hold no class; expected"),
    "255 ignored in words": (
        (0, 255), {"classes": ["no", "yes"], "ignore_index": 255},
        "of 2 classes only 'no' occurs in the masks of train .* hold 0, 255, and 255 is ignored; say which",
    ),
    "one of two": ((0, 0), {"classes": ["no", "yes"]}, "of 2 classes only 'no' occurs"),
    "one of five": ((3, 255), {"classes": list("abcde")}, "of 5 classes only 'd' occurs"),
    "background listed and ignored": (
        (0, 1, 2), {"classes": ["background", "cat", "dog"], "ignore_index": 0},
        "the values 1 to 3, but the masks of train .* hold 0, 1, 2, so that 'dog' never occurs.  If value 0",
    ),
    "another one listed and ignored": (
        (0, 1, 2, 3), {"classes": ["a", "b", "c", "d"], "ignore_index": 1}, "'d' never occurs.  If value 1",
    ),
    "a value named and ignored": (
        (0, 1), {"classes": {"0": "a", "1": "b"}, "ignore_index": 0}, "classes.json: 0 is a class and ignored as well",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("values", "names", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_masks_cannot_mean_is_refused(tmp_path, values, names, message):
    folder(tmp_path, *values, names=names)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "train")


def test_classes_that_never_occur_are_said(tmp_path, caplog):
    load(folder(tmp_path, 0, 2, names={"classes": ["a", "b", "c", "d"]}), "train")
    assert "2 of 4 classes never occur in the masks of train: b (1), d (3)" in caplog.text
    caplog.clear()
    load(folder(tmp_path, 0, 1, 2, 3, names={"classes": ["a", "b", "c", "d"]}), "train")
    assert not caplog.text


def test_that_255_is_a_class_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load(folder(tmp_path, 0, 255, names={"classes": ["no", "yes"]}), "train")
    assert "255 stands for 'yes', as the masks hold 0 and 255 alone" in caplog.text


# -- names files ---------------------------------------------------------------------------------

WRONG_JSON = {
    "not json": ("{", "not JSON"),
    "a list": ('["a", "b"]', r"it: .*expected an object"),
    "text": ('{"classes": "abc"}', "classes is .abc., expected a list of names, or names by value"),
    "a number": ('{"classes": 3}', "classes is 3, expected a list of names"),
    "no classes": ('{"names": ["a", "b"]}', "no 'classes'"),
    "lists": ('{"classes": [["a"], ["b"]]}', "classes hold .*, expected text"),
    "objects": ('{"classes": [{"name": "a"}, {"name": "b"}]}', "classes hold .*, expected text"),
    "empty names": ('{"classes": ["a", " "]}', "expected text"),
    "null": ('{"classes": ["a", null]}', "expected text"),
    "a name of a value": ('{"classes": {"x": "a", "1": "b"}}', "classes hold 'x', expected a number"),
    "a value out of range": ('{"classes": {"0": "a", "70000": "b"}}', "70000 is no value of a mask"),
    "a value below 0": ('{"classes": {"0": "a", "-1": "b"}}', "-1 is no value of a mask"),
    "NaN": ('{"classes": ["a", "b"], "ignore_index": NaN}', "ignore_index is NaN, expected a finite number"),
    "nested": ('{"classes": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "an unknown key": (
        '{"classes": ["a", "b"], "ignore_label": 0}',
        "unknown 'ignore_label'; known are classes, ignore_index, ignore_name, palette",
    ),
    "doubles": ('{"classes": ["a", "b", "a"]}', "3 classes; expected 2 to 255 different names; 'a' occurs twice"),
    "too many": (json.dumps({"classes": list(range(256))}), "256 classes; expected 2 to 255"),
    "a control character": ('{"classes": ["a", "b\\u0000"]}', "is no name of a class"),
    "a palette of text": ('{"classes": ["a", "b"], "palette": ["red", "green"]}', "a palette needs red, green, blue"),
    "a palette beyond 255": ('{"classes": ["a", "b"], "palette": [[0, 0, 0], [0, 0, 256]]}', "a palette needs"),
    "not UTF-8": (b'{"classes": ["a", "\xff"]}', "not UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_JSON.values(), ids=WRONG_JSON)
def test_a_wrong_classes_json_is_named(tmp_path, content, message):
    folder(tmp_path, 0, 1)
    (tmp_path / "classes.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"(?s)classes.json: .*{message}"):
        load(tmp_path, "train")


WRONG_TEXT = {
    "classes.txt": [
        ("a\nb\na\n", "line 3: 'a' is in line 1 too"),
        ("", "0 classes; expected 2 to 255"),
        ("a\nb\n\nc\n", "line 3: empty, so that the names below it"),
        ("\na\nb\n", "line 1: empty"),
        ("# mine\na\nb\n", "line 1: '# mine'; there are no comments here"),
        ("# mine\n0: a\n1: b\n", "line 1: '# mine'; there are no comments here"),
        ("a\n", "1 classes"),
        ("0: a\n0: b\n", "line 2: 'value 0' is in line 1 too"),
        ("0: a\n99999: b\n", "line 2: '99999,b'; expected a value of 0 to 65535 and a name"),
        (b"a\nb\xe4\n", "not UTF-8 text"),
        (b"\xff\xfea\0\n\0b\0", "not UTF-8 text"),
        (b"a\nb\0c\n", "is no name of a class"),
    ],
    "labelmap.txt": [
        ("a:0,0,0::\nb:1,2\n", "line 2: 'b:1,2'; expected NAME:RED,GREEN,BLUE"),
        ("# x\na:0,0,0::\nb:0,0,300::\n", "line 3: 'b:0,0,300::'; expected"),
        ("a:0,0,0::\nb:::\n", "line 2: 'b:::'; expected"),
        ("a:0,0,0::\na:0,0,1::\n", "line 2: 'a' is in line 1 too"),
        ("a:0,0,0::\nb:0,0,0::\n", r"line 2: \[0, 0, 0\] is in line 1 too"),
        ("a:0,0,0::\n", "1 classes"),
        ("".join(f"c{i}:{i % 256},{i // 256},0::\n" for i in range(300)), "300 classes"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *case) for name, cases in WRONG_TEXT.items() for case in cases]
)
def test_a_wrong_list_of_names_is_named_with_its_line(tmp_path, name, content, message):
    folder(tmp_path, 0, 1)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"(?s){name}:.*{message}"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Pixel Value, Class\n0, a\nx, b\n", "line 3: 'x, b'; expected a value of 0 to 65535 and a name"),
        ("Pixel Value, Class\n0, a\n1,\n", "line 3: '1,'; expected a value"),
        ("Pixel Value, Class\n0, a\n0, b\n", "line 3: 'value 0' is in line 2 too"),
        ("Pixel Value, Class\n0, a\n1, a\n", "line 3: 'a' is in line 2 too"),
        ("", "0 classes"),
    ],
)
def test_a_wrong_classes_csv_is_named_with_its_line(tmp_path, content, message):
    for split in ("train", "valid"):
        save(tmp_path / split / "0.jpg", scene(0)[0])
        save(tmp_path / split / "0_mask.png", scene(0)[1])
        (tmp_path / split / "_classes.csv").write_text(content)
    with pytest.raises(ValueError, match=f"(?s)train._classes.csv:.*{message}"):
        load(tmp_path, "train")


def test_a_table_of_ade20k_with_other_rows_is_refused(tmp_path):
    for part in ("training", "validation"):
        save(tmp_path / "images" / part / "a.jpg", scene(0)[0])
        save(tmp_path / "annotations" / part / "a.png", scene(0)[1])
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(ValueError, match=r"objectInfo150.txt: 1 classes below its first line; expected 150"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    ("names", "values"),
    [
        ({"classes": ["square", "stripe"]}, (1, 2)),
        ({"classes": ["noise", "square", "stripe"], "ignore_index": 255}, (0, 1, 2)),
        ({"classes": {"0": "noise", "1": "square", "2": "stripe"}}, (0, 1, 2)),
        ({"classes": ["noise", "square", "stripe"], "ignore_index": None}, (0, 1, 2)),
    ],
)
def test_in_ade20ks_layout_0_is_ignored_unless_names_say_otherwise(tmp_path, names, values):
    for part in ("training", "validation"):
        save(tmp_path / "images" / part / "a.jpg", scene(0)[0])
        save(tmp_path / "annotations" / part / "a.png", scene(0)[1])
    (tmp_path / "classes.json").write_text(json.dumps(names))
    assert load(tmp_path, "val").labels.values == load(tmp_path, "train").labels.values == values


# -- classes by name -----------------------------------------------------------------------------


def test_classes_in_another_order_are_the_same_classes(tmp_path):
    first = load(mask_folder(tmp_path / "a"), "val")
    turned = {"classes": {"2": "stripe", "1": "square", "0": "noise"}}
    other = load(mask_folder(tmp_path / "b"), "val")
    (tmp_path / "b" / "classes.json").write_text(json.dumps(turned))
    same = load(tmp_path / "b", "val").in_order_of(("stripe", "noise", "square"), "the run")
    assert same.classes == same.images.classes == ("stripe", "noise", "square")
    swapped = np.array([1, 2, 0, *[255] * 253], np.uint8)[first.mask(0)]
    assert np.array_equal(same.mask(0), swapped) and np.array_equal(other.mask(0), first.mask(0))
    assert same.palette[0] == first.palette[2] and same.labels.values == (2, 0, 1)


# -- names that do not say enough, or too much -----------------------------------------------------


def ade(root, *values, names=None, val=None, json_names=None):
    for split, held in (("training", values), ("validation", val or values)):
        for i in range(3):
            save(root / "images" / split / f"{i}.png", scene(i)[0][:30, :40])
            save(root / "annotations" / split / f"{i}.png", striped(*held))
    if names:
        (root / "classes.txt").write_text("\n".join(names))
    if json_names:
        (root / "classes.json").write_text(json.dumps(json_names))
    return root


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((0, 1, 2), ("background", "crack", "spall", "rust", "rebar")),
        ((0, 1, 2), ("sky", "road", "tree")),
        ((1, 2), ("sky", "road", "tree", "car")),
        ((0, 1, 2, 3), ("background", "crack", "spall")),
    ],
)
def test_names_in_ade20ks_folders_that_do_not_say_what_0_is_are_refused(tmp_path, values, names, split):
    ade(tmp_path, *values, names=names, val=(*values, 4))
    with pytest.raises(ValueError, match=rf"classes.txt: {len(names)} names, but nothing says what 0 is") as found:
        load(tmp_path, split)
    assert '"ignore_index": 255} if 0 is ' in str(found.value)


def test_names_in_ade20ks_folders_that_fit_or_say_what_0_is_are_read(tmp_path):
    found = load(ade(tmp_path / "fit", 0, 1, 2, 3, names=("sky", "road", "tree")), "train")
    assert found.labels.values == (1, 2, 3) and found.labels.ignored == (0, 255)
    for ignored, values in ((255, (0, 1, 2, 3)), (0, (1, 2, 3, 4)), (None, (0, 1, 2, 3))):
        said = {"classes": ["background", "crack", "spall", "rust"], "ignore_index": ignored}
        found = load(ade(tmp_path / str(ignored), 0, 1, 2, json_names=said), "train")
        assert found.labels.values == values
    full = tuple(f"class {i}" for i in range(150))
    assert load(ade(tmp_path / "full", 0, 1, 2, names=full), "train").labels.values == tuple(range(1, 151))


PAIRS = {
    "order": ("classes.txt", "a\nb\nc", "classes.json", '{"classes": ["a", "c", "b"]}'),
    "values": ("classes.txt", "0: a\n1: b\n2: c", "classes.json", '{"classes": {"0": "a", "2": "b", "1": "c"}}'),
    "ignored": ("labelmap.txt", "a:0,0,0::\nb:1,1,1::\nc:2,2,2::", "classes.json",
                '{"classes": ["a", "b", "c"], "ignore_index": 0}'),
    "colours": ("class_dict.csv", "name,r,g,b\nb,0,0,0\na,1,1,1\nc,2,2,2", "class_names.txt", "a\nb\nc"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_two_lists_of_classes_that_do_not_agree_are_refused_with_both(tmp_path, name):
    first, one, second, other = PAIRS[name]
    folder(tmp_path, 0, 1, 2)
    (tmp_path / first).write_text(one), (tmp_path / second).write_text(other)
    with pytest.raises(ValueError, match="do not agree .*; correct one of them, or remove it") as found:
        load(tmp_path, "train")
    assert first in str(found.value) and second in str(found.value)


def test_two_lists_of_classes_that_agree_are_read(tmp_path):
    folder(tmp_path, 0, 1, 2, names="a\nb\nc")
    (tmp_path / "classes.json").write_text('{"classes": {"0": "a", "1": "b", "2": "c"}, "ignore_index": 255}')
    (tmp_path / "labelmap.txt").write_text("a:0,0,0::\nb:128,0,0::\nc:0,128,0::\n")
    assert load(tmp_path, "train").classes == ("a", "b", "c")
    colours = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
    save(tmp_path / "masks" / "train" / "0.png", colours[striped(0, 1, 2)])
    assert np.array_equal(load(tmp_path, "train").mask(0), striped(0, 1, 2))


def test_a_list_of_classes_that_is_a_link_to_nothing_is_named(tmp_path):
    folder(tmp_path, 0, 1, 2)
    (tmp_path / "classes.json").symlink_to(tmp_path / "annex" / "x")
    with pytest.raises(ValueError, match="classes.json: .*cannot be read"):
        load(tmp_path, "train")


def test_classes_under_two_names_are_told_or_refused(tmp_path, caplog):
    folder(tmp_path, 0, 1, 2, names="a\nA\nb")
    assert load(tmp_path, "train").classes == ("a", "A", "b")
    assert "classes.txt: are these one class each? 'a' and 'A'" in caplog.text
    folder(tmp_path, 0, 1, 2, names="1: 1\n0: 01\n2: b")
    with pytest.raises(ValueError, match="classes.txt: classes under two names each: '01' and '1'"):
        load(tmp_path, "train")
