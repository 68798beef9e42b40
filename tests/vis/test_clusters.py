"""Recording clusters, drawing them, and the way from a photo to a picture."""

import os
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from secvit.cli import main
from secvit.models.rotary import rotate_packed
from secvit.vis import cluster_maps, cluster_photo, clusters, draw_clusters, picture

SMALL = {
    "depths": [1, 1, 1, 1],
    "embed_dims": [16, 32, 48, 64],
    "num_heads": [2, 4, 6, 8],
    "head_hidden_size": 32,
}


@pytest.fixture
def model():
    return timm.create_model("secvit_nano", **SMALL).eval()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.randint(0, 255, (40, 56, 3), dtype=np.uint8)).save(path)
    return path


# -- recording ---------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["sec", "window"])
def test_tokens_attend_to_those_of_their_label_and_to_no_others(partition):
    model = timm.create_model("secvit_nano", partition=partition, **SMALL).eval()
    inputs = []
    layer = model.stages[0].blocks[0].attn
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    found = cluster_maps(model, torch.randn(3, 33, 50), stages=[0], head=1)[0]
    x, table = inputs[0]
    height, width = x.shape[1:3]
    assert found.labels.shape == (height, width) == (17, 25)
    with torch.inference_mode():
        assert torch.equal(layer.plan(x, table).labels[0, 1].view(height, width), found.labels)
        qkv = rotate_packed(layer.qkv(x).view(1, height * width, 2, 3, -1), table)
        changed = qkv.clone()
        changed[0, 7, 1, 2] += 1  # the value of token 7 in head 1
        moved = (layer.attend(changed, height, width) - layer.attend(qkv, height, width)).abs().amax(-1)
    labels = found.labels.flatten()
    assert torch.equal(moved[0, :, 1] > 0, labels == labels[7])
    assert not moved[0, :, 0].any()


def test_recording_does_not_disturb_a_random_partition():
    model = timm.create_model("secvit_nano", partition="random", **SMALL).eval()
    image = torch.randn(3, 32, 32)
    outputs = []
    model.stages[-1].register_forward_hook(lambda *args: outputs.append(args[-1]))
    torch.manual_seed(5)
    with torch.no_grad():
        model(image[None])
    torch.manual_seed(5)
    cluster_maps(model, image)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("size", [(1, 1), (33, 65), (64, 48)])
def test_cluster_sizes_never_differ_by_more_than_one(model, size):
    for found in cluster_maps(model, torch.randn(3, *size), head="all"):
        assert found.sizes.max() - found.sizes.min() <= 1
        assert int(found.sizes.sum()) == found.labels.numel()


def test_all_heads_of_all_stages_are_recorded_in_order(model):
    maps = cluster_maps(model, torch.randn(1, 3, 32, 32), head="all")
    assert [(m.stage, m.head) for m in maps] == [(s, h) for s in range(4) for h in range((2, 4, 6, 8)[s])]
    one = cluster_maps(model, torch.randn(3, 32, 32), stages=[2, 0], head=1)
    assert [(m.stage, m.head, m.heads) for m in one] == [(0, 1, 2), (2, 1, 6)]


