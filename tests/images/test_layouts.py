"""The trees of docs/data.md, built and read."""

import importlib.util
import re
import shlex

import pytest
from PIL import Image

from secvit import recipes
from secvit.images import EXTENSIONS, load_split, read_image, sources, splits, upright_size
from tests.conftest import ROOT
from tests.images.make import make_image, pack, samples, save, shard

TEXT = (ROOT / "docs" / "data.md").read_text()
SECTIONS = {
    title: body for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
}
LAYOUTS = [title for title, body in SECTIONS.items() if "```console" in body]


def block(kind, body):
    found = re.search(rf"```{kind}\n(.*?)```", body, re.DOTALL)
    return found[1] if found else ""


def paths(tree):
    """The files of a tree, an indent of two spaces a level; names behind a folder lie in it."""
    folders = []
    for line in tree.splitlines():
        level = (len(line) - len(line.lstrip())) // 2
        first, *others = line.split()
        folders[level:] = [first] if first.endswith("/") else []
        names = others if first.endswith("/") else [first, *others]
        yield from ("".join(folders) + name for name in names if name != "...")


def parquet(path):
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets: pip install datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    image = str(save(path.parent.parent.parent / "source.png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": [image] * 4, "label": [0, 1] * 2}, features=kinds).to_parquet(path)


def build(root, body):
    for name in paths(block("text", body)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in EXTENSIONS:
            save(path)
        elif path.suffix == ".csv":
            path.write_text(block("csv", body))
        elif path.suffix == ".tar":
            shard(path, samples([0, 1] * 4))
        elif path.suffix == ".npz":
            pack(path, [0, 1] * 4, ("cat", "dog"))
        elif path.suffix == ".parquet":
            parquet(path)
        else:
            path.write_text("cat\ndog\n")


@pytest.mark.parametrize("title", LAYOUTS)
def test_layout_of_the_page_is_read_by_its_command(title, tmp_path, monkeypatch):
    body = SECTIONS[title]
    if importlib.util.find_spec("datasets"):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    build(tmp_path, body)
    monkeypatch.chdir(tmp_path)
    _, _, recipe, _, data = shlex.split(block("console", body))
    assert callable(recipes.find(recipe))
    said = re.search(r"^Splits: (.+)\.$", body, re.MULTILINE)[1].split(", ")
    assert list(splits(data)) == said
    parts = [load_split(data, split) for split in said]
    assert all(len(part) and part.classes == parts[0].classes for part in parts)
    assert parts[0].image(0).mode == "RGB" and len(parts[0].classes) in (2, 10)


def test_page_has_every_kind_of_source():
    assert len(LAYOUTS) == 10
    for kind in ("wds/", "hfds/", ".csv", ".npz", "digits"):
        assert f"`{kind}" in TEXT.replace("FILE", "") and kind in (sources.__doc__ or "")


def test_links_of_the_page_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in SECTIONS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors


def test_page_names_the_extensions_that_are_read():
    named = re.search(r"Pillow reads \(`(.*?)`", TEXT, re.DOTALL)[1].split()
    assert tuple(named) == EXTENSIONS


Image.init()
WRITTEN = [ending for ending in EXTENSIONS if Image.registered_extensions().get(ending) in Image.SAVE]


@pytest.mark.filterwarnings("ignore:.*image format is deprecated:DeprecationWarning")
@pytest.mark.parametrize("extension", WRITTEN)
def test_images_of_every_extension_that_pillow_writes_can_be_read(extension, tmp_path):
    image = make_image(0, (16, 16))
    for mode in ("RGB", "P", "L", "1"):  # some formats keep few modes
        try:
            image.convert(mode).save(tmp_path / f"x{extension}")
        except (OSError, ValueError, KeyError):
            continue
        found = read_image(tmp_path / f"x{extension}")
        assert found.mode == "RGB" and upright_size(tmp_path / f"x{extension}") == found.size
        return
    pytest.fail("no mode can be written")
