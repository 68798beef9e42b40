"""The tree connector against loops, and what its outputs are made of."""

from fractions import Fraction

import pytest
import torch

from secvit.connectors import TreeConnector
from secvit.ops import reference
from secvit.ops import reference_near_far as near_far

# float64 sums in another order, the softmax of groups included
EXACT = dict(rtol=1e-9, atol=1e-12)
SHAPES = [
    ((24, 24), 36), ((24, 24), 72), ((24, 24), 144), ((7, 9), 5), ((7, 9), 10), ((5, 5), 25), ((1, 11), 3), ((1, 1), 1),
]  # fmt: skip


def mean_place(leaf, grid):
    """Mean row and column of a list of tokens, exact."""
    return [Fraction(sum(place), len(leaf)) for place in zip(*(divmod(token, grid[1]) for token in leaf), strict=True)]


def in_rows(leaves, grid):
    """Leaves by mean row, cut into rows, each by mean column."""
    count = max(1, min(len(leaves), int((len(leaves) * grid[0] / grid[1]) ** 0.5 + 0.5)))
    rows = [[] for _ in range(count)]
    for rank, leaf in enumerate(sorted(leaves, key=lambda leaf: mean_place(leaf, grid)[0])):
        rows[rank * count // len(leaves)].append(leaf)
    return [leaf for row in rows for leaf in sorted(row, key=lambda leaf: mean_place(leaf, grid)[1])]


def by_loops(connector, tokens, grid):
    """The connector with its own weights: image by image, leaf by leaf, head by head."""
    pool, outputs = connector.pool["attend"], []
    for x in tokens:
        q, k, v = [x * 0, x, x] if pool.pooling == "mean" else [linear(x) for linear in (pool.q, pool.k, pool.v)]
        leaves = near_far.tree(near_far.coordinates([k.detach()]), connector.num_tokens)
        heads = list(zip(*(t.unflatten(-1, (pool.num_heads, -1)).unbind(1) for t in (q, k, v)), strict=True))
        for leaf in in_rows(leaves, grid):
            scale = heads[0][0].shape[-1] ** -0.5
            outputs.append(torch.cat([reference.pooled_attention(*(t[leaf] for t in head), scale) for head in heads]))
    out = torch.stack(outputs).unflatten(0, (len(tokens), -1))
    return connector.project(out if pool.pooling == "mean" else pool.o(out))


@pytest.mark.parametrize("pooling", ["mean", "attentive"])
@pytest.mark.parametrize(("grid", "count"), SHAPES)
def test_connector_equals_the_loops(grid, count, pooling):
    form = dict(num_heads=2, init="random", extra_token=None)
    connector = TreeConnector(6, 5, count, pooling=pooling, **form).double()
    length = grid[0] * grid[1]
    tokens = torch.randn(1 if length > 100 else 3, length, 6, dtype=torch.float64, requires_grad=True)
    out, expected = connector(tokens, grid=grid), by_loops(connector, tokens, grid)
    torch.testing.assert_close(out, expected, **EXACT)
    weight, inputs = torch.randn_like(out), [tokens, *connector.parameters()]
    found, true = (torch.autograd.grad((y * weight).sum(), inputs) for y in (out, expected))
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_its_means_have_no_parameters():
    assert list(TreeConnector(8, 8, 4).pool.parameters()) == []


@pytest.mark.parametrize("count", [10, 16])
def test_every_token_is_in_one_output_and_sizes_differ_by_at_most_one(count):
    held = TreeConnector(8, 8, count, extra_token=None).merged(torch.randn(2, 63, 8), grid=(7, 9)).weights > 0
    assert (held.sum(dim=1) == 1).all()
    assert set(held.sum(dim=2).flatten().tolist()) == {63 // count, 63 // count + 1}


def test_similar_tokens_are_merged_wherever_they_lie():
    kinds, kind = 10 * torch.randn(16, 32), torch.randperm(64) % 16
    tokens = kinds[kind] + 0.01 * torch.randn(64, 32)
    for held in TreeConnector(32, 8, 16, extra_token=None).merged(tokens[None]).weights[0] > 0:
        assert kind[held].unique().numel() == 1


def test_outputs_stand_as_their_places_do_in_the_image():
    """Twelve squares of one kind each, three rows of four, come as they would be read."""
    square = torch.arange(12).view(3, 4).repeat_interleave(3, 0).repeat_interleave(3, 1).flatten()
    tokens = (10 * torch.randn(12, 32))[square] + 0.01 * torch.randn(108, 32)
    held = TreeConnector(32, 8, 12, extra_token=None).merged(tokens[None], grid=(9, 12)).weights[0] > 0
    assert [square[row].unique().tolist() for row in held] == [[n] for n in range(12)]


@pytest.mark.slow
def test_connector_compiles_as_one_graph():
    connector = TreeConnector(16, 8, 4, pooling="attentive", positions="coords")
    compiled = torch.compile(connector, fullgraph=True, backend="eager")  # aot takes a minute for symbols
    for length in (49, 81):  # the second one makes lengths symbols
        tokens, cls = torch.randn(2, length, 16), torch.randn(2, 16)
        # the same operations, fused or not: a few roundings
        torch.testing.assert_close(compiled(tokens, cls), connector(tokens, cls), rtol=1e-5, atol=1e-6)
        compiled(tokens, cls).sum().backward()
    assert connector.linear_1.weight.grad.isfinite().all()
