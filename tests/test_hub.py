"""Where the hub cannot be reached, that is said at once, and once; the cache is used as it is."""

import time

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from secvit.hub import hub
from secvit.models.features import FeatureMaps
from secvit.models.saved import create, has_weights


@pytest.fixture
def cut_off(monkeypatch, tmp_path):
    """A hub that refuses connections, and an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_weights_out_of_reach_are_said_at_once(cut_off):
    began = time.monotonic()
    for make in (
        lambda: create("resnet18", 2, {"pretrained": True}),
        lambda: FeatureMaps("resnet18", {"pretrained": True}),
    ):
        with pytest.raises(ValueError, match=r"^resnet18: .*http://127.0.0.1:9 cannot be reached .*with a network$"):
            make()
    assert time.monotonic() - began < 10  # torch and timm included; the hub's own retries are 12 s a file
    assert not constants.HF_HUB_OFFLINE


def test_a_vision_language_model_out_of_reach_is_said_at_once(cut_off):
    pytest.importorskip("transformers")
    from secvit.vlm import load_trained
    from secvit.vlm.initial import from_parts, from_transformers

    began = time.monotonic()
    for load, blamed in (
        (lambda: load_trained("nowhere/llava"), "nowhere/llava"),
        (lambda: from_transformers("nowhere/llava"), "nowhere/llava"),
        (lambda: from_parts("nowhere/language", "nowhere/vision"), "nowhere/language"),
    ):
        with pytest.raises(ValueError, match=f"{blamed}: .* cannot be reached"):
            load()
    assert time.monotonic() - began < 10


def test_what_is_here_is_not_looked_for_elsewhere(cut_off, monkeypatch, tmp_path):
    monkeypatch.setattr("secvit.hub.unreachable", lambda: pytest.fail("asked the hub"))
    with hub(str(tmp_path)):
        assert not constants.HF_HUB_OFFLINE
    assert create("secvit_nano.cifar10", 10, {"pretrained": True}).num_classes == 10
    assert create("resnet18", 2).num_classes == 2


def test_the_cache_is_used_without_a_network(cut_off):
    with hub("some/model"):
        assert constants.HF_HUB_OFFLINE
        with pytest.raises(Exception, match="offline mode"):
            get_session().head("http://127.0.0.1:9")
    assert not constants.HF_HUB_OFFLINE


def test_other_errors_stay_what_they_are(cut_off):
    with pytest.raises(KeyError, match="stem"), hub("some/model"):
        raise KeyError("stem")


def test_weights_that_are_nowhere_are_no_matter_of_the_network():
    for make in (create, lambda name, classes, args: FeatureMaps(name, args)):
        with pytest.raises(ValueError, match="^secvit_small: there are no pretrained weights .*pretrained: false"):
            make("secvit_small", 2, {"pretrained": True})


def test_a_tag_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(ValueError, match="no weights 'secvit_nano.mnist'; .* secvit_nano.cifar10"):
        has_weights("secvit_nano.mnist")


def test_arguments_that_a_network_does_not_take_are_answered_with_the_option():
    with pytest.raises(ValueError, match=r"stem_stride'; give --model.args that it takes, \{\} for none"):
        create("resnet18", 2, {"stem_stride": 4})
    with pytest.raises(ValueError, match=r"stem_stride'; give --model.backbone_args that it takes, \{\} for none"):
        FeatureMaps("resnet18", {"stem_stride": 4})
    with pytest.raises(ValueError, match="as it has with backbone_args {'stem_stride': 4}"):
        FeatureMaps("secvit_nano")
