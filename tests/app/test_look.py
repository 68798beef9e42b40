"""What a setting shows of a photo, without a browser."""

import os
import re
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import secvit
from secvit import app
from secvit.app import look as looking
from secvit.app.look import COUNTED, NUMBER, TOKENS, Setting, attention, draw, look, place_of
from secvit.classification import predict
from secvit.models.saved import load_model
from tests.app.make import CLASSES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture
def setting(run):
    return Setting("secvit_nano", size=64, checkpoint=run)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_a_setting_changes_its_own_stage_and_only_for_a_while(photo, setting, run):
    before = predict(setting.network, Image.open(photo), 3)
    seen = look(photo, replace(setting, partition="window", counted=NUMBER, count=5))
    changed = load_model("secvit_nano", run)
    for block in changed.stages[0].blocks:
        block.attn.clustering = secvit.Clustering(5, partition="window")
    assert seen.classes == dict(predict(changed, Image.open(photo), 3)) != dict(before)
    assert predict(setting.network, Image.open(photo), 3) == before
    assert (seen.numbers["clusters"], seen.numbers["grid"]) == (5, "32 × 24")
    assert seen.numbers["tokens per cluster"] == "153 to 154"  # 768 tokens


@pytest.mark.parametrize("partition", ["SEC", "window", "random"])
def test_tokens_per_cluster_are_no_more_than_asked_for(photo, setting, partition):
    numbers = look(photo, replace(setting, stage=2, partition=partition, counted=TOKENS, count=20)).numbers
    assert (numbers["clusters"], numbers["tokens per cluster"]) == (10, "19 to 20")  # 192 tokens
    assert numbers["partition (ms)"] > 0 and numbers["network (ms)"] > numbers["partition (ms)"]


def test_near_and_far_change_the_network_and_not_the_clusters(photo, setting):
    tree = replace(setting, partition="tree")
    alone, seen = look(photo, tree), look(photo, replace(tree, near=2, far=True))
    assert np.array_equal(alone.clusters, seen.clusters) and alone.classes != seen.classes


def test_the_attention_of_a_place_is_drawn_beside_full_attention(photo, setting):
    assert place_of(photo, (480, 720)) == (50, 100)  # the picture is 960 x 720 px
    tree = replace(setting, partition="tree", near=2, far=True)
    pictures = [attention(photo, tree, 10, 90), attention(photo, tree, 90, 10), attention(photo, setting, 10, 90)]
    assert pictures[0].width > 3 * 400 and len({picture.tobytes() for picture in pictures}) == 3
    with pytest.raises(ValueError, match="stages 1 to 4"):
        attention(photo, replace(tree, stage=5), 10, 90)


def test_k_means_is_the_one_whose_clusters_are_unequal(photo, setting):
    low, high = look(photo, replace(setting, partition="k-means")).numbers["tokens per cluster"].split(" to ")
    assert int(low) < 96 < int(high)  # 768 tokens, 8 clusters


def test_classes_have_names_and_the_pictures_the_shape_of_the_photo(photo, setting):
    seen = look(photo, setting)
    assert set(seen.classes) == set(CLASSES) and sum(seen.classes.values()) == pytest.approx(1)
    assert seen.clusters.size == seen.cam.size == (960, 720)


def test_random_weights_have_clusters_but_no_classes(photo):
    seen = look(photo, Setting("secvit_tiny", stage=3, size=64))
    assert (seen.classes, seen.cam) == ({}, None)
    assert seen.numbers["clusters"] == 2


@pytest.mark.parametrize(
    ("name", "more"), [("sec_deit_small", {}), ("vit_small_patch16_224", {"patch": {"num_clusters": 2}})]
)
def test_plain_vision_transformers_show_any_block(photo, tmp_path, name, more):
    own = Setting(name, size=64, checkpoint=make_run(tmp_path / name, name, **more))
    seen = look(photo, replace(own, block=1, partition="window", counted=NUMBER, count=3))
    assert seen.numbers["clusters"] == 3 and seen.numbers["place"] == "block 1 of 2, head 1 of 2"
    assert look(photo, own).numbers["clusters"] == (2 if more else 4)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"stage": 5}, "stages 1 to 4"),
        ({"block": 2}, "blocks 1 to 1"),
        ({"head": 3}, "heads 1 to 2"),
        ({"partition": "voronoi"}, "choose one of SEC, tree, window"),
        ({"near": 0}, "near=0; choose a whole number"),
        ({"counted": "all"}, f"choose one of {COUNTED[0]}"),
        ({"counted": NUMBER, "count": 257}, "choose 1 to 256"),
        ({"counted": TOKENS, "count": 2}, "choose 3 tokens per cluster or more"),  # 768 tokens
    ],
)
def test_a_setting_that_cannot_be_says_what_can(photo, setting, wrong, says):
    with pytest.raises(ValueError, match=says):
        look(photo, replace(setting, **wrong))


@pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n but no more of it", b""])
def test_a_broken_file_is_named_without_its_folder(tmp_path, setting, content):
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^holiday\.png: ") as error:
        look(str(path), setting)
    assert str(tmp_path) not in str(error.value)


def test_too_many_pixels_are_refused_before_they_are_decoded(photo, setting, monkeypatch):
    monkeypatch.setattr(looking, "MAX_PIXELS", 48 * 64 - 1)
    monkeypatch.setattr(looking, "read_image", None)
    with pytest.raises(ValueError, match=re.escape("photo.png: 64 × 48 pixels")):
        look(photo, replace(setting, size=63))


def test_the_picture_has_a_row_for_each_setting(photo, setting):
    figure = draw(photo, [setting, replace(setting, partition="window")])
    assert len(figure.axes) == 6
    words = "\n".join(text.get_text() for text in figure.texts)
    for part in ("photo.png", "secvit_nano, SEC", "secvit_nano, window", "8 clusters × 96 tokens", "Grad-CAM of"):
        assert part in words


def test_a_look_touches_no_generator(photo, setting):
    state = torch.get_rng_state()
    look(photo, replace(setting, partition="random", size=65))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_gradio_the_pip_line_is_named(monkeypatch, tmp_path):
    for name in ("GRADIO_TEMP_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ImportError, match=r'pip install "secvit\[app\]"'):
        app.serve()
    assert not list(tmp_path.iterdir())


def test_a_photo_that_changed_is_looked_at_again(setting, tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "red").save(file)
    first = look(str(file), setting)
    assert look(str(file), setting) is first
    Image.new("RGB", (64, 48), "red").save(file)
    assert look(str(file), setting).clusters.size != first.clusters.size
