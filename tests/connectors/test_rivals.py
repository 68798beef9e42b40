"""Each rival against another way of computing it."""

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from timm.models.regnet import RegStage

from secvit.connectors import create
from secvit.connectors.c_abstractor import RegBlock
from secvit.connectors.resampler import CrossBlock
from secvit.connectors.tome import merge_groups

EXACT = dict(rtol=1e-9, atol=1e-12)  # float64, sums in another order


def reduced(connector, tokens, attention=None, grid=(24, 24)):
    return connector.double().reduce(tokens, attention, grid, weigh=False)[0]


def tokens(length=576, dim=8, batch=2):
    return torch.randn(batch, length, dim, dtype=torch.float64)


@pytest.mark.parametrize("count", [256, 144, 64])
def test_pool_takes_means_of_windows(count):
    x = tokens()
    side = int(count**0.5)
    edges = [(i * 24 // side, -(-(i + 1) * 24 // side)) for i in range(side)]  # 24 to 16: windows of 2 that overlap
    grid = x.view(2, 24, 24, 8)
    means = [grid[:, a:b, c:d].mean(dim=(1, 2)) for a, b in edges for c, d in edges]
    torch.testing.assert_close(reduced(create("pool", 8, 8, count), x), torch.stack(means, dim=1), **EXACT)


@pytest.mark.parametrize(("length", "count"), [(25, 7), (25, 1), (25, 25)])
def test_evit_keeps_what_cls_attends_to_and_fuses_the_rest(length, count):
    x, attention = tokens(length), torch.rand(2, length)
    for sample, a, out in zip(x, attention, reduced(create("evit", 8, 8, count), x, attention), strict=True):
        best = sorted(range(length), key=lambda i: -float(a[i]))
        kept, rest = sorted(best[: count - 1]), best[count - 1 :]
        share = (a[rest] / a[rest].sum()).double()
        expected = torch.cat([sample[kept], (share.unsqueeze(-1) * sample[rest]).sum(dim=0, keepdim=True)])
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)  # shares are float32


def test_evit_without_any_attention_on_the_rest_takes_their_mean():
    x, attention = tokens(9), torch.zeros(2, 9)
    attention[:, :2] = 0.5
    out = reduced(create("evit", 8, 8, 3), x, attention)
    torch.testing.assert_close(out[:, 2], x[:, 2:].mean(dim=1), rtol=1e-6, atol=1e-7)


def merged_by_hand(x, count):
    """ToMe with lists: clumps of token numbers, every second one looks for the nearest among the others."""
    clumps = [[i] for i in range(len(x))]
    while len(clumps) > count:
        mean = [x[c].mean(dim=0) for c in clumps]
        offers = []
        for a in range(0, len(clumps), 2):
            scores = [float(F.cosine_similarity(mean[a], mean[b], dim=0)) for b in range(1, len(clumps), 2)]
            offers.append((max(scores), a, 1 + 2 * scores.index(max(scores))))
        offers.sort(key=lambda offer: -offer[0])
        gone = offers[: min(len(clumps) - count, len(clumps) // 2)]
        for _, a, b in gone:
            clumps[b] = clumps[b] + clumps[a]
        clumps = [c for i, c in enumerate(clumps) if i not in {a for _, a, _ in gone}]
    return clumps


@pytest.mark.parametrize(("length", "count"), [(16, 9), (17, 5), (30, 1), (30, 30), (25, 24)])
def test_tome_merges_the_most_similar_pairs(length, count):
    x = tokens(length, dim=4, batch=3)
    groups = merge_groups(x, count)
    out = reduced(create("tome", 4, 4, count), x, grid=None)
    for sample, group, merged in zip(x, groups, out, strict=True):
        clumps = merged_by_hand(sample, count)
        assert [sorted(c) for c in clumps] == [(group == n).nonzero()[:, 0].tolist() for n in range(count)]
        torch.testing.assert_close(merged, torch.stack([sample[c].mean(dim=0) for c in clumps]), **EXACT)


def test_tome_merges_copies_of_a_token_first():
    x = tokens(16, batch=1)
    x[0, 3] = x[0, 10]
    assert [int(n) for n in merge_groups(x, 15)[0].bincount()].count(2) == 1
    assert merge_groups(x, 15)[0, 3] == merge_groups(x, 15)[0, 10]


def chosen_by_hand(x, count):
    """DivPrune with lists: the token whose nearest other is farthest, then the farthest from all those chosen."""
    distance = [[1 - float(F.cosine_similarity(a, b, dim=0)) for b in x] for a in x]
    rest = list(range(len(x)))
    chosen = [max(rest, key=lambda i: min(distance[i][j] for j in rest if j != i))]
    while len(chosen) < count:
        rest = [i for i in rest if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(distance[i][j] for j in chosen)))
    return sorted(chosen)


@pytest.mark.parametrize(("length", "count"), [(16, 9), (17, 5), (30, 1), (25, 25)])
def test_divprune_keeps_the_tokens_farthest_from_each_other(length, count):
    x = tokens(length, dim=4, batch=3)
    for sample, out in zip(x, reduced(create("divprune", 4, 4, count), x, grid=None), strict=True):
        assert torch.equal(out, sample[chosen_by_hand(sample, count)])


def test_divprune_keeps_no_copy_of_a_token_while_there_are_others():
    x = tokens(16, batch=1)
    x[0, 8:] = x[0, :8]
    assert len(reduced(create("divprune", 8, 8, 8), x)[0].unique(dim=0)) == 8


def test_c_abstractor_has_the_blocks_of_honeybee():
    """Honeybee builds them from timm's RegStage with these arguments."""
    layers = dict(act_layer=torch.nn.SiLU, norm_layer=timm.layers.LayerNorm2d)
    theirs = RegStage(2, 16, 16, stride=1, dilation=1, **layers).double()
    ours = torch.nn.Sequential(RegBlock(16), RegBlock(16)).double()
    names = {"conv1.conv": "conv1", "conv1.bn": "norm1", "conv2.conv": "conv2", "conv2.bn": "norm2", "se.fc1": "squeeze",
             "se.fc2": "excite", "conv3.conv": "conv3", "conv3.bn": "norm3"}  # fmt: skip
    state = {}
    for key, value in theirs.state_dict().items():
        value = torch.randn_like(value)
        theirs.get_parameter(key).data = value
        block, name = key.split(".", 1)
        module, leaf = name.rsplit(".", 1)
        pointwise = value.dim() == 4 and value.shape[2:] == (1, 1)
        state[f"{int(block[1:]) - 1}.{names[module]}.{leaf}"] = value.flatten(1) if pointwise else value
    ours.load_state_dict(state)
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), theirs(x), **EXACT)


