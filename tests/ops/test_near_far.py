"""Near clusters exactly, far ones as summaries: batched equals loops, and everything near equals full attention."""

import pytest
import torch
import torch.nn.functional as F

import secvit
from secvit.ops import Plan, near_far
from secvit.ops import reference_near_far as reference
from secvit.ops.backends import Options
from secvit.ops.tree import tree_plan

SCALE = 0.3
CASES = [(1, 1, 1, 0), (2, 2, 1, 1), (63, 4, 2, 0), (63, 5, 3, 2), (30, 30, 3, 1), (196, 16, 2, 1), (577, 12, 4, 0),
         (1024, 16, 2, 1), (1369, 36, 3, 5)]  # fmt: skip


def near_far_attention(q, k, v, plan, near, far, scale=SCALE, prefix=0, mask=None, dropout_p=0.0):
    options = Options(scale, "auto", prefix, dropout_p, near, far)
    return near_far.near_far_attention(q, k, v, plan, options, mask)


def qkv(length, heads=2, dim=16, batch=1, dtype=torch.float64):
    """As networks have them: slices of one packed tensor (B, L, 3, h, D)."""
    packed = torch.randn(batch, length, 3, heads, dim, dtype=dtype, requires_grad=True)
    return packed.permute(2, 0, 3, 1, 4).unbind(0), packed


def tree(q, k, clusters, prefix=0, mask=None):
    return tree_plan([q[:, :, prefix:], k[:, :, prefix:]], clusters, None if mask is None else mask[:, None, prefix:])


def by_loops(q, k, v, plan, near, far, prefix=0):
    out = []
    for b in range(q.shape[0]):
        for head in range(q.shape[1]):
            sizes = plan.sizes[b, head].tolist()
            clusters = [part.tolist() for part in plan.order[b, head, : sum(sizes)].split(sizes)]
            one = (x[b, head] for x in (q, k, v))
            out.append(reference.near_far_attention(*one, clusters, near, far, SCALE, prefix))
    return torch.stack(out).unflatten(0, q.shape[:2])


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize(("length", "clusters", "near", "prefix"), CASES)
def test_batched_equals_loops_with_gradients(length, clusters, near, prefix, far):
    (q, k, v), packed = qkv(prefix + length)
    plan = tree(q, k, clusters, prefix)
    out = near_far_attention(q, k, v, plan, near, far, SCALE, prefix)
    expected = by_loops(q, k, v, plan, near, far, prefix)
    # float64 rounding, of sums of at most 1,369 terms
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(out)
    gradients = [torch.autograd.grad((y * cotangent).sum(), packed)[0] for y in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 63, 196, 577])
@pytest.mark.parametrize("which", ["one cluster", "all near", "single tokens", "single tokens, all near"])
def test_it_is_full_attention_where_nothing_is_summed_up(length, which):
    (q, k, v), _ = qkv(length + 1)
    clusters = {"one cluster": 1, "all near": min(length, 7)}.get(which, length)
    plan = tree(q, k, clusters, 1)
    near = clusters if "all near" in which else 1
    out = near_far_attention(q, k, v, plan, near, True, SCALE, 1)
    expected = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_a_cluster_is_cut_in_halves_of_its_order():
    order = torch.randperm(11).unsqueeze(0)
    plan = near_far.halves(Plan.equal(order, 3))
    assert plan.sizes.tolist() == [[2, 2, 2, 2, 2, 1]] and plan.order is order
    assert near_far.halves(Plan.equal(order[:, :8], 2)).unequal_sizes is None


def test_queries_that_are_alike_in_a_cluster_get_full_attention():
    """A summary is exact for the mean query."""
    (q, k, v), _ = qkv(64)
    plan = tree(q, k, 8)
    same = plan.unmerge(plan.merge(q))
    out = near_far_attention(same, k, v, plan, 1, True, SCALE)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(same, k, v, scale=SCALE), rtol=1e-12, atol=1e-12)


