"""benchmarks/fidelity.py, on a small network with random weights."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


def test_a_run_compares_and_times_every_variant_that_is_asked_for(tmp_path, monkeypatch):
    if not (BENCHMARKS / "fidelity.py").is_file():
        pytest.skip(f"no {BENCHMARKS}: run from a checkout")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fidelity
    import fidelity_picture

    torch.manual_seed(0)
    create = timm.create_model
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**options, **small}))
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    photos = [tmp_path / f"{i}.png" for i in range(2)]
    for i, photo in enumerate(photos):
        Image.linear_gradient("L").rotate(90 * i).save(photo)
    names = ["sec", "tree, near and far", "tree, near and far, one order for 2 layers"]
    words = [tmp_path / "w.safetensors", *photos, "--network", "vit_tiny_patch16_224", "--size", 32, "--clusters", 4]
    words += ["--rounds", 1, "--results", tmp_path / "results", "--only", *names]
    fidelity.main([str(word) for word in words])
    (file,) = (tmp_path / "results").glob("fidelity.32_*.json")
    result = json.loads(file.read_text())
    assert [row["variant"] for row in result["rows"]] == names == list(result["speed"][0]["speeds"])
    assert all(len(row["patches"]) == 2 for row in result["rows"])
    alone, near = (sum(row["patches"]) for row in result["rows"][:2])
    assert near > alone  # clusters that see each other are nearer to full attention
    assert result["commit"] and result["recipe"]["photos"] == ["0.png", "1.png"]
    with Image.open(fidelity_picture.draw_fidelity(result, tmp_path / "fidelity.png")) as drawn:
        assert drawn.width == 1950
    with pytest.raises(ValueError, match="no times in this result"):
        fidelity_picture.draw_fidelity({**result, "speed": []}, tmp_path / "none.png")
