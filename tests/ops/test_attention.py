"""sec_attention against its loops and against what must hold of any partition."""

import pytest
import torch
import torch.nn.functional as F

import secvit
from secvit.ops import PARTITIONS, attend_sorted, reference, sec_attention, sec_attention_packed
from secvit.ops.attention import packed_attention_and_values, packed_order

# float64 sums in another order: 1e-16 each, at most 3136 terms, softmax included
EXACT = dict(rtol=1e-10, atol=1e-12)

SMALL = [(length, clusters) for length in (1, 2, 7, 63) for clusters in (1, 2, 3, 7, 32, 63) if clusters <= length]
LARGE = [(196, 1), (196, 2), (196, 8), (577, 4), (577, 32), (3136, 32), (3136, 7)]


def qkv(length, batch=2, heads=2, dim=4, dtype=torch.float64):
    return tuple(torch.randn(batch, heads, length, dim, dtype=dtype, requires_grad=True) for _ in range(3))


def gradients(out, inputs, weight):
    return torch.autograd.grad((out * weight).sum(), inputs)


def assert_same_with_gradients(out, expected, inputs):
    torch.testing.assert_close(out, expected, **EXACT)
    weight = torch.randn_like(expected)
    for found, true in zip(gradients(out, inputs, weight), gradients(expected, inputs, weight), strict=True):
        torch.testing.assert_close(found, true, **EXACT)


def padding(batch, length):
    """Ragged padding on the right in the first sample, holes in the second."""
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, (length * 3) // 5 + 1 :] = False
    mask[1] = torch.rand(length) < 0.8
    return mask


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("length", "clusters"), SMALL + LARGE)
def test_attention_equals_the_loops(length, clusters, masked):
    large = length > 196
    inputs = qkv(length, batch=2, heads=1 if large else 2, dim=4)
    mask = padding(2, length) if masked else None
    out = sec_attention(*inputs, num_clusters=clusters, mask=mask)
    assert_same_with_gradients(out, sec_attention(*inputs, clusters, mask=mask, backend="reference"), inputs)


