"""torch.func over attention in clusters: maps and derivatives of functions, as of any operation of torch."""

from functools import partial

import pytest
import torch

import secvit
from secvit.ops import PARTITIONS, sec_attention, sec_attention_packed

MAPPED = "ignore:There is a performance drop"  # torch maps its own attention by a loop on CPUs


MASK = torch.tensor([True] * 7 + [False, True])


def attend(x, **options):
    """x (h, L, D)"""
    return sec_attention(x[None], x.sin()[None], x.cos()[None], 3, **options)[0]


def attend_packed(x):
    """x (L, h, 3, D)"""
    return sec_attention_packed(x[None], 3, 0.4)[0]


CASES = {
    "equal": (attend, (4, 2, 9, 5)),
    "remainder": (attend, (4, 2, 10, 5)),
    "shared": (partial(attend, shared=True), (4, 2, 9, 5)),
    "prefix": (partial(attend, num_prefix_tokens=1), (4, 2, 9, 5)),
    "mask": (partial(attend, mask=MASK[None]), (4, 2, 9, 5)),
    "math": (partial(attend, backend="math"), (4, 2, 9, 5)),
    "packed": (attend_packed, (4, 9, 2, 3, 5)),
}


@pytest.mark.filterwarnings(MAPPED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_mapped_attention_and_its_gradients_are_those_of_a_loop(case, dtype):
    function, shape = CASES[case]
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def loss(one):
        return function(one).square().sum()

    for mapped in (function, torch.func.grad(loss)):
        expected = torch.stack([mapped(one) for one in x])
        torch.testing.assert_close(torch.vmap(mapped)(x), expected)
    y = x[0].clone().requires_grad_()
    loss(y).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), y.grad)


@pytest.mark.filterwarnings(MAPPED)
def test_a_mask_may_be_mapped():
    x = torch.randn(3, 2, 9, 5)
    masks = torch.rand(3, 9) < 0.7
    expected = torch.stack([attend(one, mask=mask[None]) for one, mask in zip(x, masks)])
    torch.testing.assert_close(torch.vmap(lambda one, mask: attend(one, mask=mask[None]))(x, masks), expected)


@pytest.mark.filterwarnings(MAPPED)
def test_hessians_are_those_of_plain_products():
    x = torch.randn(1, 6, 2, dtype=torch.float64)
    found, expected = (
        torch.func.jacrev(torch.func.grad(lambda one, b=backend: attend(one, backend=b).square().sum()))(x)
        for backend in ("auto", "math")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch_is_empty_by_any_partition(partition, masked):
    if masked and partition == "balanced_kmeans":
        pytest.skip("balanced k-means takes no mask")
    x = torch.randn(0, 2, 9, 4, requires_grad=True)
    plan = secvit.cluster(x, 3, mask=torch.ones(0, 9, dtype=torch.bool) if masked else None, partition=partition)
    out = sec_attention(x, x, x, plan=plan)
    out.sum().backward()
    assert out.shape == x.shape
    assert plan.labels.shape == (0, 2, 9)


@pytest.mark.parametrize("options", [{}, {"num_prefix_tokens": 1}, {"shared": True}, {"backend": "reference"}])
def test_an_empty_batch_with_a_mask_is_empty(options):
    x = torch.randn(0, 2, 9, 4)
    assert sec_attention(x, x, x, 3, mask=torch.ones(0, 9, dtype=torch.bool), **options).shape == x.shape
