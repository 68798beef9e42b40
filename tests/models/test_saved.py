"""Networks by name, with the weights of a file, of a run, or of the package."""

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from secvit.models import saved
from secvit.models.convert import heads_of, to_authors
from secvit.models.saved import device_of, load_model

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
    assert type(load_model(None, tmp_path)) is type(model)
    with pytest.raises(ValueError, match="is a run of secvit_nano, not of secvit_tiny"):
        load_model("secvit_tiny", tmp_path)
    tagged = load_model("secvit_nano.cifar10", tmp_path)  # tags say where weights come from, and change no network
    assert torch.equal(tagged.stem[0].weight, model.stem[0].weight)


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


@pytest.mark.parametrize("wrong", [
    {"args": {"nonsense": 1}}, {"args": {"depth": -1}}, {"args": {"embed_dim": "x"}}, {"args": {"drop_path_rate": 2}},
    {"args": {"features_only": True}}, {"args": {"checkpoint_path": "x.pth"}}, {"patch": {"nonsense": 1}},
    {"patch": {"num_clusters": "x"}}, {"patch": {"layers": 3, "num_clusters": 2}},
])  # fmt: skip
def test_arguments_of_a_config_that_make_no_network_are_refused_with_its_file(tmp_path, wrong):
    model = timm.create_model("test_vit", num_classes=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"name": "test_vit", **wrong}}))
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.yaml: "):
        load_model("test_vit", tmp_path)


@pytest.mark.parametrize("option", ["depths", "embed_dims", "num_heads", "layer_scale"])
def test_a_stage_too_few_or_too_many_is_refused(option):
    for given in ([1, 1, 1], [1] * 5):
        with pytest.raises(ValueError, match=rf"{option}=.*a value for each of the stages"):
            timm.create_model("secvit_nano", **{option: given})


@pytest.mark.parametrize("name", ["mps", "xpu", "gpu", "cuda:77"])
def test_a_device_that_is_not_there_is_named(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(ValueError, match=f"device '{name}' is not there"):
        device_of(name)
    assert device_of("cpu").type == "cpu"
