"""Figures 1 and 4 of photos of one's own."""

import pytest
import torch

from secvit.draw import panels
from secvit.vis import cluster_maps, compare_partitions, draw_page, draw_partitions, grad_cam, pages, record_keys
from secvit.vis.clusters import normalised
from tests.vis.make import photo, secvit_nano


@pytest.fixture(autouse=True)
def thumbnails(monkeypatch):
    monkeypatch.setattr(panels, "PANEL_AREA", 80 * 60)
    monkeypatch.setattr(pages, "CELL", (80, 60))


def test_partitions_of_the_same_keys_have_their_sizes_and_times():
    keys = record_keys(secvit_nano(), torch.randn(3, 64, 64), stages=[0])[0]
    window, kmeans, sec = compare_partitions(keys, head=1, rounds=1)
    assert torch.equal(sec.cluster_map.labels, keys.labels[1]) and sec.cluster_map.head == 1
    assert all((one.cluster_map.sizes == 128).all() for one in (window, sec))
    assert (
        kmeans.cluster_map.sizes.min() < 128 < kmeans.cluster_map.sizes.max()
        and int(kmeans.cluster_map.sizes.sum()) == 1024
    )
    assert all(one.milliseconds > 0 for one in (window, kmeans, sec))
    assert str(sec).startswith(f"SEC: {sec.milliseconds:.2f} ms\n8 clusters × 128 tokens")


def test_k_means_gets_keys_that_do_not_know_their_places():
    keys = record_keys(secvit_nano(), torch.randn(3, 64, 64), stages=[0])[0]
    (found,) = compare_partitions(keys, partitions=["kmeans"], rounds=1)
    assert torch.equal(
        found.cluster_map.labels, keys.without_rotary().cut(partition="kmeans").labels[0, 0].view(32, 32)
    )
    assert not torch.equal(found.cluster_map.labels, keys.cut(partition="kmeans").labels[0, 0].view(32, 32))


def test_a_partition_of_ones_own_is_compared_by_its_name():
    def by_norm(tokens, *_):
        return tokens.norm(dim=-1)

    keys = record_keys(secvit_nano(), torch.randn(3, 64, 64), stages=[0])[0]
    own, sec = compare_partitions(keys, partitions=[by_norm, "sec"], rounds=1)
    assert (own.cluster_map.partition, sec.cluster_map.partition) == ("by_norm", "sec")
    order = keys.keys[0, 0].norm(dim=-1).argsort(stable=True)
    assert (own.cluster_map.labels.flatten()[order] == torch.arange(1024) // 128).all()
    assert str(own).startswith("by_norm: ")


def test_figure_1_has_a_panel_for_each_partition():
    keys = record_keys(secvit_nano(), torch.randn(3, 40, 56), stages=[0])[0]
    compared = compare_partitions(keys, num_clusters=4, rounds=1)
    figure = draw_partitions(photo(56, 40), compared, "title")
    assert len(figure.axes) == 4
    words = " ".join(text.get_text() for text in figure.texts)
    assert "k-means: " in words and "window: " in words and "4 clusters × 140 tokens" in words


def test_figure_4_has_a_row_for_each_photo_whatever_its_proportions():
    model, rows = secvit_nano(), []
    for size in ((56, 40), (30, 90)):
        image = photo(*size)
        pixels = normalised(image, model)
        rows.append(pages.Row(image, cluster_maps(model, pixels), grad_cam(model, pixels)))
    figure = draw_page(rows, "title")
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == 2 * (1 + 2 + 4)  # photo, two stages with clusters, Grad-CAM of four
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    words = [text.get_text() for text in figure.texts]
    assert words.count("clusters, stage 1") == words.count("Grad-CAM, stage 4") == 2