@pytest.mark.parametrize(("length", "clusters"), SMALL + LARGE)
def test_packed_attention_equals_the_loops(length, clusters):
    heads = 1 if length > 196 else 2
    packed = torch.randn(2, length, heads, 3, 4, dtype=torch.float64, requires_grad=True)
    q, k, v = packed.permute(3, 0, 2, 1, 4).unbind(0)
    out = sec_attention_packed(packed, clusters, scale=0.5).transpose(1, 2)
    expected = reference.sec_attention(q, k, v, clusters, scale=0.5)
    assert_same_with_gradients(out, expected, (packed,))
    order = secvit.cluster(k, clusters).order
    assert torch.equal(packed_order(packed), order)


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_values_for_lepe_give_their_gradient_to_the_packed_rows(clusters):
    packed = torch.randn(1, 9, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    q, k, v = packed.permute(3, 0, 2, 1, 4).unbind(0)
    found = torch.cat(packed_attention_and_values(packed, clusters, 0.5), dim=-1)
    expected = torch.cat([reference.sec_attention(q, k, v, clusters, scale=0.5), v], dim=-1).transpose(1, 2)
    assert_same_with_gradients(found, expected, (packed,))
    assert torch.autograd.gradgradcheck(lambda x: packed_attention_and_values(x, clusters, 0.5, "math"), (packed,))


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_backends_agree(backend, masked):
    inputs = qkv(63)
    mask = padding(2, 63) if masked else None
    out = sec_attention(*inputs, 5, mask=mask, scale=0.3, backend=backend)
    assert_same_with_gradients(out, sec_attention(*inputs, 5, mask=mask, scale=0.3, backend="reference"), inputs)


@pytest.mark.parametrize("length", [1, 7, 196])
def test_one_cluster_is_full_attention(length):
    q, k, v = qkv(length)
    assert_same_with_gradients(sec_attention(q, k, v, 1), F.scaled_dot_product_attention(q, k, v), (q, k, v))


def test_as_many_clusters_as_tokens_give_the_values():
    q, k, v = qkv(9)
    torch.testing.assert_close(sec_attention(q, k, v, 9), v, **EXACT)


def test_cluster_size_makes_as_many_clusters_as_needed():
    q, k, v = qkv(63)
    assert torch.equal(sec_attention(q, k, v, cluster_size=10), sec_attention(q, k, v, 7))


@pytest.mark.parametrize("clusters", [1, 4, 5])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_permuting_tokens_permutes_the_output(clusters, masked):
    q, k, v = qkv(64)
    mask = padding(2, 64) if masked else None
    out = sec_attention(q, k, v, clusters, mask=mask)
    for _ in range(3):
        order = torch.randperm(64)
        moved = sec_attention(
            *(x[:, :, order] for x in (q, k, v)), clusters, mask=None if mask is None else mask[:, order]
        )
        torch.testing.assert_close(moved, out[:, :, order], **EXACT)


def test_samples_and_heads_do_not_touch_each_other():
    q, k, v = qkv(50, batch=3, heads=2)
    together = sec_attention(q, k, v, 6)
    for b in range(3):
        for head in range(2):
            alone = sec_attention(*(x[b : b + 1, head : head + 1] for x in (q, k, v)), 6)
            torch.testing.assert_close(together[b : b + 1, head : head + 1], alone, **EXACT)


def test_padded_tokens_come_out_as_zeros_and_change_nothing():
    q, k, v = qkv(20)
    mask = torch.arange(20) < torch.tensor([[13], [20]])
    out = sec_attention(q, k, v, 3, mask=mask)
    assert not out[0, :, 13:].any()
    alone = sec_attention(*(x[:1, :, :13] for x in (q, k, v)), 3)
    torch.testing.assert_close(out[:1, :, :13], alone, **EXACT)
    for bad in (float("nan"), float("inf"), 1e300):
        spoilt = [x.detach().masked_fill(~mask[:, None, :, None], bad).requires_grad_() for x in (q, k, v)]
        again = sec_attention(*spoilt, 3, mask=mask)
        assert torch.equal(again, out)
        for gradient in gradients(again, spoilt, torch.randn_like(out)):
            assert gradient.isfinite().all()
            assert not gradient[0, :, 13:].any()


def test_a_sample_of_padding_alone_gives_zeros():
    q, k, v = qkv(8)
    mask = torch.tensor([[False], [True]]).expand(2, 8)
    out = sec_attention(q, k, v, 3, mask=mask)
    assert not out[0].any()
    assert all(g.isfinite().all() for g in gradients(out, (q, k, v), torch.randn_like(out)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("clusters", [4, 5])
def test_a_bad_token_spoils_no_cluster_but_the_last(bad, clusters):
    q, k, v = (x.detach() for x in qkv(64))
    for x in (q, k, v):
        x[:, :, 10] = bad
    plan = secvit.cluster(k, clusters)
    assert (plan.order[..., -1] == 10).all()
    out = sec_attention(q, k, v, clusters)
    assert out[plan.labels < clusters - 1].isfinite().all()
    packed = sec_attention_packed(torch.stack([q, k, v], dim=3).transpose(1, 2), clusters, scale=0.5)
    assert packed.transpose(1, 2)[plan.labels < clusters - 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_partition(dtype):
    packed = torch.randn(2, 1024, 2, 3, 16)
    order = packed_order(packed)
    with torch.autocast("cpu", dtype):
        assert torch.equal(packed_order(packed), order)
        assert torch.equal(packed_order(packed.to(dtype)), packed_order(packed.to(dtype).float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clusters", [3, 8])
def test_half_precision_is_near_float32_for_the_same_keys(dtype, clusters):
    q, k, v = (x.detach().to(dtype) for x in qkv(196, dim=16))
    out = sec_attention(q, k, v, clusters)
    assert out.dtype == dtype
    expected = sec_attention(q.float(), k.float(), v.float(), clusters)
    # bf16 keeps 8 bits: 2^-8 of values up to 4, over a few roundings
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_the_order_carries_no_gradient():
    q, k, v = qkv(12)
    plan = secvit.cluster(k, 3)
    held = sec_attention(q, k, v, plan=plan)
    out = sec_attention(q, k, v, 3)
    weight = torch.randn_like(out)
    for found, expected in zip(gradients(out, (q, k, v), weight), gradients(held, (q, k, v), weight), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("clusters", [2, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_gradients_are_those_of_finite_differences(clusters, masked):
    inputs = qkv(6, batch=1, heads=1, dim=2)
    mask = torch.tensor([[True] * 5 + [False]]) if masked else None
    assert torch.autograd.gradcheck(lambda q, k, v: sec_attention(q, k, v, clusters, mask=mask), inputs)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("options", [{}, {"num_prefix_tokens": 1}, {"mask": torch.tensor([[True] * 5 + [False]])}])
def test_second_gradients_are_those_of_finite_differences(backend, options):
    inputs = qkv(6, batch=1, heads=1, dim=2)
    assert torch.autograd.gradgradcheck(lambda q, k, v: sec_attention(q, k, v, 2, backend=backend, **options), inputs)


def test_gradients_that_may_be_derived_again_are_the_same():
    q, k, v = inputs = qkv(63)
    out = sec_attention(q, k, v, 4)
    weight = torch.randn_like(out)
    again = torch.autograd.grad((out * weight).sum(), inputs, create_graph=True, retain_graph=True)
    for found, expected in zip(again, gradients(out, inputs, weight), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_backward_is_deterministic():
    q, k, v = qkv(196, dtype=torch.float32)
    mask = padding(2, 196)
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    try:
        for arguments in ({}, {"mask": mask}):
            weight = torch.randn_like(q)
            runs = [gradients(sec_attention(q, k, v, 5, **arguments), (q, k, v), weight) for _ in range(2)]
            for first, second in zip(*runs, strict=True):
                assert torch.equal(first, second)
                assert first.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_one_order_may_be_shared_by_all_heads():
    q, k, v = qkv(63, heads=3)
    plan = secvit.cluster(k.transpose(1, 2).flatten(2), 5)
    assert plan.order.shape == (2, 63)
    out = sec_attention(q, k, v, 5, shared=True)
    assert torch.equal(sec_attention(q, k, v, plan=plan), out)
    assert not torch.equal(sec_attention(q, k, v, 5), out)
    for head in range(3):
        for b in range(2):
            for m in range(5):
                members = (plan.labels[b] == m).nonzero()[:, 0]
                expected = reference.attention(q[b, head, members], k[b, head, members], v[b, head, members], 0.5)
                torch.testing.assert_close(out[b, head, members], expected, **EXACT)


def test_shared_order_works_under_a_mask():
    q, k, v = qkv(20, heads=3)
    mask = torch.arange(20) < torch.tensor([[13], [20]])
    out = sec_attention(q, k, v, 4, mask=mask, shared=True)
    alone = sec_attention(*(x[:1, :, :13] for x in (q, k, v)), 4, shared=True)
    torch.testing.assert_close(out[:1, :, :13], alone, **EXACT)


@pytest.mark.parametrize(
    ("partition", "masked"),
    [(name, masked) for name in PARTITIONS for masked in (False, True) if (name, masked) != ("balanced_kmeans", True)],
)
def test_every_partition_may_be_given_as_a_plan(partition, masked):
    q, k, v = qkv(49)
    mask = padding(2, 49) if masked else None
    plan = secvit.cluster(k, 6, partition=partition, mask=mask)
    out = sec_attention(q, k, v, plan=plan)
    expected = torch.zeros_like(v)
    for b in range(2):
        for head in range(2):
            for m in range(6):
                members = (plan.labels[b, head] == m).nonzero()[:, 0]
                if len(members):
                    part = reference.attention(q[b, head, members], k[b, head, members], v[b, head, members], 0.5)
                    expected[b, head, members] = part
    assert_same_with_gradients(out, expected, (q, k, v))


def test_a_masked_plan_keeps_what_padding_holds_out():
    q, k, v = (x.detach() for x in qkv(20))
    mask = torch.arange(20) < torch.tensor([[13], [20]])
    plan = secvit.cluster(k, 3, mask=mask)
    expected = sec_attention(q, k, v, 3, mask=mask)
    assert torch.equal(sec_attention(q, k, v, plan=plan), expected)
    spoilt = (x.masked_fill(~mask[:, None, :, None], float("nan")) for x in (q, k, v))
    assert torch.equal(sec_attention(*spoilt, plan=plan), expected)


def test_an_empty_batch_gives_an_empty_output():
    q, k, v = qkv(9, batch=0)
    assert sec_attention(q, k, v, 2).shape == (0, 2, 9, 4)
    assert sec_attention_packed(torch.empty(0, 9, 2, 3, 4), 2, 0.5).shape == (0, 9, 2, 4)


def test_values_may_be_wider_than_keys():
    q, k, _ = qkv(20)
    v = torch.randn(2, 2, 20, 6, dtype=torch.float64)
    out = sec_attention(q, k, v, 3)
    assert out.shape == (2, 2, 20, 6)
    torch.testing.assert_close(out, reference.sec_attention(q, k, v, 3), **EXACT)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize(("length", "clusters"), [(1, 1), (7, 3), (63, 4), (64, 4), (63, 63)])
def test_prefix_tokens_are_keys_of_every_cluster_and_see_all_tokens(length, clusters, prefix, masked):
    inputs = qkv(prefix + length)
    mask = padding(2, prefix + length) if masked else None
    if masked:
        mask[:, :prefix] = True
    options = dict(num_clusters=clusters, mask=mask, num_prefix_tokens=prefix)
    out = sec_attention(*inputs, **options)
    assert_same_with_gradients(out, sec_attention(*inputs, backend="reference", **options), inputs)


def test_one_cluster_with_a_prefix_is_full_attention():
    q, k, v = qkv(18)
    out = sec_attention(q, k, v, num_clusters=1, num_prefix_tokens=2)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), **EXACT)


@pytest.mark.parametrize("partition", ["window", "kmeans"])
def test_a_plan_with_a_prefix_speaks_of_the_other_tokens(partition):
    """Each cluster with its prefix, by hand."""
    q, k, v = qkv(2 + 16)
    plan = secvit.cluster(k[:, :, 2:], num_clusters=4, partition=partition)
    out = sec_attention(q, k, v, plan=plan, num_prefix_tokens=2)
    full = (q @ k.mT) * 4**-0.5
    labels = plan.labels
    together = labels.unsqueeze(-1) == labels.unsqueeze(-2)
    together = F.pad(together, (2, 0, 2, 0), value=True)
    torch.testing.assert_close(out, full.masked_fill(~together, -torch.inf).softmax(-1) @ v, **EXACT)


def test_prefix_tokens_need_others():
    with pytest.raises(ValueError, match="num_prefix_tokens=4 for 4 tokens"):
        sec_attention(*qkv(4), num_clusters=1, num_prefix_tokens=4)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("clusters", [1, 4, 5])
def test_attention_of_sorted_tokens_needs_no_order(clusters, prefix):
    q, k, v = inputs = qkv(prefix + 32)
    plan = secvit.cluster(k[:, :, prefix:], clusters)
    taken = [torch.cat([x[:, :, :prefix], plan.take(x[:, :, prefix:])], dim=2) for x in inputs]
    out = attend_sorted(*taken, clusters, num_prefix_tokens=prefix)
    out = torch.cat([out[:, :, :prefix], plan.put_back(out[:, :, prefix:])], dim=2)
    expected = sec_attention(q, k, v, num_clusters=clusters, num_prefix_tokens=prefix)
    assert_same_with_gradients(out, expected, inputs)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_dropout_drops_weights_and_keeps_the_mean(backend):
    q, k, v = (torch.randn(1, 1, 64, 4) for _ in range(3))
    v = torch.ones_like(v)
    out = sec_attention(q, k, v, num_clusters=4, dropout_p=0.5, backend=backend)
    assert out.std() > 0.05  # without dropout every output is exactly 1
    assert abs(float(out.mean()) - 1) < 0.5  # 64 rows of 16 weights each
