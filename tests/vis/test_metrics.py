"""Purity, compactness and stability of clusters whose values are known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.models.saved import load_model
from secvit.vis.metrics import (
    RIVALS,
    cluster_metrics,
    compactness,
    kept_together,
    metrics_table,
    purity,
    purity_floor,
)
from tests.vis.make import photo, sec_deit, secvit_nano


def test_purity_is_the_share_of_each_clusters_most_frequent_class():
    mask = np.array([[0, 0, 1, 1], [0, 0, 1, 7]])
    assert purity(torch.tensor([[0, 1]]), mask) == 7 / 8
    assert purity(torch.tensor([[0], [1]]), mask) == 4 / 8
    assert purity(torch.arange(8).view(2, 4), mask) == 1
    assert purity_floor(mask) == 4 / 8


def test_pixels_without_a_class_do_not_count():
    mask = np.array([[0, 255, 255, 1]], dtype=np.uint8)
    assert purity(torch.tensor([[0, 1]]), mask) == 1 and purity_floor(mask) == 1 / 2
    assert math.isnan(purity(torch.tensor([[0, 1]]), np.full((2, 2), 255)))


def test_purity_is_at_least_the_floor_and_grows_as_clusters_are_divided():
    random = np.random.default_rng(0)
    for _ in range(20):
        mask, labels = random.integers(0, 5, (24, 32)), torch.from_numpy(random.integers(0, 4, (6, 8)))
        finer = labels * 2 + torch.from_numpy(random.integers(0, 2, (6, 8)))
        assert purity_floor(mask) <= purity(labels, mask) <= purity(finer, mask)


def test_compactness_is_one_for_points_and_none_for_what_is_everywhere():
    assert compactness(torch.arange(12).view(3, 4)) == 1
    assert compactness(torch.zeros(3, 4, dtype=torch.long)) == pytest.approx(0)
    chessboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert compactness(chessboard) == pytest.approx(0)
    halves = torch.arange(8).expand(8, 8) // 4
    # variances of 0..7 and of 0..3: (64 - 1) / 12 and (16 - 1) / 12, along one of two axes
    assert compactness(halves) == pytest.approx(1 - (15 + 63) / (63 + 63))


def test_pairs_are_kept_whatever_clusters_are_called():
    before = torch.tensor([[0, 0, 1, 1, 2, 2]])
    assert kept_together(before, torch.tensor([[2, 2, 0, 0, 1, 1]])) == 1
    assert kept_together(before, torch.tensor([[0, 0, 0, 0, 0, 0]])) == 1
    assert kept_together(torch.zeros_like(before), before) == 3 / 15  # pairs
    assert kept_together(before, torch.tensor([[0, 1, 0, 1, 2, 2]])) == 1 / 3
    assert kept_together(torch.arange(6).view(1, 6), before) == 1


def test_random_partitions_keep_a_share_of_pairs():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randperm(4096, generator=generator).view(64, 64) % 8 for _ in range(2))
    assert kept_together(a, b) == pytest.approx(1 / 8, abs=0.005)  # some standard errors of 1 M pairs
    assert compactness(a) < 0.02


def test_windows_are_compact_and_do_not_move():
    image, mask = photo(64, 64), np.zeros((64, 64), np.uint8)
    mask[:32] = 1
    rows = cluster_metrics(secvit_nano(), image, mask, num_clusters=4)
    assert {row["partition"] for row in rows} == set(RIVALS) and len(rows) == len(RIVALS) * (2 + 4 + 6 + 8)
    for row in rows:
        assert 0 <= row["compactness"] <= 1 and row["floor"] == 0.5 <= row["purity"] <= 1
        assert all(0 <= row[name] <= 1 for name in ("noise", "flip", "bfloat16"))
        if row["partition"] == "window":
            assert row["purity"] == row["noise"] == row["flip"] == row["bfloat16"] == 1
            assert row["least"] == row["most"]
    said = metrics_table(rows)
    assert "| 1 | 1 | 1 | window | 4 |" in said and said.count("\n") == 2 + len(rows)


def test_a_photo_without_a_mask_has_no_purity_and_full_attention_no_row():
    rows = cluster_metrics(secvit_nano(), photo(64, 48), partitions=["sec"], stability=False)
    assert {row["stage"] for row in rows} == {0, 1} and not {"purity", "noise"} & set(rows[0])
    deit = cluster_metrics(sec_deit(), photo(64, 64), stability=False)
    assert "kmeans of unturned keys" not in {row["partition"] for row in deit}  # it has no rotary positions


def test_sec_follows_two_colours_where_random_clusters_do_not_and_k_means_does_more():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    noise = np.random.default_rng(0).integers(-9, 10, (64, 64, 3))
    image = Image.fromarray((np.where(mask[..., None], [200, 60, 40], [30, 90, 160]) + noise).astype(np.uint8))
    model = load_model("secvit_nano.cifar10")
    rows = cluster_metrics(model, image, mask, stages=[0], num_clusters=2, stability=False)
    found = {row["partition"]: row["purity"] for row in rows}
    assert found["random"] < 0.6 < found["sec"] < 0.85 < found["kmeans of unturned keys"]