def test_near_one_without_far_is_attention_inside_clusters():
    (q, k, v), _ = qkv(100)
    plan = secvit.cluster(k, 8)
    found = near_far_attention(q, k, v, plan, 1, False, SCALE)
    torch.testing.assert_close(found, secvit.sec_attention(q, k, v, plan=plan, scale=SCALE), rtol=1e-12, atol=1e-12)


def test_more_near_clusters_are_nearer_to_full_attention():
    (q, k, v), _ = qkv(256, dtype=torch.float32)
    full = F.scaled_dot_product_attention(q, k, v, scale=SCALE)
    plan = tree(q, k, 16)
    errors = [(near_far_attention(q, k, v, plan, r, True, SCALE) - full).norm().item() for r in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]
    assert errors[0] < (near_far_attention(q, k, v, plan, 1, False, SCALE) - full).norm()


@pytest.mark.parametrize("partition", [p for p in secvit.ops.PARTITIONS if p != "tree"] + ["own"])
def test_every_partition_takes_near_and_far(partition):
    (q, k, v), packed = qkv(81, batch=2)
    if partition == "own":
        plan = secvit.cluster(k, 6, partition=lambda tokens, *_: tokens[..., 0])
    else:
        plan = secvit.cluster(k, 6, partition=partition, grid=(9, 9))
    out = near_far_attention(q, k, v, plan, 2, True, SCALE)
    expected = by_loops(q, k, v, plan, 2, True)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(y.square().sum(), packed)[0] for y in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("clusters", [3, 7, 19])
def test_padding_is_seen_by_none_and_comes_out_as_zeros(clusters, far):
    """19 clusters of 18 tokens: one is empty."""
    (q, k, v), packed = qkv(62, batch=2)
    mask = torch.arange(62) < torch.tensor([[62], [20]])
    plan = tree(q, k, clusters, 2, mask)
    real = mask.unsqueeze(1).expand(-1, 2, -1)
    clean = [x.masked_fill(~real.unsqueeze(-1), 0) for x in (q, k, v)]
    out = near_far_attention(*clean, plan, 3, far, SCALE, 2, mask=mask.unsqueeze(1))
    assert (out[1, :, 20:] == 0).all()
    expected = by_loops(q, k, v, plan, 3, far, 2)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(y.square().sum(), packed)[0] for y in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 20_000])
