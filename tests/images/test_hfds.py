import importlib.util
import pickle
import sys

import numpy as np
import pytest

from secvit.images import load_split, splits
from tests.images.make import folder, make_image

if found := importlib.util.find_spec("datasets"):
    import datasets
needs_datasets = pytest.mark.skipif(not found, reason="needs Hugging Face datasets: pip install datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    if found:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(labels, names=("cat", "dog"), image="image", label="label", first=0):
    kind = datasets.ClassLabel(names=list(names)) if names else None
    content = {image: [make_image(i + first) for i in range(len(labels))], label: labels}
    kinds = {
        image: datasets.Image(),
        label: kind or datasets.Value("int64" if isinstance(labels[0], int) else "string"),
    }
    return datasets.Dataset.from_dict(content, features=datasets.Features(kinds))


def parquet(root, **parts):
    for split, part in parts.items():
        (root / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return f"hfds/{root}"


def card(root, parts):
    """A folder whose README names the splits, as data sets on the Hub do."""
    root.mkdir()
    for split, part in parts.items():
        part.to_parquet(root / f"{split}.parquet")
    files = [f"  - split: {split}\n    path: {split}.parquet" for split in parts]
    (root / "README.md").write_text(
        "\n".join(["---", "configs:", "- config_name: default", "  data_files:", *files, "---"])
    )
    return f"hfds/{root}"


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"hfds/timm/pets needs datasets; run: pip install datasets"):
        load_split("hfds/timm/pets")


@needs_datasets
def test_splits_classes_and_images_of_a_parquet_folder(tmp_path):
    data = parquet(tmp_path, train=rows([1, 0, 1]), validation=rows([1], first=5), test=rows([0], first=6))
    assert splits(data) == ("train", "val", "test")
    images, val = load_split(data, "train"), load_split(data, "val")
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [1, 0, 1] and val.labels.tolist() == [1]
    again = pickle.loads(pickle.dumps(images))  # as for loading processes that are spawned
    for i in (2, 0, 1):
        np.testing.assert_array_equal(np.asarray(again.image(i)), np.asarray(make_image(i)))
    np.testing.assert_array_equal(np.asarray(val.image(0)), np.asarray(make_image(5)))
    assert images.names[2] == f"{data}/train[2]"


@needs_datasets
def test_datasets_saved_to_disk_and_image_folders_are_read(tmp_path):
    rows([0, 1] * 20).save_to_disk(tmp_path / "one")
    parts = [load_split(f"hfds/{tmp_path}/one", s) for s in ("train", "val")]
    assert [len(p) for p in parts] == [34, 6]
    assert parts[1].image(0).tobytes() == make_image(int(parts[1].names[0].split("[")[1][:-1])).tobytes()
    datasets.DatasetDict(train=rows([0, 1]), validation=rows([1])).save_to_disk(tmp_path / "two")
    assert load_split(f"hfds/{tmp_path}/two", "val").labels.tolist() == [1]
    for split in ("train", "val"):
        folder(tmp_path / "three" / split)
    images = load_split(f"hfds/{tmp_path}/three", "val")
    assert images.classes == ("cat", "dog") and images.image(7).size == (20, 16)


@needs_datasets
def test_columns_are_found_by_type_and_labels_without_names_are_numbered(tmp_path):
    named = parquet(tmp_path / "a", train=rows([1, 0], image="img", label="fine"))
    assert load_split(named).classes == ("cat", "dog")
    numbers = parquet(tmp_path / "b", train=rows([10, 9] * 5, None), test=rows([10], None))
    assert load_split(numbers).classes == ("9", "10") and load_split(numbers, "test").labels.tolist() == [1]
    words = parquet(tmp_path / "c", train=rows(["x", "y"], None), test=rows(["z"], None))
    with pytest.raises(ValueError, match=r"test\[0\]: class 'z', which train lacks"):
        load_split(words, "test")


@needs_datasets
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path):
    unlabelled = parquet(tmp_path / "a", train=rows([0, 1]), test=rows([-1, -1, 1]))
    with pytest.raises(ValueError, match=r"test\[0\]: label -1, outside 0..1 \(2 such rows of 3\); a split without"):
        load_split(unlabelled, "test")
    with pytest.raises(ValueError, match="has no split 'val', only train, test"):
        load_split(unlabelled, "val")
    with pytest.raises(ValueError, match="no split train, only test"):
        load_split(parquet(tmp_path / "b", test=rows([0, 1])))
    with pytest.raises(ValueError, match="0 columns of images among image, label"):
        part = rows([0, 1]).cast_column("image", {"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
        part.save_to_disk(tmp_path / "c")
        load_split(f"hfds/{tmp_path}/c")
    with pytest.raises(ValueError, match=r"hfds/no/such cannot be opened: .*give hfds/ and a name on the Hub"):
        load_split("hfds/no/such")
    (tmp_path / "a" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(ValueError, match=r"hfds/\S+/a cannot be opened: "):
        load_split(unlabelled)


@needs_datasets
def test_broken_image_of_a_row_is_named_when_it_is_read(tmp_path):
    part = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"x", "path": None}, None], "label": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}),
    )
    images = load_split(parquet(tmp_path, train=part, test=part), "train")
    with pytest.raises(ValueError, match=r"train\[0\]: not an image"):
        images.image(0)
    with pytest.raises(ValueError, match=r"train\[1\]: no image in this row"):
        images.image(1)


@needs_datasets
def test_splits_are_found_by_every_word_and_two_for_one_are_refused(tmp_path, caplog):
    parts = {"Train": rows([0, 1]), "dev": rows([1]), "extra": rows([0])}
    data = card(tmp_path / "a", parts)
    assert splits(data) == ("train", "val") and len(load_split(data, "val")) == 1
    assert "splits that are not used: extra" in caplog.text
    with pytest.raises(ValueError, match=r"validation is a second val; keep one of them \(dev, validation\)"):
        load_split(card(tmp_path / "b", {**parts, "validation": rows([1])}))


@needs_datasets
def test_labels_of_another_type_are_refused(tmp_path):
    part = rows([0, 1], None).cast_column("label", datasets.Value("float32"))
    with pytest.raises(ValueError, match=r"train\[0\]: label 0.0; expected a class number or a name"):
        load_split(parquet(tmp_path, train=part, test=part), "train")


@needs_datasets
def test_files_that_name_the_classes_in_other_orders_are_refused_with_both(tmp_path):
    where = parquet(tmp_path, train=rows([0, 1] * 2), validation=rows([0, 1], ("dog", "cat")))
    message = r'validation-\S+parquet: the classes of .label. are \["dog", "cat"\], but \["cat", "dog"\] in \S+train-'
    with pytest.raises(ValueError, match=message):
        load_split(where)


@needs_datasets
def test_images_that_metadata_does_not_name_are_counted(tmp_path, caplog):
    for i in range(5):
        (tmp_path / "train").mkdir(exist_ok=True)
        make_image(i).save(tmp_path / "train" / f"{i}.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n2.png,cat\n")
    assert sum(len(load_split(f"hfds/{tmp_path}", split)) for split in ("train", "val")) == 3
    assert "train: used 3 of 5 images; left out: 2 not named in metadata.csv" in caplog.text
