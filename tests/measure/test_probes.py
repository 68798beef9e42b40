"""benchmarks/probes.py, on a small network with random weights."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture
def probes(monkeypatch, benchmarks):
    import probes

    create = timm.create_model
    small = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**options, **small}))
    return probes


@pytest.fixture
def words(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    words = ["--network", "vit_tiny_patch16_224", "--size", "32", "--clusters", "4", "--results", str(tmp_path / "out")]
    return [str(tmp_path / "w.safetensors"), "TASK", str(tmp_path / "data"), *words, "--only"]


def results(tmp_path):
    (file,) = (tmp_path / "out").glob("probes.data.32*_*.json")
    return {row["variant"]: row for row in json.loads(file.read_text())["rows"]}


def test_a_probe_of_classes_meets_every_variant(probes, words, tmp_path):
    for split in ("train", "val"):
        for i, name in enumerate(("dark", "light")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for j in range(4):
                value = 180 * i + 10 * j + (split == "val")
                Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / "data" / split / name / f"{j}.png")
    words[1] = "classes"
    probes.main([*words, "random", "image of 50% of the side", "--refit"])
    rows = results(tmp_path)
    assert list(rows) == ["unpatched", "random", "image of 50% of the side"]
    assert rows["unpatched"]["frozen"] == rows["unpatched"]["refitted"]
    assert rows["unpatched"]["frozen"]["score"] == 1 and rows["unpatched"]["same"] == 1
    assert rows["random"]["refitted"]["score"] == 1


def test_a_probe_of_masks_meets_every_variant(probes, words, tmp_path):
    for split in ("train", "val"):
        for folder in (split, f"{split}_label"):
            (tmp_path / "data" / folder).mkdir(parents=True)
        for j in range(3):
            mask = np.zeros((32, 32), np.uint8)
            mask[:, : 8 * (j + 1)] = 1
            Image.fromarray(mask * 200).convert("RGB").save(tmp_path / "data" / split / f"{j}.png")
            Image.fromarray(mask).save(tmp_path / "data" / f"{split}_label" / f"{j}.png")
    words[1] = "masks"
    words[words.index("--size") + 1 : words.index("--clusters")] = ["32", "48"]  # windows need its height and width
    probes.main([*words, "tree, near and far", "window"])
    rows = results(tmp_path)
    assert rows["unpatched"]["frozen"]["score"] > 0.95
    low, high = rows["tree, near and far"]["frozen"]["difference"]["interval"]
    assert low <= rows["tree, near and far"]["frozen"]["difference"]["mean"] <= high


def test_shares_of_a_mask_leave_out_what_has_no_class(probes):
    mask = np.array([[0, 1, 255, 255], [0, 0, 255, 1]], np.uint8)
    shares = probes.ByMask.shares(mask, 2, torch.Size((1, 2)))
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0.25], [0, 0.25]]))
