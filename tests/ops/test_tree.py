"""The balanced tree: equal leaves for any L and M, of tokens that belong together."""

import pytest
import torch

import secvit
from secvit.ops import partition_sizes
from secvit.ops import reference_near_far as reference
from secvit.ops.tree import principal_coordinates, tree_levels, tree_order, tree_plan

SIZES = [(1, 1), (2, 1), (2, 2), (63, 5), (63, 63), (196, 16), (196, 36), (577, 72), (576, 144), (1024, 32), (1369, 16)]


def leaves(plan):
    """Tokens of each cluster of a plan (L)."""
    return [part.tolist() for part in plan.order.split(plan.sizes.tolist())]


@pytest.mark.parametrize(("length", "clusters"), SIZES)
def test_leaves_hold_every_token_once_and_sizes_differ_by_at_most_one(length, clusters):
    plan = tree_plan([torch.randn(2, 3, length, 16), torch.randn(2, 3, length, 8)], clusters)
    assert (plan.order.sort(dim=-1).values == torch.arange(length)).all()
    for labels in plan.labels.flatten(0, 1):
        assert labels.bincount(minlength=clusters).tolist() == partition_sizes(length, clusters)


@pytest.mark.parametrize(("length", "clusters"), [*SIZES, (3, 2), (5, 2), (7, 3)])
def test_the_batched_tree_is_the_loops_tree(length, clusters):
    q, k = torch.randn(2, 2, length, 16, dtype=torch.float64).unbind(0)
    plan = tree_plan([q, k], clusters)
    for head in range(2):
        x = reference.coordinates([q[head], k[head]])
        # float64: sums of 256 terms, three rounds of them
        torch.testing.assert_close(principal_coordinates([q, k])[head], x, rtol=1e-9, atol=1e-9)
        own = secvit.Plan(plan.order[head], clusters, plan.max_size)
        assert leaves(own) == reference.tree(x, clusters)


def test_levels_cut_odd_numbers_of_clusters_unequally():
    assert tree_levels(5) == [[0, 5], [0, 3, 5], [0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert tree_levels(4) == [[0, 4], [0, 2, 4], [0, 1, 2, 3, 4]]
    assert tree_levels(1) == [[0, 1]]


def blobs():
    """240 tokens around 12 centres.  -> x (240, 32), label (240)"""
    label = torch.arange(240) % 12
    return (torch.randn(12, 32) * 10)[label] + torch.randn(240, 32) * 0.01, label


def test_the_tree_finds_equal_blobs():
    x, label = blobs()
    for tokens in tree_plan([x], 12).order.view(12, 20):
        assert label[tokens].unique().numel() == 1


def test_one_bad_token_spoils_no_other():
    x, label = blobs()
    x[5] = float("nan")
    for tokens in tree_plan([x], 12).order.view(12, 20):
        assert label[tokens].bincount().max() >= 18


def test_a_split_goes_along_the_axis_of_largest_variance():
    x = torch.randn(500, 8) * torch.tensor([1, 1, 9, 1, 1, 1, 1, 1.0])
    first, second = tree_order(x, 2).split(250)
    assert (x[first, 2].mean() - x[second, 2].mean()).abs() > 13  # 2 * 0.8 * 9 = 14.4 for halves of a normal variable


def test_blocks_of_any_scale_weigh_alike():
    q, k = torch.randn(2, 1, 300, 16, dtype=torch.float64).unbind(0)
    assert torch.equal(tree_plan([q, k], 16).labels, tree_plan([q * 1024, k / 64], 16).labels)


@pytest.mark.parametrize("clusters", [1, 4, 7, 12])
def test_a_masked_tree_is_the_tree_of_the_real_tokens(clusters):
    x = torch.randn(2, 100, 8, dtype=torch.float64)
    real = torch.rand(2, 100) < 0.6
    plan = secvit.Plan.equal(tree_order(x, clusters, real), clusters, real)
    for b in range(2):
        tokens = real[b].nonzero()[:, 0]
        expected = [[int(tokens[i]) for i in leaf] for leaf in reference.tree(x[b, tokens], clusters)]
        found = secvit.Plan(plan.order[b], clusters, plan.max_size, plan.sizes[b])
        assert [part.tolist() for part in found.order[: len(tokens)].split(found.sizes.tolist())] == expected
        assert (plan.labels[b] >= 0).equal(real[b])


def test_padding_may_hold_anything():
    x, other = torch.randn(2, 90, 16), torch.randn(2, 90, 16)
    real = torch.arange(90) < torch.tensor([[70], [41]])
    filled = x.masked_fill(~real.unsqueeze(-1), float("nan"))
    a, b = (tree_plan([torch.where(real.unsqueeze(-1), x, y)], 6, real).labels for y in (other * 100, filled))
    assert torch.equal(a, b)


@pytest.mark.parametrize("value", [0.0, 3.7, float("nan"), float("inf")])
def test_tokens_that_are_all_alike_keep_their_places(value):
    plan = tree_plan([torch.full((1, 64, 16), value)], 8)
    assert torch.equal(plan.order, torch.arange(64).unsqueeze(0))


def test_half_precision_and_autocast_are_computed_in_float32():
    q, k = torch.randn(2, 1, 2, 256, 32).bfloat16().unbind(0)
    plan = tree_plan([q.float(), k.float()], 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tree_plan([q, k], 16)
    assert torch.equal(cast.order, plan.order)


def test_no_gradient_flows_through_the_order():
    q = torch.randn(1, 1, 64, 16, requires_grad=True)
    assert not principal_coordinates([q, q]).requires_grad
