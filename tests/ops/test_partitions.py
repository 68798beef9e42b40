"""SEC's other centres and its rivals."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import secvit
from secvit.ops import PARTITIONS, partition_sizes

EQUAL = [name for name in PARTITIONS if name != "kmeans"]


@pytest.mark.parametrize("partition", EQUAL)
@pytest.mark.parametrize(("height", "width", "clusters"), [(14, 14, 8), (5, 7, 4), (1, 1, 1), (3, 3, 9), (2, 11, 6)])
def test_every_rival_but_kmeans_has_secs_sizes(partition, height, width, clusters):
    tokens = torch.randn(2, 3, height * width, 8)
    plan = secvit.cluster(tokens, clusters, partition=partition, grid=(height, width))
    assert (plan.sizes == torch.tensor(partition_sizes(height * width, clusters))).all()
    assert (plan.order.sort(dim=-1).values == torch.arange(height * width)).all()
    for labels in plan.labels.flatten(0, 1):
        assert labels.bincount(minlength=clusters).tolist() == partition_sizes(height * width, clusters)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_labels_count_what_sizes_say(partition):
    plan = secvit.cluster(torch.randn(2, 3, 49, 8), 6, partition=partition)
    one_hot = torch.nn.functional.one_hot(plan.labels, 6)
    assert torch.equal(one_hot.sum(dim=-2), plan.sizes)
    assert (plan.sizes.sum(dim=-1) == 49).all()
    assert plan.max_size >= plan.sizes.max()


@pytest.mark.parametrize(
    ("height", "width", "clusters", "rows", "columns"),
    [(14, 14, 4, 2, 2), (8, 8, 16, 4, 4), (8, 16, 8, 2, 4), (6, 9, 6, 2, 3), (4, 4, 2, 1, 2)],
)
def test_windows_are_swins_where_the_grid_divides(height, width, clusters, rows, columns):
    plan = secvit.cluster(torch.randn(1, height * width, 4), clusters, partition="window", grid=(height, width))
    labels = plan.labels.view(height, width)
    row_blocks = torch.arange(height) * rows // height
    column_blocks = torch.arange(width) * columns // width
    windows = row_blocks.unsqueeze(1) * columns + column_blocks
    assert torch.equal(labels, windows)


def same_partition(a, b):
    return torch.equal(a.unsqueeze(0) == a.unsqueeze(1), b.unsqueeze(0) == b.unsqueeze(1))


def test_raster_is_runs_of_tokens():
    plan = secvit.cluster(torch.randn(1, 10, 4), 3, partition="raster")
    assert plan.labels.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]]


def test_raster_and_window_ignore_content_and_random_changes_from_call_to_call():
    a, b = torch.randn(2, 1, 64, 4).unbind(0)
    for partition in ("raster", "window"):
        labels = [secvit.cluster(x, 4, partition=partition).labels for x in (a, b)]
        assert torch.equal(*labels)
    first, second = (secvit.cluster(a, 4, partition="random").labels for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("partition", ["random", "random_projection"])
def test_a_generator_makes_chance_repeatable(partition):
    tokens = torch.randn(1, 64, 4)
    same, again, other = (
        secvit.cluster(tokens, 4, partition=partition, generator=torch.Generator().manual_seed(s)).labels
        for s in (1, 1, 2)
    )
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_random_leaves_torchs_generator_alone_when_given_another():
    state = torch.get_rng_state()
    secvit.cluster(torch.zeros(1, 64, 4), 4, partition="random", generator=torch.Generator())
    secvit.cluster(torch.zeros(1, 64, 4), 4, partition="random_projection")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("partition", ["kmeans", "balanced_kmeans", "pc1"])
def test_separate_blobs_are_found(partition):
    # two tight bundles of directions, interleaved; equal in number, so that balance can hold
    directions = normalize(torch.tensor([[1.0, 1, 0, 0], [1.0, -1, 0, 0]]), dim=-1)
    truth = torch.arange(40) % 2
    tokens = directions[truth] + 0.05 * torch.randn(40, 4)
    labels = secvit.cluster(tokens.unsqueeze(0), 2, partition=partition).labels[0]
    assert same_partition(labels, truth)


def test_kmeans_sizes_follow_the_data():
    truth = (torch.arange(40) < 30).long()
    tokens = torch.tensor([[1.0, 1], [1.0, -1]])[truth] + 0.05 * torch.randn(40, 2)
    sizes = secvit.cluster(tokens.unsqueeze(0), 2, partition="kmeans").sizes[0]
    assert sorted(sizes.tolist()) == [10, 30]


def test_balanced_kmeans_is_tighter_than_sec_and_chance():
    tokens = normalize(torch.randn(4, 64, 3), dim=-1)

    def spread(partition):
        plan = secvit.cluster(tokens, 8, partition=partition)
        return (tokens - plan.unmerge(plan.merge(tokens))).square().sum()

    assert spread("balanced_kmeans") < spread("sec") < spread("random")


def test_centre_mean_is_eq_1():
    k = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    plan = secvit.cluster(k, 4, centre="mean")
    assert torch.equal(plan.order, cosine_similarity(k, k.mean(dim=-2, keepdim=True), dim=-1).argsort(dim=-1))


def test_centre_cls_compares_with_the_first_token():
    k = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    plan = secvit.cluster(k, 4, centre="cls")
    assert torch.equal(plan.order, cosine_similarity(k, k[:, :, :1], dim=-1).argsort(dim=-1))
    assert (plan.order[..., -1] == 0).all()


def test_centre_may_be_any_vector():
    k, centre = torch.randn(2, 3, 20, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    plan = secvit.cluster(k, 4, centre=centre)
    assert torch.equal(plan.order, cosine_similarity(k, centre.unsqueeze(-2), dim=-1).argsort(dim=-1))
    one = secvit.cluster(k, 4, centre=centre[0, 0])
    assert torch.equal(one.order, cosine_similarity(k, centre[0, 0], dim=-1).argsort(dim=-1))


def test_centre_pc1_sorts_along_the_first_principal_component():
    k = torch.randn(2, 20, 8, dtype=torch.float64)
    for sample, order in zip(k, secvit.cluster(k, 4, centre="pc1").order, strict=True):
        centred = sample - sample.mean(dim=0)
        axis = torch.linalg.svd(centred).Vh[0]
        along = (centred @ axis).argsort()
        assert torch.equal(order, along) or torch.equal(order, along.flip(0))
    assert torch.equal(secvit.cluster(k, 4, partition="pc1").order, secvit.cluster(k, 4, centre="pc1").order)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_no_rival_crashes_on_bad_tokens(partition):
    tokens = torch.randn(2, 3, 36, 8)
    tokens[0, 0, 5] = float("nan")
    tokens[1, :, 7, 2] = float("inf")
    plan = secvit.cluster(tokens, 4, partition=partition)
    assert (plan.order.sort(dim=-1).values == torch.arange(36)).all()
    assert (plan.sizes.sum(dim=-1) == 36).all()
    assert ((plan.labels >= 0) & (plan.labels < 4)).all()
