"""A partition of one's own: a function, or the name that it is registered by."""

import pytest
import timm
import torch

import secvit
from secvit.ops import PARTITIONS, partition_sizes, written
from secvit.ops.partitions import SCORES


def by_norm(tokens, num_clusters, mask, grid, generator):
    return tokens.norm(dim=-1)


def by_column(tokens, num_clusters, mask, grid, generator):
    return torch.arange(grid[1], device=tokens.device).repeat(grid[0]) / grid[1]


def quarters(tokens, num_clusters, *_):
    length = tokens.shape[-2]
    return torch.arange(length, device=tokens.device) * num_clusters // length  # labels


def labels_of(sizes):
    """A function that gives every sample labels of these sizes."""
    return lambda *_: torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


@pytest.fixture
def registered():
    """`register_partition`, undone after the test."""
    before = dict(SCORES)
    yield secvit.register_partition
    SCORES.clear()
    SCORES.update(before)


@pytest.mark.parametrize("shape, num_clusters", [((2, 50, 8), 8), ((2, 3, 49, 8), 7), ((1, 1, 4), 1)])
def test_tokens_are_sorted_by_the_score_and_cut_equally(shape, num_clusters):
    tokens = torch.randn(shape)
    plan = secvit.cluster(tokens, num_clusters, partition=by_norm)
    assert torch.equal(plan.order, tokens.norm(dim=-1).sort(dim=-1, stable=True).indices)
    assert plan.sizes.view(-1, num_clusters)[0].tolist() == partition_sizes(shape[-2], num_clusters)


def test_a_score_for_all_samples_alike_may_have_one_axis():
    plan = secvit.cluster(torch.randn(2, 3, 12, 4), 4, partition=by_column, grid=(3, 4))
    assert (plan.labels.view(2, 3, 3, 4) == torch.arange(4)).all()


def test_padded_tokens_are_in_no_cluster_whatever_the_score():
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, 40:] = False
    plan = secvit.cluster(torch.randn(2, 3, 50, 8), 8, mask=mask, partition=by_norm)
    assert plan.sizes[:, 0].tolist() == [[5] * 8, [7, 7, 6, 6, 6, 6, 6, 6]]
    assert (plan.labels[0, :, 40:] == -1).all() and (plan.labels[0, :, :40] >= 0).all()


def test_labels_are_the_clusters_and_larger_ones_come_first():
    plan = secvit.cluster(torch.randn(2, 10, 4), 3, partition=labels_of([3, 4, 3]))
    assert plan.labels[0].tolist() == [1] * 3 + [0] * 4 + [2] * 3
    assert plan.sizes[0].tolist() == [4, 3, 3]


def test_labels_of_padded_tokens_do_not_count():
    mask = torch.tensor([[True] * 8 + [False] * 2, [True] * 10])
    labels = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 1] * 5])
    plan = secvit.cluster(torch.randn(2, 10, 4), 2, mask=mask, partition=lambda *_: labels)
    assert plan.labels.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, -1, -1], [0, 1] * 5]


def test_a_function_gets_five_values_and_no_gradient():
    got = {}

    def look(tokens, num_clusters, mask, grid, generator):
        got.update(locals())
        return tokens.sum(dim=-1)

    tokens = torch.randn(2, 12, 4, requires_grad=True, dtype=torch.bfloat16)
    generator, mask = torch.Generator(), torch.ones(2, 12)
    secvit.cluster(tokens, cluster_size=5, mask=mask, partition=look, grid=(3, 4), generator=generator)
    assert got["tokens"].dtype == torch.float32 and not got["tokens"].requires_grad
    assert (got["num_clusters"], got["grid"]) == (3, (3, 4))
    assert got["mask"].dtype == torch.bool and got["generator"] is generator


