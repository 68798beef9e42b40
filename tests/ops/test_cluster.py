"""Scores, order, equal cuts and the Plan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secvit
from secvit.ops import (
    Plan,
    cluster_order,
    inverse_order,
    partition_sizes,
    reference,
    resolve_num_clusters,
    sec_attention,
)
from secvit.ops.order import order_by

LENGTHS = [1, 2, 7, 63, 196, 577]


def plan_for(batch=2, heads=3, length=63, clusters=5, mask=None, shared=False):
    tokens = torch.randn(batch, length, 4) if shared else torch.randn(batch, heads, length, 4)
    return secvit.cluster(tokens, clusters, mask=mask)


def lengths_mask(lengths, size):
    return torch.arange(size) < torch.tensor(lengths).unsqueeze(1)


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_sizes_are_those_of_tensor_split(data):
    length = data.draw(st.integers(1, 600))
    clusters = data.draw(st.integers(1, length))
    sizes = partition_sizes(length, clusters)
    assert sizes == [len(part) for part in torch.empty(length).tensor_split(clusters)]
    assert max(sizes) - min(sizes) <= 1
    plan = Plan.equal(torch.randperm(length), clusters)
    assert plan.sizes.tolist() == sizes
    assert plan.max_size == max(sizes)
    assert plan.labels.bincount(minlength=clusters).tolist() == sizes


@pytest.mark.parametrize(
    ("length", "size", "clusters"), [(196, 98, 2), (197, 98, 3), (3136, 98, 32), (5, 98, 1), (7, 1, 7)]
)
def test_cluster_size_is_the_most_tokens_a_cluster_holds(length, size, clusters):
    assert resolve_num_clusters(length, None, size) == clusters
    plan = secvit.cluster(torch.randn(1, length, 4), cluster_size=size)
    assert plan.num_clusters == clusters
    assert plan.sizes.max() <= size


@pytest.mark.parametrize("length", LENGTHS)
def test_order_equals_the_loops(length):
    k = torch.randn(2, length, 8, dtype=torch.float64)
    for sample, order in zip(k, cluster_order(k), strict=True):
        assert torch.equal(order, reference.sort_by_similarity(sample, sample.mean(dim=0)))
    for sample, order in zip(k, secvit.cluster(k, 1, descending=True).order, strict=True):
        assert torch.equal(order, reference.sort_by_similarity(sample, sample.mean(dim=0), descending=True))


def test_ascending_and_descending_make_the_same_partition():
    k = torch.randn(2, 3, 64, 8, dtype=torch.float64)
    rising, falling = (secvit.cluster(k, 8, descending=d).labels for d in (False, True))
    assert torch.equal(rising, 7 - falling)


@pytest.mark.parametrize("descending", [False, True])
def test_ties_keep_the_order_of_tokens(descending):
    k = torch.randn(1, 1, 8).expand(1, 1000, 8)
    assert torch.equal(secvit.cluster(k, 3, descending=descending).order[0], torch.arange(1000))
    assert torch.equal(secvit.cluster(torch.zeros(1, 1000, 8), 3, descending=descending).order[0], torch.arange(1000))


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (2, 3, 63), (1, 3136)])
def test_the_packed_sort_is_torchs_stable_sort(shape):
    score = torch.randn(shape)
    coarse = (score * 2).round()  # ties, and zeros of both signs
    for bad, step in [(float("nan"), 7), (-float("nan"), 5), (float("inf"), 11), (-float("inf"), 13)]:
        coarse.view(-1)[step::17] = bad
    for values in (score, coarse, score.transpose(0, -1)):
        assert torch.equal(order_by(values), torch.sort(values, dim=-1, stable=True).indices)


def test_the_packed_sort_maps_over_an_axis_and_compiles():
    score = torch.randn(4, 3, 50).round()
    assert torch.equal(torch.vmap(order_by, in_dims=1)(score), order_by(score).transpose(0, 1))
    assert torch.equal(torch.compile(order_by, fullgraph=True, backend="aot_eager")(score), order_by(score))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("partition", ["sec", "pc1", "random_projection", "kmeans", "balanced_kmeans", "window"])
def test_autocast_does_not_move_a_token(dtype, partition):
    k = torch.randn(2, 3, 1024, 16)
    expected = secvit.cluster(k, 8, partition=partition).labels
    with torch.autocast("cpu", dtype):
        assert torch.equal(secvit.cluster(k, 8, partition=partition).labels, expected)
    half = k.to(dtype)
    assert torch.equal(
        secvit.cluster(half, 8, partition=partition).labels, secvit.cluster(half.float(), 8, partition=partition).labels
    )


def test_order_carries_no_gradient():
    k = torch.randn(1, 2, 16, 4, requires_grad=True)
    plan = secvit.cluster(k, 4)
    assert not any(x.requires_grad for x in (plan.order, plan.inverse, plan.labels, plan.sizes))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("descending", [False, True])
def test_a_bad_token_sorts_last(bad, descending):
    k = torch.randn(2, 3, 63, 8)
    for entry in (slice(None), 3):  # the whole token, or one channel of it
        spoilt = k.clone()
        spoilt[:, :, 20, entry] = bad
        plan = secvit.cluster(spoilt, 5, descending=descending)
        assert (plan.order[..., -1] == 20).all()
        assert (plan.order.sort(dim=-1).values == torch.arange(63)).all()
        assert (plan.labels[..., 20] == 4).all()


def test_one_bad_channel_leaves_the_other_tokens_scored():
    k = torch.randn(1, 64, 8)
    k[0, 20, 3] = float("nan")
    others = torch.arange(64) != 20
    kept = k[:, others].clone()
    kept[..., 3] = 0  # spoilt in the centre, so it adds nothing to the product
    centre = k.mean(dim=1, keepdim=True).nan_to_num()
    score = (kept * centre).sum(-1) / k[:, others].norm(dim=-1)
    order = secvit.cluster(k, 4).order[0, :-1]
    assert torch.equal(torch.arange(64)[others][score.argsort()[0]], order)


def test_tokens_that_are_all_bad_are_still_partitioned():
    plan = secvit.cluster(torch.full((1, 9, 4), float("nan")), 2)
    assert plan.labels[0].bincount().tolist() == [5, 4]


def test_bad_real_tokens_come_before_padded_ones():
    k = torch.randn(2, 3, 20, 8)
    k[:, :, 4] = float("nan")
    mask = lengths_mask([15, 20], 20)
    plan = secvit.cluster(k, 3, mask=mask)
    assert (plan.order[0, :, 14] == 4).all()
    assert (plan.order[1, :, 19] == 4).all()
    assert (plan.labels[0, :, 15:] == -1).all()


def test_what_padded_tokens_hold_changes_nothing():
    k = torch.randn(2, 3, 20, 8)
    mask = torch.rand(2, 20) < 0.7
    expected = secvit.cluster(k, 3, mask=mask)
    for bad in (float("nan"), float("inf"), 1e30):
        spoilt = k.masked_fill(~mask[:, None, :, None], bad)
        plan = secvit.cluster(spoilt, 3, mask=mask)
        assert torch.equal(plan.labels, expected.labels)
        assert torch.equal(plan.sizes, expected.sizes)


@pytest.mark.parametrize("partition", ["sec", "raster", "random_projection", "pc1", "kmeans"])
def test_a_mask_gives_the_partition_of_the_real_tokens_alone(partition):
    k = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    mask = lengths_mask([13, 20], 20)
    plan = secvit.cluster(k, 3, mask=mask, partition=partition)
    for b, count in enumerate((13, 20)):
        alone = secvit.cluster(k[b : b + 1, :, :count], 3, partition=partition)
        assert torch.equal(plan.labels[b, :, :count], alone.labels[0])
        assert torch.equal(plan.sizes[b], alone.sizes[0])
        assert (plan.labels[b, :, count:] == -1).all()


def test_fewer_real_tokens_than_clusters_leave_the_last_clusters_empty():
    plan = secvit.cluster(torch.randn(2, 6, 4), 4, mask=lengths_mask([2, 0], 6))
    assert plan.sizes.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert (plan.labels[1] == -1).all()
    assert plan.merge(torch.ones(2, 6, 4)).sum(-1).tolist() == [[4, 4, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("length", LENGTHS)
def test_inverse_undoes_order(length):
    order = torch.rand(2, 3, length).argsort(dim=-1)
    inverse = inverse_order(order)
    ranks = torch.arange(length).expand_as(order)
    assert torch.equal(order.gather(-1, inverse), ranks)
    assert torch.equal(inverse.gather(-1, order), ranks)


def test_labels_follow_order_and_sizes():
    plan = plan_for()
    sorted_labels = plan.labels.gather(-1, plan.order)
    expected = torch.arange(5).repeat_interleave(torch.tensor(partition_sizes(63, 5)))
    assert (sorted_labels == expected).all()


MASKS = {"whole": None, "padded": lengths_mask([63, 41], 63), "short": lengths_mask([3, 0], 63)}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_put_back_undoes_take(shared, mask):
    plan = plan_for(mask=mask, shared=shared)
    x = torch.randn(2, 3, 63, 7)
    assert torch.equal(plan.put_back(plan.take(x)), x)
    assert torch.equal(plan.take(plan.put_back(x)), x)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_ungroup_undoes_group_and_zeroes_padding(shared, mask):
    plan = plan_for(mask=mask, shared=shared)
    x = torch.randn(2, 3, 63, 7)
    expected = x if mask is None else x * mask[:, None, :, None]
    assert torch.equal(plan.ungroup(plan.group(x)), expected)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_group_holds_the_tokens_of_each_label(shared, mask):
    plan = plan_for(mask=mask, shared=shared)
    x = torch.randn(2, 3, 63, 7)
    grouped, merged = plan.group(x), plan.merge(x)
    unmerged = plan.unmerge(merged)
    for b in range(2):
        for head in range(3):
            labels = plan.labels[b] if shared else plan.labels[b, head]
            for m in range(5):
                members = x[b, head, labels == m]
                slots = grouped[b, head, m]
                assert torch.equal(slots[: len(members)].sort(dim=0).values, members.sort(dim=0).values)
                assert not slots[len(members) :].any()
                mean = members.mean(dim=0) if len(members) else torch.zeros(7)
                # float32 sums of 13 terms in another order
                torch.testing.assert_close(merged[b, head, m], mean, rtol=1e-5, atol=1e-6)
                assert (unmerged[b, head, labels == m] == merged[b, head, m]).all()
            assert not unmerged[b, head, labels < 0].any()


def test_group_keeps_what_bad_tokens_hold_out_of_other_clusters():
    plan = plan_for()
    x = torch.randn(2, 3, 63, 7)
    x[:, :, 0] = float("nan")
    spoilt = plan.merge(x).isnan().any(dim=-1)
    assert torch.equal(spoilt, torch.arange(5) == plan.labels[..., :1])


def test_gradients_pass_through_group_and_back():
    plan = plan_for(batch=1, heads=2, length=7, clusters=3, mask=lengths_mask([5], 7))
    x = torch.randn(1, 2, 7, 2, dtype=torch.float64, requires_grad=True)
    for function in (
        plan.take,
        lambda x: plan.ungroup(plan.group(x) * 2),
        lambda x: plan.unmerge(plan.merge(x)),
    ):
        assert torch.autograd.gradcheck(function, x)


def test_a_plan_per_head_refuses_tokens_without_heads():
    with pytest.raises(ValueError, match="does not fit"):
        plan_for().take(torch.randn(2, 63, 4))


def test_tokens_without_a_batch_are_partitioned():
    tokens = torch.randn(10, 4)
    plan = secvit.cluster(tokens, 3, mask=torch.arange(10) < 7)
    assert plan.sizes.tolist() == [3, 2, 2]
    assert torch.equal(plan.put_back(plan.take(tokens)), tokens)


# -- small keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [(torch.float32, (1.0, 1e-20, 1e-30)), (torch.float32, (1e-20, 1e-30)), (torch.float64, (1.0, 1e-100, 1e-200))],
)
def test_keys_of_any_norm_are_ordered_by_their_cosine(dtype, scales, compiled):
    directions = torch.randn(2, 60, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    k = directions * torch.tensor(scales, dtype=dtype).repeat_interleave(60 // len(scales)).unsqueeze(-1)
    centre = k.mean(dim=-2, keepdim=True)
    unit = [x / x.abs().amax(dim=-1, keepdim=True) for x in (k, centre)]
    cosine = torch.cosine_similarity(*(x.double() for x in unit), dim=-1)
    order = torch.compile(cluster_order, backend="eager")(k) if compiled else cluster_order(k)
    ranked = cosine.gather(-1, order)
    assert (ranked.diff(dim=-1) > -1e-6).all()  # float32: sums of 8 terms
    for b in range(2):
        by_loops = reference.sort_by_similarity(k[b], k[b].mean(dim=0))
        assert (cosine[b, by_loops].diff() > -1e-6).all()


def test_a_zero_key_lies_between_those_that_point_to_the_centre_and_away():
    k = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1e-30, 0.0], [1e-30, 1e-30]])
    assert cluster_order(k).tolist() == [2, 1, 3, 0]
    assert reference.sort_by_similarity(k, k.mean(dim=0)).tolist() == [2, 1, 3, 0]


def test_a_centre_as_small_as_its_keys_still_ranks_them():
    k = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    power = 2.0**-100
    assert torch.equal(cluster_order(k * power), cluster_order(k))


# -- what a plan keeps -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inverse", "slots", "labels", "sizes", "slot_of_token"])
def test_a_plan_computes_what_it_derives_once(name):
    plan = Plan.equal(torch.randperm(20).unsqueeze(0), 3)
    assert getattr(plan, name) is getattr(plan, name)


def test_a_plan_used_under_inference_mode_first_trains_later():
    x = torch.randn(1, 2, 20, 4, requires_grad=True)
    plan = Plan.equal(torch.randperm(20).expand(1, 2, 20), 3)
    with torch.inference_mode():
        sec_attention(x, x, x, plan=plan)
    sec_attention(x, x, x, plan=plan).sum().backward()
    assert x.grad is not None
