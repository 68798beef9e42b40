"""The specification itself, against examples worked by hand."""

import math

import pytest
import torch

from secvit.ops import reference

KEYS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [0.0, -1.0]], dtype=torch.float64)
# the mean key is (1, 1): cosines 0.7071, 0.7071, 1, -0.7071


def test_project_gives_queries_keys_values_and_the_mean_key():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    w_q, w_k, w_v = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    q, k, v, k_c = reference.project(x, w_q, w_k, w_v)
    assert q.tolist() == [[1], [3]]
    assert k.tolist() == [[2], [4]]
    assert v.tolist() == [[3], [7]]
    assert k_c.tolist() == [3]


def test_sort_rises_by_cosine_and_ties_keep_token_order():
    assert KEYS.mean(dim=0).tolist() == [1, 1]
    assert reference.sort_by_similarity(KEYS, KEYS.mean(dim=0)).tolist() == [3, 0, 1, 2]


def test_descending_sort_is_eq_2_as_printed_and_ties_keep_token_order():
    assert reference.sort_by_similarity(KEYS, KEYS.mean(dim=0), descending=True).tolist() == [2, 0, 1, 3]


def test_a_zero_key_scores_zero():
    keys = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.5]])
    assert reference.sort_by_similarity(keys, torch.tensor([1.0, 0.0])).tolist() == [2, 0, 1]


def test_seven_ranks_make_clusters_of_three_two_two():
    assert reference.cluster_slices(7, 3) == [slice(0, 3), slice(3, 5), slice(5, 7)]
    assert reference.cluster_slices(6, 3) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert reference.cluster_slices(2, 3) == [slice(0, 1), slice(1, 2), slice(2, 2)]


def test_attention_is_the_softmax_mean_of_values():
    q = torch.tensor([[1.0]])
    k = torch.tensor([[0.0], [math.log(3.0)]])
    v = torch.tensor([[4.0], [8.0]])
    # weights 1 : 3
    assert reference.attention(q, k, v, scale=1.0).item() == pytest.approx(7.0)
    # weights 1 : sqrt(3) at scale 1/2
    expected = (4 + 8 * 3**0.5) / (1 + 3**0.5)
    assert reference.attention(q, k, v, scale=0.5).item() == pytest.approx(expected)


def test_groups_are_ranks_t_apart_or_runs_of_ranks():
    assert reference.group_ranks(7, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert reference.group_ranks(7, 3, "sequential") == [[0, 1], [2, 3], [4, 5, 6]]


def test_pooled_attention_is_that_of_the_mean_query():
    q = torch.tensor([[0.0], [2.0]])
    k = torch.tensor([[0.0], [math.log(3.0)]])
    v = torch.tensor([[4.0], [8.0]])
    assert reference.pooled_attention(q, k, v, scale=1.0).tolist() == pytest.approx([7.0])


def test_sec_attention_attends_within_ranks():
    # order 3, 0, 1, 2 and two clusters: tokens 3 and 0, tokens 1 and 2; equal queries, so values are averaged
    q = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64).view(1, 1, 4, 1).expand(1, 1, 4, 2).clone()
    out = reference.sec_attention(q, KEYS.view(1, 1, 4, 2), v, num_clusters=2)
    assert out[0, 0, :, 0].tolist() == [4.5, 3, 3, 4.5]


def test_sec_attention_leaves_padded_tokens_out():
    # without token 3 the mean is (4, 5) / 3: cosines 0.62, 0.78, 0.99; clusters {0, 1} and {2}
    q = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64).view(1, 1, 4, 1).expand(1, 1, 4, 2).clone()
    mask = torch.tensor([[True, True, True, False]])
    out = reference.sec_attention(q, KEYS.view(1, 1, 4, 2), v, num_clusters=2, mask=mask)
    assert out[0, 0, :, 0].tolist() == [1.5, 1.5, 4, 0]


@pytest.mark.parametrize(("arrangement", "expected"), [("interleaved", [3, 4.5]), ("sequential", [3, 4.5])])
def test_sec_pool_averages_groups_of_falling_similarity(arrangement, expected):
    # descending order 2, 0, 1, 3: interleaved {2, 1}, {0, 3}; sequential {2, 0}, {1, 3}
    values = {"interleaved": [1.0, 2.0, 4.0, 8.0], "sequential": [2.0, 1.0, 4.0, 8.0]}[arrangement]
    q = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    v = torch.tensor(values, dtype=torch.float64).view(1, 1, 4, 1).expand(1, 1, 4, 2).clone()
    out = reference.sec_pool(q, KEYS.view(1, 1, 4, 2), v, 2, arrangement)
    assert out[0, 0, :, 0].tolist() == expected
