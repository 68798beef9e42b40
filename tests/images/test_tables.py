import pytest

from secvit.images import load_split, splits
from tests.images.make import save, table


def rows(count=10):
    return [f"{label}/{i}.png,{label}" for label in ("dog", "cat") for i in range(count)]


def test_undivided_table_gives_its_own_labels_and_a_fixed_held_out_part(tmp_path):
    data = table(tmp_path / "all.csv", rows(20))
    train, val = load_split(data, "train"), load_split(str(data), "val")
    assert splits(data) == ("train", "val") and train.classes == ("cat", "dog")
    assert not set(train.names) & set(val.names) and val.labels.bincount().tolist() == [3, 3]
    assert train.image(0).size == (20, 16)
    for images in (train, val):
        assert all(images.classes[n] in name for n, name in zip(images.labels, images.names, strict=True))


def test_held_out_part_does_not_depend_on_where_the_table_lies(tmp_path):
    parts = [load_split(table(tmp_path / where / "all.csv", rows()), "val") for where in ("a", "b/c")]
    assert [n.rpartition("/")[2] for n in parts[0].names] == [n.rpartition("/")[2] for n in parts[1].names]


def test_column_split_divides_a_table(tmp_path):
    lines = ["1.png,a,train", "2.png,b,train", "3.png,b,validation", "4.png,a,test"]
    data = table(tmp_path / "x.csv", lines, "path,label,split")
    assert splits(data) == ("train", "val", "test")
    assert [load_split(data, s).labels.tolist() for s in splits(data)] == [[0, 1], [1], [0]]
    assert load_split(data, "val").classes == ("a", "b")


def test_folder_of_tables_with_tabs_other_columns_and_absolute_paths(tmp_path):
    table(tmp_path / "train.tsv", ["0\t1.png\ta b", "1\t2.png\tc"], "id\tpath\tlabel", images=False)
    far = save(tmp_path / "elsewhere" / "3.png")
    table(tmp_path / "valid.csv", [f'"{far}","a b"'], images=False)
    for name in ("1.png", "2.png"):
        save(tmp_path / name)
    assert load_split(tmp_path, "train").classes == ("a b", "c")
    assert load_split(tmp_path, "val").names == (str(far),)


def test_numbers_are_ordered_by_value_and_names_by_alphabet(tmp_path):
    data = table(tmp_path / "x.csv", [f"{n}{i}.png,{n}" for n in (10, 9, 100) for i in range(3)])
    assert load_split(data).classes == ("9", "10", "100")
    data = table(tmp_path / "y.csv", [f"{n}{i}.png,{n}" for n in ("b", "10", "9") for i in range(3)])
    assert load_split(data).classes == ("10", "9", "b")


def test_table_saved_by_a_spreadsheet_is_read(tmp_path):
    save(tmp_path / "é.png"), save(tmp_path / "2.png")
    (tmp_path / "x.csv").write_bytes("\ufeffpath,label\r\né.png,ä\r\n\r\n2.png, b\r\n".encode())
    assert set(load_split(tmp_path / "x.csv").classes) == {"ä", "b"}


BAD = [
    ("label\na", r"x.csv, line 1: no column 'path', only 'label'; the first line must name path, label"),
    ("path|label\n1.png|a", r"line 1: no column 'path', only 'path\|label'.*separated by commas"),
    ("path,label;split\n1.png,a;train", r"line 1: no column 'label', only 'path', 'label;split'"),
    ("path,Label,LABEL\n1.png,a,b", r"line 1: 2 columns are called 'label'; keep one"),
    ("sep=;\npath;label\n1.png;a\n2.png;", r"x.csv, line 4: empty label"),
    ("", r"line 1: no column 'path', only nothing"),
    ("path,label\n", r"x.csv: no rows"),
    ("path,label\n1.png,a\n2.png,", r"x.csv, line 3: empty label; fill it in or remove"),
    ("path,label\n1.png,a\n2.png", r"x.csv, line 3: empty label"),
    ("path,label\n,a", r"x.csv, line 2: empty path"),
    ("path,label,split\n1.png,a,train\n2.png,b,held", r"line 3: split 'held'; expected one of train, training, val"),
    ("path,label,split\n1.png,a,val\n2.png,b,val", r"x.csv: has val but no train"),
    ("path,label\n1.png,a\n2.png,a", r"x.csv, line 2: all 2 images are of class 'a'; expected at least two"),
    ("path,label\n1.png,-1\n2.png,0", r"x.csv, line 2: label -1, but classes count from 0"),
    ("path,label\n1.png,a\n2.png,b\n1.png,b", r"1.png is 'a' in line 2 and 'b' in line 4"),
    (
        "path,label\n1.png,a\n8.png,b\n2.png,b\nd/9.png,a",
        r"2 of 4 files do not exist: \S+8.png \(line 3\), \S+9.png \(line 5\);",
    ),
    (
        "path,label\n" + "".join(f"no{i}.png,{i}\n" for i in range(5)),
        r"5 of 5 files .*no2.png \(line 4\), \.\.\.; paths are relative to",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=range(len(BAD)))
def test_bad_table_is_refused_with_file_and_line(tmp_path, content, message):
    save(tmp_path / "1.png"), save(tmp_path / "2.png")
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path / "x.csv")


