"""What is meant is converted, all else is named."""

from __future__ import annotations

import types

import pytest

from secvit import fields
from secvit.fields import Entry, Faults, Wrong, read_bytes, read_json, read_yaml, within


@pytest.mark.parametrize(
    ("read", "value", "meant"),
    [
        (fields.integer, "3", 3),
        (fields.integer, 640.0, 640),
        (fields.number, "1.5", 1.5),
        (fields.flag, "0", False),
        (fields.flag, "true", True),
        (fields.identity, "7", 7),
        (fields.identity, "frame_1", "frame_1"),
        (fields.text, 5, "5"),
        (fields.numbers, ["1", 2], [1.0, 2.0]),
    ],
)
def test_numbers_written_as_text_are_numbers(read, value, meant):
    assert read(value) == meant
    assert type(read(value)) is type(meant)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        *((fields.integer, value) for value in ("a", 3.5, True, None, float("inf"), "nan", 2**60, [1], 10**400)),
        *((fields.number, value) for value in (float("nan"), "1e999", 10**400, "", {}, "1" * 500)),
        *((fields.flag, value) for value in (2, "yes", -1, [])),
        *((fields.identity, value) for value in ([1], None, "", 1.5, {})),
        *((fields.text, value) for value in ("", " ", None, [], True)),
        *((fields.numbers, value) for value in (None, 1, [None], [[1]], "12")),
    ],
)
def test_what_cannot_be_meant_is_wrong(read, value):
    with pytest.raises(Wrong):
        read(value)


def test_an_error_names_entry_field_value_and_what_is_wanted():
    entry = Entry("annotation 918", {"id": "x", "note": None})
    with pytest.raises(ValueError, match=r"annotation 918: id is 'x', expected a number"):
        entry.get("id", fields.integer)
    with pytest.raises(ValueError, match="annotation 918: no 'bbox'"):
        entry.get("bbox", fields.numbers)
    assert entry.get("note", fields.text, "") == ""
    with pytest.raises(ValueError, match=r"image 2: \[1\], expected an object"):
        Entry("image 2", [1])


def test_all_faults_of_a_file_are_told_at_once_the_first_twenty_by_name():
    faults = Faults("a.json")
    faults.check()
    for i in range(23):
        faults.add(f"annotation {i}: empty")
    with pytest.raises(ValueError, match=r"(?s)a\.json:.*annotation 19: empty\n  and 3 more\nRepair them"):
        faults.check("Repair them")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"9" * 10_000, "not readable JSON|giant|not JSON"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    if content.startswith(b"9"):
        try:  # Python 3.10 has no limit of digits
            read_json(path)
        except ValueError as error:
            assert str(path) in str(error)
        return
    with pytest.raises(ValueError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "not readable YAML"),
        ("a: &a [*a]", "line 1 contains itself"),
        ("&a {b: {c: *a}}", "line 1 contains itself"),
        (BOMB, "more than 1,000,000 values"),
        ("[" * 10_000, "nested too deeply|not readable"),
        ("optim:\n  lr: 1\n  lr: 2\n", "line 3: 'lr' a second time"),
        ("day: 2020-99-99", "not readable YAML"),
        ("day: !!timestamp x", "not readable YAML"),
        ("x: !!int ''", "not readable YAML"),
        ("x: !!python/object/apply:os.system ['true']", "not readable YAML"),
    ],
)
def test_a_yaml_that_cannot_be_used_is_named_at_once(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_a_yaml_may_use_what_it_has_named(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, 1: 2, '1': 3}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": [{"x": 1}] * 2, "c": {"x": 1, 1: 2, "1": 3}}
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "a.yaml") is None


@pytest.mark.parametrize(("value", "fits"), [(0, True), (1.0, True), ((0.1, 1), True), (None, True), (-0.1, False),
                                             (float("nan"), False), ((0, 2), False)])  # fmt: skip
def test_numbers_of_a_recipe_lie_within_their_range(value, fits):
    config = types.SimpleNamespace(part=value)
    if fits:
        within(config, 0, 1, "part")
    else:
        with pytest.raises(ValueError, match=r"part=.*; choose 0 to 1"):
            within(config, 0, 1, "part")


def test_only_regular_files_are_read(tmp_path):
    for path in ("/dev/zero", tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(ValueError):
            read_bytes(path)
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a") == b"12345"
    with pytest.raises(ValueError, match="more than the 4"):
        read_bytes(tmp_path / "a", 4)


def test_a_key_that_stands_twice_is_refused_with_both_values(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": [1, {"b": 2, "c": 3, "b": 4}]}')
    with pytest.raises(
        ValueError, match=r"a.json: not readable JSON \('b' stands twice in one object, as 2 and 4; keep"
    ):
        read_json(file)
    file.write_text('{"a": [1, {"b": 2, "c": {"b": 4}}, {"b": 4}]}')
    assert read_json(file) == {"a": [1, {"b": 2, "c": {"b": 4}}, {"b": 4}]}