def test_pieces_change_nothing(chunk, monkeypatch):
    (q, k, v), packed = qkv(130, batch=3)
    plan = tree(q, k, 8, 2)
    whole = near_far_attention(q, k, v, plan, 2, True, SCALE, 2)
    monkeypatch.setattr(near_far, "CHUNK", chunk)
    pieces = near_far_attention(q, k, v, plan, 2, True, SCALE, 2)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), packed)[0] for y in (pieces, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_memory_of_many_clusters_is_bounded():
    """Summaries of every cluster for every cluster would be 2 x 1,024^2 x 64 floats: 1 GB a head."""
    (q, k, v), _ = qkv(2048, heads=1, dim=32, dtype=torch.float32)
    with torch.no_grad():
        plan = tree(q, k, 1024)
        step = near_far._clusters_at_a_time(q.view(1, 1024, 2, 1, 32), torch.empty(1, 1024, 2, 64), Options(1.0))
        assert step * 1024 * 3 * 64 <= 4 * near_far.CHUNK
        assert near_far_attention(q, k, v, plan, 2, True, SCALE).isfinite().all()


def test_gradients_are_those_of_finite_differences():
    q, k, v = (torch.randn(1, 1, 14, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    plan = tree(q, k, 5, 2)
    assert torch.autograd.gradcheck(
        lambda *x: near_far_attention(*x, plan, 2, True, SCALE, 2), (q, k, v), fast_mode=True
    )
    assert torch.autograd.gradgradcheck(
        lambda *x: near_far_attention(*x, plan, 2, True, SCALE, 2), (q, k, v), fast_mode=True
    )


def test_scores_are_float32_under_autocast():
    (q, k, v), _ = qkv(256, dtype=torch.float32)
    plan = tree(q, k, 16)
    expected = near_far_attention(q, k, v, plan, 2, True, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = near_far_attention(q, k, v, plan, 2, True, SCALE)
    torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)  # bfloat16: 8 bits


def test_bfloat16_is_near_float32():
    (q, k, v), _ = qkv(260, dtype=torch.bfloat16)
    plan = tree(q, k, 16, 4)
    out = near_far_attention(q, k, v, plan, 2, True, SCALE, 4)
    assert out.dtype == torch.bfloat16
    expected = near_far_attention(q.float(), k.float(), v.float(), plan, 2, True, SCALE, 4)
    torch.testing.assert_close(out.float(), expected, rtol=3e-2, atol=3e-2)


def test_values_may_have_another_width():
    (q, k, v), _ = qkv(60)
    v = v[..., :5]
    plan = tree(q, k, 7)
    out = near_far_attention(q, k, v, plan, 2, True, SCALE)
    torch.testing.assert_close(out, by_loops(q, k, v, plan, 2, True), rtol=1e-10, atol=1e-10)


def test_dropout_drops_weights_and_keeps_their_mean():
    q, k, v = torch.randn(3, 1, 1, 64, 8).unbind(0)
    plan = tree(q, k, 8)
    expected = near_far_attention(q, k, torch.ones_like(v), plan, 2, True, SCALE)
    out = near_far_attention(q, k, torch.ones_like(v), plan, 2, True, SCALE, dropout_p=0.5)
    torch.testing.assert_close(expected, torch.ones_like(expected))
    assert out.std() > 0.05 and (out.mean() - 1).abs() < 0.1


def test_tokens_that_are_all_alike_stay_finite():
    for value in (0.0, 1e4):
        x = torch.full((1, 1, 63, 16), value, requires_grad=True)
        out = near_far_attention(x, x, x, Plan.equal(torch.arange(63).view(1, 1, -1), 8), 2, True, 0.25)
        torch.testing.assert_close(out, x)
        assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("far", [True, False])
@pytest.mark.parametrize("token", [0, 1, 2, 40, 64])
def test_the_weights_of_a_token_sum_to_one_and_give_its_output(token, far):
    """Of two prefix tokens and of three patch tokens."""
    (q, k, v), _ = qkv(65)
    plan = tree(q, k, 7, 2)
    out = near_far_attention(q, k, v, plan, 3, far, prefix=2)
    clusters = [part.tolist() for part in plan.order[0, 1].split(plan.sizes[0, 1].tolist())]
    weights, exact = reference.weights_of_token(token, q[0, 1], k[0, 1], clusters, 3, far, SCALE, 2)
    torch.testing.assert_close(weights @ v[0, 1], out[0, 1, token], rtol=1e-10, atol=1e-10)
    assert abs(weights.sum().item() - 1) < 1e-12
    if token >= 2:
        assert exact[0] == plan.labels[0, 1, token - 2] and len(set(exact)) == 3
        seen = torch.isin(plan.labels[0, 1], torch.tensor(exact))
        assert (weights[2:][~seen] > 0).all() if far else (weights[2:][~seen] == 0).all()


def test_with_all_clusters_near_the_weights_of_a_token_are_its_softmax():
    (q, k, _), _ = qkv(65)
    clusters = [part.tolist() for part in torch.arange(63).split(9)]
    full = torch.softmax(q[0, 0] @ k[0, 0].T * SCALE, dim=-1)
    for token in range(65):
        weights, _ = reference.weights_of_token(token, q[0, 0], k[0, 0], clusters, 7, True, SCALE, 2)
        torch.testing.assert_close(weights, full[token], rtol=1e-12, atol=1e-12)


def test_a_token_in_no_cluster_has_no_weights():
    (q, k, _), _ = qkv(9)
    with pytest.raises(ValueError, match="token 8 is in no cluster"):
        reference.weights_of_token(8, q[0, 0], k[0, 0], [[0, 1, 2, 3], [4, 5, 6, 7]], 1, True, SCALE)
