"""Networks by name, with the weights of a file, of a run, or of the package."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from secvit.models import saved
from secvit.models.convert import heads_of, to_authors
from secvit.models.saved import load_model

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "num_heads": [2, 4, 6, 8], "head_hidden_size": 32}


@pytest.fixture
def model():
    return timm.create_model("secvit_nano", **SMALL).eval()


def test_weights_of_a_run_load_with_the_arguments_beside_them(tmp_path, model, monkeypatch):
    monkeypatch.setattr(saved, "fitting_models", lambda _: ["another"])
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit secvit_nano .*; models that it fits: another.* missing"):
        load_model("secvit_nano", tmp_path / "model.safetensors")
    lines = ["model:", "  name: secvit_nano", "  args:", *(f"    {k}: {v}" for k, v in SMALL.items())]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    for path in (tmp_path / "model.safetensors", tmp_path):
        loaded = load_model("secvit_nano", path)
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="models that it fits: secvit_nano"):
        load_model("secvit_tiny", tmp_path)


def test_the_authors_layout_loads(tmp_path):
    model = timm.create_model("secvit_nano", num_classes=7)
    torch.save({"model": to_authors(model.state_dict(), heads_of(model))}, tmp_path / "authors.pth")
    loaded = load_model("secvit_nano", tmp_path / "authors.pth")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_random_weights_are_the_same_every_time_and_touch_no_generator():
    state = torch.get_rng_state()
    first, second = (load_model("secvit_tiny").stem[0].weight for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("name", "checkpoint"), [("secvit_huge", None), ("secvit_nano", "none.safetensors")])
def test_a_model_or_file_that_does_not_exist_is_refused(name, checkpoint):
    with pytest.raises(ValueError, match=r"secvit_huge|none\.safetensors"):
        load_model(name, checkpoint)
