"""sec_pool against its loops and against what Eqs. 5 and 6 promise."""

import pytest
import torch

from secvit.ops import pool_plan, reference, sec_pool

# float64 sums in another order: 1e-16 each, at most 577 terms, softmax included
EXACT = dict(rtol=1e-10, atol=1e-12)
COUNTS = [
    (7, 3),
    (7, 7),
    (1, 1),
    (63, 8),
    (63, 60),
    (576, 288),
    (576, 256),
    (576, 192),
    (576, 144),
    (576, 128),
    (576, 64),
    (576, 1),
    (576, 576),
]


def qkv(length, batch=2, heads=2, dim=4):
    return tuple(torch.randn(batch, heads, length, dim, dtype=torch.float64, requires_grad=True) for _ in range(3))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("arrangement", ["interleaved", "sequential"])
@pytest.mark.parametrize(("length", "count"), COUNTS)
def test_pooling_equals_the_loops(length, count, arrangement, masked):
    inputs = qkv(length, heads=1 if length > 100 else 2)
    mask = torch.arange(length) < torch.tensor([[length * 2 // 3 + 1], [length]]) if masked else None
    out = sec_pool(*inputs, count, arrangement=arrangement, mask=mask)
    assert out.shape == (*inputs[0].shape[:2], count, 4)
    expected = reference.sec_pool(*inputs, count, arrangement, mask)
    torch.testing.assert_close(out, expected, **EXACT)
    weight = torch.randn_like(expected)
    found, true = (torch.autograd.grad((x * weight).sum(), inputs) for x in (out, expected))
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("arrangement", ["interleaved", "sequential"])
def test_heads_may_have_orders_of_their_own(arrangement):
    inputs = qkv(63, heads=3)
    out = sec_pool(*inputs, 8, arrangement=arrangement, shared=False)
    torch.testing.assert_close(out, reference.sec_pool(*inputs, 8, arrangement, shared=False), **EXACT)
    assert not torch.equal(out, sec_pool(*inputs, 8, arrangement=arrangement))


@pytest.mark.parametrize("arrangement", ["interleaved", "sequential"])
@pytest.mark.parametrize(("length", "count"), COUNTS)
def test_group_sizes_differ_by_at_most_one(length, count, arrangement):
    plan = pool_plan(torch.randn(2, length, 4), count, arrangement)
    assert plan.sizes.max() - plan.sizes.min() <= 1
    assert (plan.sizes.sum(dim=-1) == length).all()
    assert (plan.order.sort(dim=-1).values == torch.arange(length)).all()


def test_576_to_256_is_64_groups_of_3_and_192_of_2():
    sizes = pool_plan(torch.randn(1, 576, 4), 256).sizes[0]
    assert sizes.bincount().tolist() == [0, 0, 192, 64]


@pytest.mark.parametrize(("length", "count"), [(576, 144), (576, 256), (63, 8)])
def test_the_least_typical_tokens_fall_into_different_groups(length, count):
    k = torch.randn(2, length, 8, dtype=torch.float64)
    plan = pool_plan(k, count)
    for sample, labels in zip(k, plan.labels, strict=True):
        rising = reference.sort_by_similarity(sample, sample.mean(dim=0))
        assert len(set(labels[rising[:count]].tolist())) == count
        assert len(set(labels[rising[-count:]].tolist())) == count


@pytest.mark.parametrize("arrangement", ["interleaved", "sequential"])
def test_groups_are_the_ranks_of_eq_5(arrangement):
    k = torch.randn(63, 8, dtype=torch.float64)
    order = reference.sort_by_similarity(k, k.mean(dim=0), descending=True)
    labels = pool_plan(k.unsqueeze(0), 8, arrangement).labels[0]
    for n, ranks in enumerate(reference.group_ranks(63, 8, arrangement)):
        assert (labels[order[ranks]] == n).all()


def test_all_tokens_as_outputs_are_the_values_in_falling_order():
    q, k, v = qkv(9, heads=1)
    order = pool_plan(k[:, 0], 9).order
    torch.testing.assert_close(
        sec_pool(q, k, v, 9)[:, 0], v[:, 0].gather(1, order.unsqueeze(-1).expand(2, 9, 4)), **EXACT
    )


def test_one_output_is_the_attention_of_the_mean_query():
    q, k, v = qkv(20)
    mean = torch.nn.functional.scaled_dot_product_attention(q.mean(dim=2, keepdim=True), k, v)
    torch.testing.assert_close(sec_pool(q, k, v, 1), mean, **EXACT)


def test_permuting_tokens_changes_no_output():
    q, k, v = qkv(63)
    order = torch.randperm(63)
    torch.testing.assert_close(sec_pool(*(x[:, :, order] for x in (q, k, v)), 8), sec_pool(q, k, v, 8), **EXACT)


@pytest.mark.parametrize("arrangement", ["interleaved", "sequential"])
def test_what_padded_tokens_hold_changes_nothing(arrangement):
    q, k, v = (x.detach() for x in qkv(20))
    mask = torch.arange(20) < torch.tensor([[13], [3]])
    out = sec_pool(q, k, v, 5, arrangement=arrangement, mask=mask)
    spoilt = [x.masked_fill(~mask[:, None, :, None], float("nan")).requires_grad_() for x in (q, k, v)]
    again = sec_pool(*spoilt, 5, arrangement=arrangement, mask=mask)
    assert torch.equal(again, out)
    assert all(g.isfinite().all() for g in torch.autograd.grad(again.square().sum(), spoilt))
    empty = ~out[1].any(dim=-1)
    assert (empty.sum(dim=-1) == 2).all()  # 3 real tokens, 5 outputs


def test_a_plan_made_elsewhere_gives_the_same():
    q, k, v = qkv(63)
    plan = pool_plan(k.transpose(1, 2).flatten(2), 8)
    assert torch.equal(sec_pool(q, k, v, 8, plan=plan), sec_pool(q, k, v, 8))


def test_pooled_gradients_are_those_of_finite_differences():
    inputs = qkv(5, batch=1, heads=1, dim=2)
    assert torch.autograd.gradcheck(lambda q, k, v: sec_pool(q, k, v, 2), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_moves_no_token_to_another_group(dtype):
    k = torch.randn(2, 576, 64)
    expected = pool_plan(k, 144).labels
    with torch.autocast("cpu", dtype):
        assert torch.equal(pool_plan(k, 144).labels, expected)


@pytest.mark.parametrize("arrangement", ["interleaved", "sequential"])
def test_returned_weights_are_those_of_the_values(arrangement):
    q, k, v = (x.detach() for x in qkv(23))
    mask = torch.arange(23) < torch.tensor([[23], [3]])  # 3 tokens for 5 outputs
    plan = pool_plan(k.transpose(1, 2).flatten(2), 5, arrangement, mask)
    out, weights = sec_pool(q, k, v, 5, mask=mask, plan=plan, return_weights=True)
    assert torch.equal(out, sec_pool(q, k, v, 5, mask=mask, plan=plan))
    slots = plan.slots[0].unsqueeze(1).expand_as(weights)
    values = v.unsqueeze(2).expand(-1, -1, 5, -1, -1).gather(3, slots.unsqueeze(-1).expand(*slots.shape, 4))
    torch.testing.assert_close((weights.unsqueeze(-1) * values).sum(dim=3), out, **EXACT)
    total = (plan.sizes > 0).double().unsqueeze(1).expand(2, 2, 5)
    torch.testing.assert_close(weights.sum(dim=-1), total, **EXACT)