def test_class_that_train_lacks_is_refused_with_its_line(tmp_path):
    table(tmp_path / "train.csv", ["1.png,a", "2.png,b"])
    table(tmp_path / "val.csv", ["3.png,a", "4.png,c"])
    with pytest.raises(ValueError, match=r"val.csv, line 3: class 'c', which train lacks \(1 such entries of 2\)"):
        load_split(tmp_path, "val")


@pytest.mark.parametrize("content", ["path,label\né.png,a\n".encode("latin-1"), b'path,label\n1.png,"' + b"a" * 200000])
def test_file_that_is_no_text_table_is_refused(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.csv: not (UTF-8|a table)"):
        load_split(tmp_path / "x.csv")


def test_one_file_under_two_labels_in_two_splits_is_refused_with_both_lines(tmp_path):
    lines = ["1.png,a,train", "2.png,b,train", "1.png,b,val"]
    data = table(tmp_path / "x" / "all.csv", lines, "path,label,split")
    with pytest.raises(ValueError, match=r"all.csv: .*1.png is 'a' in line 2 and 'b' in line 4; keep one"):
        splits(data)
    table(tmp_path / "y" / "train.csv", ["1.png,a", "2.png,b"])
    table(tmp_path / "y" / "val.csv", [f"{tmp_path}/y/2.png,a"], images=False)
    with pytest.raises(ValueError, match=r"train.csv: .*2.png is 'b' in line 3 and 'a' in .*val.csv, line 2; keep one"):
        load_split(tmp_path / "y")


def test_a_table_whose_name_and_column_name_different_splits_is_refused(tmp_path):
    table(tmp_path / "train.csv", ["1.png,a,test", "2.png,b,test"], "path,label,split")
    with pytest.raises(ValueError, match="train.csv: train by its name, but test by its column 'split'"):
        load_split(tmp_path)


def test_lines_of_other_splits_in_the_table_of_a_split_are_counted(tmp_path, caplog):
    table(tmp_path / "train.csv", ["1.png,a,train", "2.png,b,train", "3.png,b,val"], "path,label,split")
    table(tmp_path / "val.csv", ["4.png,a,val"], "path,label,split")
    assert len(load_split(tmp_path)) == 3
    assert "1 of 3 lines are val by the column 'split', but all are read as train" in caplog.text


SHEETS = {
    "semicolons": "path;label\n1.png;a\n2.png;b,c\n",
    "tabs": "path\tlabel\n1.png\ta\n2.png\tb,c\n",
    "sep": 'sep=;\r\npath;label\r\n1.png;a\r\n2.png;"b,c"\r\n',
    "headings": 'ID,Path,LABEL\n7,1.png,a\n8,2.png,"b,c"\n',
    "empty rows": 'path,label,\n1.png,a,\n,,\n\n2.png,"b,c",\n,,\n',
    "long cell": f'path,label,caption\n1.png,a,{"x" * 200_000}\n2.png,"b,c",y\n',
}


@pytest.mark.parametrize("name", SHEETS)
def test_what_spreadsheets_write_is_read(name, tmp_path):
    save(tmp_path / "1.png"), save(tmp_path / "2.png"), save(tmp_path / "3.png")
    (tmp_path / "train.csv").write_text(SHEETS[name], newline="")
    (tmp_path / "val.csv").write_text("path,label\n3.png,a\n")
    images = load_split(tmp_path)
    assert images.classes == ("a", "b,c") and images.labels.tolist() == [0, 1]
    assert [name.rpartition("/")[2] for name in images.names] == ["1.png", "2.png"]


def test_backslashes_mean_folders_where_there_is_such_a_file(tmp_path):
    data = table(
        tmp_path / "x.csv", ["a\\1.png,x,train", "2\\3.png,y,train", "a/1.png,x,train"], "path,label,split", False
    )
    save(tmp_path / "a" / "1.png"), save(tmp_path / "2\\3.png")
    table(tmp_path / "x.csv", [*data.read_text().split()[1:], "a/4.png,x,val"], "path,label,split", False)
    save(tmp_path / "a" / "4.png")
    assert list(load_split(data).names) == [str(tmp_path / "a/1.png"), str(tmp_path / "2\\3.png")]


def test_two_tables_of_one_split_are_refused_with_both_names(tmp_path):
    table(tmp_path / "train.csv", ["1.png,a", "2.png,b"])
    (tmp_path / "train.tsv").write_text("path\tlabel\n1.png\tb\n2.png\ta\n")
    with pytest.raises(ValueError, match=r"train.tsv is a second train; keep one of them \(train.csv, train.tsv\)"):
        load_split(tmp_path)


def test_a_table_that_speaks_against_the_folders_is_said(tmp_path, caplog):
    table(tmp_path / "x.csv", ["cat/1.png,dog", "dog/2.png,dog", "cat/3.png,cat", "dog/4.png,dog"])
    load_split(tmp_path / "x.csv")
    assert "1 of 4 files lie in a folder of another class" in caplog.text and "is 'dog' in line 2" in caplog.text
