"""Maps of clusters, their colours, and pages of them."""

import sys

import numpy as np
import pytest
import timm
import torch
from matplotlib.text import Text
from PIL import Image

from secvit.draw import panels
from secvit.vis import cluster_maps, clusters, draw_clusters
from secvit.vis.clusters import BETWEEN, ClusterMap, input_size, normalised, overlay, sized
from tests.vis.make import patched, photo, secvit_nano


@pytest.fixture
def thumbnails(monkeypatch):
    monkeypatch.setattr(panels, "PANEL_AREA", 80 * 60)


@pytest.mark.parametrize("size", [(1, 1), (33, 65), (64, 48)])
def test_cluster_sizes_never_differ_by_more_than_one(size):
    for found in cluster_maps(secvit_nano(), torch.randn(3, *size), head="all"):
        assert found.sizes.max() - found.sizes.min() <= 1
        assert int(found.sizes.sum()) == found.labels.numel()


def test_all_heads_of_all_stages_are_there_in_order():
    model = secvit_nano()
    maps = cluster_maps(model, torch.randn(1, 3, 32, 32), head="all")
    assert [(m.stage, m.head) for m in maps] == [(s, h) for s in range(4) for h in range((2, 4, 6, 8)[s])]
    one = cluster_maps(model, torch.randn(3, 32, 32), stages=[2, 0], head=1)
    assert [(m.stage, m.head, m.heads) for m in one] == [(0, 1, 2), (2, 1, 6)]


def test_keys_can_be_cut_in_another_way_than_the_network_does():
    model, image = secvit_nano(), torch.randn(3, 32, 48)
    own = cluster_maps(model, image, stages=[0])[0]
    same = cluster_maps(model, image, stages=[0], num_clusters=8)[0]
    assert torch.equal(own.labels, same.labels)
    sizes = [m.num_clusters for m in cluster_maps(model, image, cluster_size=16)]
    assert sizes == [24, 6, 2, 1]  # of 16 x 24 tokens, 8 x 12, 4 x 6, 2 x 3
    most = cluster_maps(model, image, num_clusters=100)
    assert [m.num_clusters for m in most] == [100, 96, 24, 6]  # never more than tokens
    window = cluster_maps(model, image, stages=[0], num_clusters=4, partition="window")[0]
    assert window.partition == "window" and torch.equal(window.labels[:8, :12].unique(), torch.tensor([0]))


def test_a_map_says_where_it_is():
    labels = torch.arange(6).view(2, 3) % 2
    assert str(ClusterMap(labels, 2, 2, 3, 0, 4, blocks=4)) == "stage 3, head 1 of 4\n2 clusters × 3 tokens, grid 3×2"
    assert str(ClusterMap(labels, 2, 2, 1, 0, 4, blocks=4)).startswith("stage 3, block 2 of 4, head 1 of 4\n")
    assert str(ClusterMap(labels, 2, 0, 3, 0, 4, blocks=4, stages=1)).startswith("block 4 of 4, head 1 of 4\n")
    assert "full attention: 1 × 6 tokens" in str(ClusterMap(labels * 0, 1, 3, 0, 0, 8))


# -- drawing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["blended", "side_by_side"])
def test_one_rank_has_one_colour_wherever_it_lies(style):
    labels = torch.tensor([[0, 1, 2], [2, 0, 1]])
    grey = Image.new("RGB", (30, 20), (128, 128, 128))
    pixels = overlay(grey, ClusterMap(labels, 3, 0, 0, 0, 1), style=style)[:, -30:]
    inside = pixels[5::10, 5::10]
    for rank in range(3):
        colours = inside[(labels == rank).numpy()]
        assert np.allclose(colours, colours[0])
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 3
    assert not np.allclose(pixels[5, 9], pixels[5, 10])  # the outline, or the next colour


def test_outlines_leave_the_photo_between_them():
    image, labels = photo(60, 40), torch.tensor([[0, 0, 1], [0, 1, 1]])
    pixels, original = overlay(image, ClusterMap(labels, 2, 0, 0, 0, 1), style="outlined"), np.asarray(image) / 255
    changed = (pixels != original).any(-1)
    assert changed[:20, 39:41].all() and changed[19:21, 25:38].all()
    changed[:, [18, 19, 20, 21, 38, 39, 40, 41]] = changed[18:22] = False
    assert not changed.any()
    full = overlay(image, ClusterMap(labels * 0, 1, 0, 0, 0, 1), style="outlined")
    assert (full == original).all()


def test_side_by_side_shows_the_photo_untouched():
    image = photo(60, 40)
    pixels = overlay(image, ClusterMap(torch.tensor([[0, 1]]), 2, 0, 0, 0, 1), style="side_by_side")
    assert pixels.shape == (40, 120 + BETWEEN, 3) and (pixels[:, :60] == np.asarray(image) / 255).all()
    with pytest.raises(ValueError, match="style='flat'; choose one of blended, outlined, side_by_side"):
        overlay(image, ClusterMap(torch.tensor([[0, 1]]), 2, 0, 0, 0, 1), style="flat")


@pytest.mark.parametrize("num_clusters", [1, 2, 8, 32])
def test_later_ranks_are_brighter(num_clusters):
    brightness = clusters.rank_colours(num_clusters) @ [0.299, 0.587, 0.114]
    assert len(brightness) == num_clusters
    assert (np.diff(brightness) > 0).all()


@pytest.mark.parametrize("style", ["blended", "side_by_side"])
@pytest.mark.parametrize("size", [(48, 32), (20, 64), (200, 8)])
def test_panels_of_a_figure_do_not_overlap(size, style, thumbnails):
    maps = cluster_maps(secvit_nano(), torch.randn(3, size[1], size[0]), stages=[0, 1], num_clusters=2)
    figure = draw_clusters(Image.new("RGB", size), maps, "title", "note", style=style)
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == (4 if style == "blended" else 3)  # image, two stages, legend
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "matplotlib.pyplot" not in sys.modules


def test_layers_of_full_attention_are_named_and_not_drawn():
    labels = torch.tensor([[0, 1]])
    some, full = ClusterMap(labels, 2, 0, 0, 0, 1, stages=4), ClusterMap(labels * 0, 1, 3, 0, 0, 8, stages=4)
    figures = [draw_clusters(photo(60, 40), maps) for maps in ([some, full], [full])]
    texts = [[text.get_text() for text in figure.findobj(Text)] for figure in figures]
    assert any("Full attention, nothing to draw:\nstage 4" in text for text in texts[0])
    assert not any("full attention: 1 ×" in text for text in texts[0])
    assert any("There are no clusters to draw" in text for text in texts[1])


# -- from a photo to a network's input -----------------------------------------------------------


def test_the_network_sees_at_most_640_px_or_what_is_asked():
    assert sized(Image.new("RGB", (1280, 4)), None).size == (640, 2)
    assert sized(Image.new("RGB", (30, 20)), None).size == (30, 20)
    assert sized(Image.new("RGB", (30, 20)), 60).size == (60, 40)


def test_a_photo_fits_what_the_network_takes():
    assert input_size((57, 41), secvit_nano()) == (57, 41)  # any
    assert input_size((57, 41), timm.create_model("sec_deit_small", depth=1)) == (64, 48)  # whole patches
    assert input_size((57, 41), patched()) == (64, 64)  # one only
    assert normalised(photo(57, 41), patched()).shape == (3, 64, 64)
