"""torch.func over attention in clusters: maps and derivatives of functions, as of any operation of torch."""

import pytest
import torch

from secvit.ops import sec_attention, sec_attention_packed

MAPPED = "ignore:There is a performance drop"  # torch maps its own attention by a loop on CPUs


def attend(x):
    """x (h, L, D)"""
    return sec_attention(x[None], x.sin()[None], x.cos()[None], 3)[0]


def attend_packed(x):
    """x (L, h, 3, D)"""
    return sec_attention_packed(x[None], 3, 0.4)[0]


CASES = [(attend, (4, 2, 9, 5)), (attend, (4, 2, 10, 5)), (attend_packed, (4, 9, 2, 3, 5))]


@pytest.mark.filterwarnings(MAPPED)
@pytest.mark.parametrize(("function", "shape"), CASES)
def test_mapped_attention_and_its_gradients_are_those_of_a_loop(function, shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(one):
        return function(one).square().sum()

    for mapped in (function, torch.func.grad(loss)):
        expected = torch.stack([mapped(one) for one in x])
        torch.testing.assert_close(torch.vmap(mapped)(x), expected)
    y = x[0].clone().requires_grad_()
    loss(y).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), y.grad)


def test_an_empty_batch_with_a_mask_is_empty():
    x = torch.randn(0, 2, 9, 4)
    assert sec_attention(x, x, x, 3, mask=torch.ones(0, 9, dtype=torch.bool)).shape == x.shape
