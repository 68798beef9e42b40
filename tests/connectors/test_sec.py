"""The SEC connector against loops over Eqs. 1, 2, 5 and 6, and what follows from them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secvit.connectors import SECConnector
from secvit.ops import pool_plan, reference

# float64 sums in another order: 1e-16 each, at most 577 terms, softmax included
EXACT = dict(rtol=1e-9, atol=1e-12)
COUNTS = [(576, n) for n in (288, 256, 192, 144, 128, 64, 1, 576)] + [(7, 3)]


def by_loops(connector, tokens, cls=None):
    """The connector with its own weights, group by group."""
    pool = connector.pool["attend"]

    def heads(x):
        return x.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)

    if connector.where == "after":
        tokens, cls = (None if x is None else connector.project(x) for x in (tokens, cls))
    q, k, v = (heads(linear(tokens)) for linear in (pool.q, pool.k, pool.v))
    pooled = reference.sec_pool(q, k, v, connector.num_tokens, connector.arrangement, shared=not connector.per_head)
    out = pool.o(pooled.transpose(1, 2).flatten(2))
    out = out if cls is None else torch.cat([cls.unsqueeze(1), out], dim=1)
    return connector.project(out) if connector.where == "before" else out


def compare(connector, tokens, cls=None):
    inputs = [tokens, *([] if cls is None else [cls]), *connector.parameters()]
    out, expected = connector(tokens, cls), by_loops(connector, tokens, cls)
    torch.testing.assert_close(out, expected, **EXACT)
    weight = torch.randn_like(out)
    found, true = (torch.autograd.grad((y * weight).sum(), inputs, materialize_grads=True) for y in (out, expected))
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("arrangement", ["interleaved", "sequential"])
@pytest.mark.parametrize(("length", "count"), COUNTS)
def test_connector_equals_the_loops(length, count, arrangement):
    connector = SECConnector(6, 5, count, arrangement=arrangement, num_heads=2, init="random").double()
    batch = 1 if length > 100 else 3
    tokens = torch.randn(batch, length, 6, dtype=torch.float64, requires_grad=True)
    compare(connector, tokens, torch.randn(batch, 6, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("per_head", [False, True])
def test_connector_equals_the_loops_in_other_forms(per_head, where):
    form = dict(per_head=per_head, where=where, num_heads=2, init="random", extra_token=None)
    connector = SECConnector(6, 4, 5, **form).double()
    compare(connector, torch.randn(2, 23, 6, dtype=torch.float64, requires_grad=True))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_least_typical_tokens_fall_into_different_groups(data):
    length = data.draw(st.integers(1, 80), label="L")
    count = data.draw(st.integers(1, length), label="T")
    k = torch.randn(
        length, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    )
    falling = reference.sort_by_similarity(k, k.mean(dim=0), descending=True)
    labels = pool_plan(k.unsqueeze(0), count).labels[0]
    assert len(set(labels[falling[-count:]].tolist())) == count
    start = data.draw(st.integers(0, length - count), label="first rank")
    assert len(set(labels[falling[start : start + count]].tolist())) == count


def test_sequential_groups_keep_the_least_typical_tokens_together():
    k = torch.randn(1, 576, 8, dtype=torch.float64)
    falling = reference.sort_by_similarity(k[0], k[0].mean(dim=0), descending=True)
    assert len(set(pool_plan(k, 144, "sequential").labels[0][falling[-144:]].tolist())) == 36


def test_each_of_the_least_typical_tokens_is_in_an_output_of_its_own():
    tokens = torch.randn(1, 576, 16)
    merged = SECConnector(16, 8, 144, extra_token=None).merged(tokens)
    falling = reference.sort_by_similarity(tokens[0], tokens[0].mean(dim=0), descending=True)
    weights = merged.weights[0][:, falling[-144:]]
    assert ((weights > 0).sum(dim=0) == 1).all() and ((weights > 0).sum(dim=1) == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("count", [288, 256, 144, 1, 576])
def test_identity_start_is_mean_pooling_bit_for_bit(count, where, dtype):
    attentive = SECConnector(32, 16, count, where=where, num_heads=2).to(dtype)
    mean = SECConnector(32, 16, count, where=where, num_heads=2, pooling="mean").to(dtype)
    assert list(mean.pool.parameters()) == []
    mean.load_state_dict({k: v for k, v in attentive.state_dict().items() if not k.startswith("pool.")})
    tokens, cls = torch.randn(2, 576, 32, dtype=dtype), torch.randn(2, 32, dtype=dtype)
    assert torch.equal(attentive(tokens, cls), mean(tokens, cls))


@pytest.mark.parametrize("count", [4, 5])
def test_mean_pooling_divides_by_the_true_group_sizes(count):
    connector = SECConnector(4, 4, count, pooling="mean", extra_token=None).double()
    tokens = torch.randn(1, 9, 4, dtype=torch.float64)
    falling = reference.sort_by_similarity(tokens[0], tokens[0].mean(dim=0), descending=True)
    means = [tokens[0, falling[ranks]].mean(dim=0) for ranks in reference.group_ranks(9, count)]
    torch.testing.assert_close(connector(tokens)[0], connector.project(torch.stack(means)), **EXACT)


def gradients(connector, tokens):
    connector(tokens).square().sum().backward()
    return {name: float(p.grad.abs().max()) for name, p in connector.pool["attend"].named_parameters()}


def test_keys_have_no_gradient_at_the_identity_start_and_have_one_after_a_step():
    connector = SECConnector(8, 8, 5, extra_token=None).double()
    tokens = torch.randn(2, 20, 8, dtype=torch.float64)
    first = gradients(connector, tokens)
    assert first["k.weight"] == 0 and first["q.weight"] > 0
    torch.optim.SGD(connector.parameters(), lr=0.1).step()
    assert gradients(connector, tokens)["k.weight"] > 0


def test_with_as_many_groups_as_tokens_queries_and_keys_learn_nothing():
    connector = SECConnector(8, 8, 20, extra_token=None, init="random").double()
    found = gradients(connector, torch.randn(2, 20, 8, dtype=torch.float64))
    assert found["q.weight"] == found["k.weight"] == 0
    assert found["v.weight"] > 0 and found["o.weight"] > 0


def test_keys_have_no_bias():
    assert SECConnector(8, 8, 4).pool["attend"].k.bias is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_moves_no_token_to_another_group(dtype):
    connector = SECConnector(64, 16, 144, init="random", extra_token=None)
    tokens = torch.randn(2, 576, 64) + 3 * torch.randn(64)  # a common mean: half-precision cosines would tie
    groups = connector.merged(tokens).weights > 0
    with torch.autocast("cpu", dtype):
        assert torch.equal(connector.merged(tokens).weights > 0, groups)
        # what such keys would give: the test above can fail
        keys = torch.nn.functional.linear(tokens, connector.pool["attend"].k.weight)
    assert not torch.equal(pool_plan(keys, 144).labels, pool_plan(connector.pool["attend"].keys(tokens), 144).labels)


def test_bfloat16_weights_group_by_keys_in_float32():
    connector = SECConnector(64, 16, 144, init="random", extra_token=None).bfloat16()
    tokens = (torch.randn(2, 576, 64) + 3 * torch.randn(64)).bfloat16()
    groups = connector.merged(tokens).weights > 0
    assert torch.equal(connector.float().merged(tokens.float()).weights > 0, groups)


def test_rank_order_does_not_know_the_order_of_the_tokens():
    connector = SECConnector(8, 8, 7, init="random", extra_token=None).double()
    tokens = torch.randn(2, 30, 8, dtype=torch.float64)
    torch.testing.assert_close(connector(tokens[:, torch.randperm(30)]), connector(tokens), **EXACT)


@pytest.mark.parametrize("per_head", [False, True])
def test_spatial_order_goes_by_the_place_of_the_least_typical_member(per_head):
    rank = SECConnector(8, 8, 7, num_heads=1, per_head=per_head, init="random", extra_token=None).double()
    spatial = SECConnector(8, 8, 7, num_heads=1, per_head=per_head, extra_token=None, order="spatial").double()
    spatial.load_state_dict(rank.state_dict())
    tokens = torch.randn(1, 25, 8, dtype=torch.float64)
    k = rank.pool["attend"].k(tokens[0])
    falling = reference.sort_by_similarity(k, k.mean(dim=0), descending=True)
    last = torch.tensor([int(falling[ranks[-1]]) for ranks in reference.group_ranks(25, 7)])
    index = last.argsort()
    torch.testing.assert_close(spatial(tokens), rank(tokens)[:, index], **EXACT)
    torch.testing.assert_close(spatial.merged(tokens).weights, rank.merged(tokens).weights[:, index], **EXACT)


def test_a_nan_token_spoils_its_own_group_alone():
    connector = SECConnector(8, 8, 5, extra_token=None)
    tokens = torch.randn(1, 20, 8)
    tokens[0, 3] = float("nan")
    assert connector(tokens).isnan().any(dim=-1).sum() == 1


@pytest.mark.parametrize(
    "form",
    [
        pytest.param({}, id="plain", marks=pytest.mark.slow),
        pytest.param(dict(positions="coords", order="spatial", per_head=True, num_tokens=60), id="all"),
    ],
)
def test_connector_compiles_as_one_graph(form):
    connector = SECConnector(16, 8, **{"num_tokens": 64, **form})
    compiled = torch.compile(connector, fullgraph=True, backend="aot_eager")  # inductor's C++ takes minutes here
    for length in (256, 144):  # the second one makes lengths symbols
        tokens, cls = torch.randn(2, length, 16), torch.randn(2, 16)
        # the same operations, fused or not: a few roundings
        torch.testing.assert_close(compiled(tokens, cls), connector(tokens, cls), rtol=1e-5, atol=1e-6)
        compiled(tokens, cls).sum().backward()
    assert connector.linear_1.weight.grad.isfinite().all()
