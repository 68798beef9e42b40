"""benchmarks/fidelity.py, on a small network with random weights."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture
def run(tmp_path, monkeypatch, benchmarks):
    """`fidelity.main` with a small network and two photos: words of the command -> the result."""
    import fidelity

    torch.manual_seed(0)
    create = timm.create_model
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**options, **small}))
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    photos = [tmp_path / f"{i}.png" for i in range(2)]
    for i, photo in enumerate(photos):
        Image.linear_gradient("L").rotate(90 * i).save(photo)

    def run(*words, title="fidelity"):
        about = ["--network", "vit_tiny_patch16_224", "--size", 32, "--results", tmp_path / "results"]
        fidelity.main([str(word) for word in (tmp_path / "w.safetensors", *photos, *about, *words)])
        (file,) = (tmp_path / "results").glob(f"{title}.32_*.json")
        result = json.loads(file.read_text())
        assert result["commit"] and result["recipe"]["photos"] == ["0.png", "1.png"]
        return result

    return run


def test_a_run_compares_and_times_every_variant_that_is_asked_for(run, tmp_path):
    names = ["sec", "tree, near and far", "tree, near and far, one order for 2 layers"]
    names += ["tokens merged to 50%", "image of 75% of the side"]
    result = run("--clusters", 4, "--rounds", 1, "--only", *names)
    assert [row["variant"] for row in result["rows"]] == names == list(result["speed"][0]["speeds"])
    assert all(len(row["patches"]) == 2 for row in result["rows"])
    alone, near = (sum(row["patches"]) for row in result["rows"][:2])
    assert near > alone  # clusters that see each other are nearer to full attention
    import fidelity_picture

    with Image.open(fidelity_picture.draw_fidelity(result, tmp_path / "fidelity.png")) as drawn:
        assert drawn.width == 1950
    with pytest.raises(ValueError, match="no times in this result"):
        fidelity_picture.draw_fidelity({**result, "speed": []}, tmp_path / "none.png")


def test_a_run_says_what_each_connector_keeps_of_the_tokens(run):
    rows = run("--tokens", 4, 64, title="connector-fidelity")["rows"]
    assert [row["tokens"] for row in rows].count(4) == len(rows) / 2
    kept = {row["connector"]: row["kept"] for row in rows if row["tokens"] == 4}
    for tree, random in zip(kept["tree"], kept["random groups"], strict=True):
        assert 0 < random < tree < 1
    assert all(row["kept"] == pytest.approx([1, 1]) for row in rows if row["tokens"] == 64)  # of 64: none is merged


def test_an_index_explains_its_place_where_that_is_the_same_in_all_photos(run):
    import fidelity

    places = torch.rand(1, 5, 2)
    assert fidelity.place_explained(places.expand(3, -1, -1)) == pytest.approx([1, 1])
    assert fidelity.place_explained(torch.cat([places, -places])) == pytest.approx([0, 0])


def test_variance_kept_is_that_between_groups(run):
    import fidelity

    tokens = torch.randn(6, 3)
    weights = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.25, 0.25, 0.25, 0.25]])
    within = sum(((part - part.mean(dim=0)) ** 2).sum() for part in (tokens[:2], tokens[2:]))
    total = ((tokens - tokens.mean(dim=0)) ** 2).sum()
    assert fidelity.variance_kept(tokens, weights) == pytest.approx(float(1 - within / total), abs=1e-6)