def test_the_model_is_left_as_it_was(model):
    model.train()
    model.stages[0].eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    cluster_maps(model, torch.randn(3, 32, 32))
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": 2}, "stage 0 has heads 0 to 1"),
        ({"head": "some"}, '"all" of them'),
        ({"stages": [4]}, "stages 0 to 3"),
        ({"block": 1}, "stage 0 has blocks 0 to 0"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(model, options, words):
    with pytest.raises(ValueError, match=words):
        cluster_maps(model, torch.randn(3, 32, 32), **options)


def test_other_networks_and_shapes_are_refused(model):
    with pytest.raises(ValueError, match="Linear is not a SECViT"):
        cluster_maps(torch.nn.Linear(2, 2), torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match=r"give one image \(3, H, W\)"):
        cluster_maps(model, torch.randn(2, 3, 32, 32))


# -- drawing -----------------------------------------------------------------------------------


def test_one_rank_has_one_colour_wherever_it_lies():
    labels = torch.tensor([[0, 1, 2], [2, 0, 1]])
    found = clusters.ClusterMap(labels, 3, 0, 0, 0, 1)
    grey = Image.new("RGB", (30, 20), (128, 128, 128))
    pixels = clusters.overlay(grey, found)
    inside = pixels[5::10, 5::10]
    for rank in range(3):
        colours = inside[(labels == rank).numpy()]
        assert np.allclose(colours, colours[0])
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 3
    assert not np.allclose(pixels[5, 9], pixels[5, 10])  # the outline


@pytest.mark.parametrize("num_clusters", [1, 2, 8, 32])
def test_later_ranks_are_brighter(num_clusters):
    brightness = clusters.rank_colours(num_clusters) @ [0.299, 0.587, 0.114]
    assert len(brightness) == num_clusters
    assert (np.diff(brightness) > 0).all()


@pytest.mark.parametrize("size", [(48, 32), (20, 64), (200, 8)])
def test_panels_of_a_figure_do_not_overlap(model, size):
    image = Image.new("RGB", size)
    maps = cluster_maps(model, torch.randn(3, size[1], size[0]), stages=[0, 1])
    figure = draw_clusters(image, maps, "title", "note")
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == 4  # image, two stages, legend
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "matplotlib.pyplot" not in sys.modules


# -- from a photo to a picture -----------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, model, thumbnails):
    monkeypatch.setattr(clusters, "load_model", lambda name, checkpoint=None: model)


@pytest.fixture
def thumbnails(monkeypatch):
    monkeypatch.setattr(clusters, "PANEL_AREA", 80 * 60)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "I;16", "1"])
def test_any_kind_of_image_gives_a_picture(small, tmp_path, mode):
    path = tmp_path / "in.tif"
    Image.new(mode, (37, 21)).save(path)
    with Image.open(cluster_photo(path, tmp_path / "out.png")) as out:
        assert out.width > 200


def test_one_pixel_gives_a_picture(small, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    assert cluster_photo(tmp_path / "one.png", tmp_path / "out.png").is_file()


def test_the_network_sees_at_most_640_px_or_what_is_asked():
    assert clusters._sized(Image.new("RGB", (1280, 4)), None).size == (640, 2)
    assert clusters._sized(Image.new("RGB", (30, 20)), None).size == (30, 20)
    assert clusters._sized(Image.new("RGB", (30, 20)), 60).size == (60, 40)
    with pytest.raises(ValueError, match="size=0"):
        cluster_photo("photo.jpg", "out.png", size=0)


def test_a_default_name_never_replaces_a_file(small, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(cluster_photo(photo)) for _ in range(3)]
    assert names == ["photo_clusters.png", "photo_clusters_2.png", "photo_clusters_3.png"]


@pytest.mark.parametrize("name", ["nowhere/out.png", "photo.png/out.png", "out.exe", "out", ""])
def test_an_impossible_output_is_refused_before_any_work(photo, tmp_path, monkeypatch, name):
    monkeypatch.setattr(clusters, "read_image", lambda *_: pytest.fail("read before asking"))
    monkeypatch.setattr(clusters, "load_model", lambda *_: pytest.fail("worked before asking"))
    with pytest.raises(ValueError, match=r"folder|format|write"):
        cluster_photo(photo, tmp_path / name)


def test_a_failed_save_keeps_the_old_picture_and_leaves_nothing(small, photo, tmp_path, monkeypatch):
    output = tmp_path / "out.png"
    output.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(picture.os, "replace", fail)
    with pytest.raises(ValueError, match="No space left"):
        cluster_photo(photo, output)
    assert output.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_writes_a_picture_and_says_that_weights_are_random(thumbnails, photo, tmp_path, capsys):
    output = tmp_path / "out.png"
    words = ["cluster", str(photo), "-o", str(output), "--model", "secvit_nano", "--size", "32"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"wrote {output}" in said and "random weights, not trained" in said
    assert main(words) == 0
    assert f"replaced {output}" in capsys.readouterr().out
    assert main(["cluster", str(tmp_path / "none.jpg"), "-o", str(output)]) == 2
    assert "none.jpg" in capsys.readouterr().err


def test_the_temporary_name_is_beside_the_picture(small, photo, tmp_path, monkeypatch):
    moved = []
    real = os.replace
    monkeypatch.setattr(picture.os, "replace", lambda a, b: (moved.append((a, b)), real(a, b)))
    output = cluster_photo(photo, tmp_path / "out.png")
    assert moved[0][0].parent == output.parent and moved[0][1] == output