def test_c_abstractor_pools_between_its_blocks_and_adds_places_first():
    connector = create("c_abstractor", 8, 8, 16, depth=1, num_patches=36).double()
    x = tokens(36)
    pool = connector.pool
    grid = (x + pool["places"].weight).view(2, 6, 6, 8)
    pooled = F.adaptive_avg_pool2d(pool["fine"](grid).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    torch.testing.assert_close(reduced(connector, x, grid=(6, 6)), pool["coarse"](pooled).flatten(1, 2), **EXACT)


def test_resampler_blocks_are_cross_attention():
    block = CrossBlock(16, 4).double()
    theirs = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True).double()
    theirs.in_proj_weight.data = torch.cat([block.q.weight, block.k.weight, block.v.weight])
    theirs.out_proj.weight.data = block.o.weight
    queries, x, place = (torch.randn(2, n, 16, dtype=torch.float64) for n in (3, 10, 10))
    keys = block.norm_kv(x)
    attended, shares = theirs(block.norm_q(queries), keys + place, keys)
    after = queries + attended
    out, weights = block(queries, x, place, weigh=True)
    torch.testing.assert_close(out, after + block.ffn(block.norm_ffn(after)), **EXACT)
    torch.testing.assert_close(weights.double(), shares, rtol=1e-5, atol=1e-6)  # ours are float32


def test_resampler_outputs_are_those_of_their_queries():
    connector = create("resampler", 16, 8, 5, depth=2, extra_token=None)
    x = torch.randn(2, 49, 16)
    out = connector(x)
    order = torch.randperm(5)
    connector.pool["queries"].weight.data = connector.pool["queries"].weight.data[order]
    torch.testing.assert_close(connector(x), out[:, order])


def test_resampler_knows_where_tokens_are():
    connector = create("resampler", 16, 8, 5, extra_token=None)
    x = torch.randn(1, 49, 16)
    assert not torch.allclose(connector(x.flip(1)), connector(x), atol=1e-4)


def test_pixel_shuffle_puts_neighbours_side_by_side():
    x = tokens(36)
    out = reduced(create("pixel_shuffle", 8, 8, 9, num_patches=36), x, grid=(6, 6))
    theirs = F.pixel_unshuffle(x.transpose(1, 2).unflatten(2, (6, 6)), 2)  # channels (8, 4), ours (4, 8)
    theirs = theirs.unflatten(1, (8, 4)).transpose(1, 2).flatten(1, 2).flatten(2).transpose(1, 2)
    assert torch.equal(out, theirs)


@pytest.mark.parametrize("extra", ["mean", None])
def test_pixel_shuffle_starts_as_average_pooling_with_a_trained_mlp(extra):
    stock = create("mlp", 8, 6, 36).double()
    shuffle = create("pixel_shuffle", 8, 6, 9, num_patches=36, extra_token=extra).double()
    pool = create("pool", 8, 6, 9, extra_token=extra).double()
    for connector in (shuffle, pool):
        connector.take_mlp(stock)
    x = tokens(36)
    torch.testing.assert_close(shuffle(x), pool(x), **EXACT)
    shuffle.linear_1.weight.data.zero_()
    assert stock.linear_1.weight.abs().max() > 0  # a copy


def test_windows_of_two_by_two_are_averaged_at_first():
    x = tokens()
    window, pool = create("window", 8, 8, 144), create("pool", 8, 8, 144)
    torch.testing.assert_close(reduced(window, x), reduced(pool, x), **EXACT)


def supports(connector, x):
    return connector.merged(x).weights > 0


def test_random_groups_know_nothing_of_the_image():
    connector = create("random", 8, 8, 9, extra_token=None)
    x = torch.randn(2, 36, 8)
    groups = supports(connector, x)
    assert torch.equal(supports(connector, torch.randn(2, 36, 8)), groups)
    assert torch.equal(groups[0], groups[1]) and (groups.sum(dim=-1) == 4).all()
    assert not torch.equal(supports(create("random", 8, 8, 9, extra_token=None, seed=1), x), groups)


def test_redrawn_random_groups_differ_from_image_to_image_in_training_alone():
    connector = create("random", 8, 8, 9, extra_token=None, redraw=True)
    x = torch.randn(2, 36, 8)
    drawn = supports(connector, x)
    assert not torch.equal(drawn[0], drawn[1])
    connector.eval()
    assert torch.equal(supports(connector, x), supports(create("random", 8, 8, 9, extra_token=None), x))