WRONG = {
    "too few parameters": (lambda tokens: tokens, r"cannot be called as function\(tokens, num_clusters, mask, grid, "),
    "no tensor": (lambda *_: 3, "returned int; return a tensor"),
    "a value for each channel": (lambda tokens, *_: tokens, r"returned shape \(2, 3, 50, 8\).*return a value for each"),
    "too few tokens": (lambda tokens, *_: tokens[..., 1:, 0], r"returned shape \(2, 3, 49\)"),
    "one for all tokens": (lambda tokens, *_: tokens[..., :1, 0], r"returned shape \(2, 3, 1\)"),
    "booleans": (lambda tokens, *_: tokens[..., 0] > 0, "returned torch.bool; return floats"),
    "unequal labels": (labels_of([40, 10]), "returned clusters of 10 to 40 tokens, and sizes may differ by one"),
    "an empty cluster": (labels_of([50]), "returned clusters of 0 to 50 tokens"),
    "ranks for labels": (lambda *_: torch.arange(50), "integers from 0 to 49, and labels of 2 clusters go from 0 to 1"),
    "another device": (lambda *_: torch.zeros(50, device="meta"), "returned a tensor on meta for tokens on cpu"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_function_may_not_return_is_said(case):
    function, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        secvit.cluster(torch.randn(2, 3, 50, 8), 2, partition=function)


def test_unequal_labels_of_one_sample_are_seen():
    labels = torch.tensor([[0] * 5 + [1] * 5, [0] * 7 + [1] * 3])
    with pytest.raises(ValueError, match="clusters of 3 to 7 tokens"):
        secvit.cluster(torch.randn(2, 10, 4), 2, partition=lambda *_: labels)


def test_a_rival_has_no_centre():
    with pytest.raises(ValueError, match="partition='by_norm' has no centre"):
        secvit.cluster(torch.randn(2, 10, 4), 2, partition=by_norm, centre="cls")


# -- names -------------------------------------------------------------------------------------


def test_a_name_stands_for_its_function_everywhere(registered):
    registered("norm", by_norm)
    tokens = torch.randn(2, 3, 50, 8)
    named, given = (secvit.cluster(tokens, 8, partition=one).order for one in ("norm", by_norm))
    assert torch.equal(named, given)
    assert secvit.Clustering(num_clusters=2, partition="norm").partition == "norm"
    assert timm.create_model("secvit_nano", partition="norm").stages[0].blocks[0].attn.clustering.partition == "norm"


def test_unknown_names_are_answered_with_near_ones(registered):
    registered("diagonal", by_norm)
    for name, near in (("digonal", "diagonal"), ("wndow", "window")):
        for use in (
            lambda name=name: secvit.cluster(torch.randn(1, 4, 2), 2, partition=name),
            lambda name=name: timm.create_model("secvit_nano", partition=name),
            lambda name=name: secvit.Clustering(num_clusters=2, partition=name),
        ):
            with pytest.raises(ValueError, match=rf"{name}'.*diagonal.*\(near it: {near}\).*register_partition\("):
                use()


@pytest.mark.parametrize(
    "name, function, message",
    [
        ("sec", by_norm, "a built-in partition has this name"),
        ("kmeans", by_norm, "a built-in partition has this name"),
        ("my rule", by_norm, "letters, digits and underscores"),
        ("", by_norm, "letters, digits and underscores"),
        ("norm", "window", "give a function"),
        ("norm", lambda tokens: tokens, "cannot be called as function"),
    ],
)
def test_what_cannot_be_registered_is_refused(registered, name, function, message):
    with pytest.raises(ValueError, match=message):
        registered(name, function)
    assert set(SCORES) | {"sec", "kmeans", "tree"} == set(PARTITIONS)


def test_a_name_is_not_taken_over_but_a_newer_version_is(registered):
    registered("norm", by_norm)
    with pytest.raises(ValueError, match=r"test_own_partitions\.by_norm is registered by this name"):
        registered("norm", by_column)

    def newer(tokens, *_):
        return -tokens.norm(dim=-1)

    newer.__qualname__ = by_norm.__qualname__  # a cell of a notebook run again
    assert registered("norm", newer) is newer
    assert SCORES["norm"] is newer


def test_what_is_written_down_has_a_name(registered):
    assert written({"partition": "window", "depth": 3}) == {"partition": "window", "depth": 3}
    with pytest.raises(ValueError, match=r"partition=by_norm is a function.*secvit\.register_partition\("):
        written({"partition": by_norm})
    registered("norm", by_norm)
    assert written({"partition": by_norm, "depth": 3}) == {"partition": "norm", "depth": 3}


# -- in networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["secvit_nano", "sec_swin_tiny", "sec_deit_small"])
def test_a_network_clusters_by_it(name):
    torch.manual_seed(0)
    depth = {"depth": 2} if "deit" in name else {"depths": (1, 1, 1, 1)}
    own = timm.create_model(name, partition=by_column, num_classes=3, **depth).eval()
    raster = timm.create_model(name, partition="raster", num_classes=3, **depth).eval()
    raster.load_state_dict(own.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        by_columns, by_rows = own(images), raster(images)
    assert by_columns.isfinite().all() and not torch.allclose(by_columns, by_rows, atol=1e-5)


def test_a_patched_vit_shares_it_over_layers():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        secvit.patch(model, 4, partition="raster", share_order_every=2)
        expected = model(images)
        secvit.patch(secvit.unpatch(model), 4, partition=SCORES["raster"], share_order_every=2)
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("function", [pytest.param(by_norm, marks=pytest.mark.slow), quarters])
def test_compiled_and_exported_it_is_eager(function):
    torch.manual_seed(0)
    model = timm.create_model("secvit_nano", depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 1), num_clusters=(4, 1, 1),
                              partition=function, stem_stride=4).eval()  # fmt: skip
    images = torch.randn(1, 3, 64, 64)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(images)
        # float32: sums in another order
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(images), expected, **close)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected, **close)
