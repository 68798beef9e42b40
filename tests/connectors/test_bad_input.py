"""Errors name what is wrong and what to do."""

import pytest
import torch

from secvit.connectors import CONNECTORS, create

TOKENS, CLS = torch.randn(2, 36, 8), torch.randn(2, 8)


@pytest.mark.parametrize(
    "name", [name for name in CONNECTORS if name not in ("mlp", "pixel_shuffle", "pool", "c_abstractor")]
)
def test_more_tokens_than_there_are(name):
    with pytest.raises(ValueError, match=r"36 tokens cannot give 37; choose num_tokens <= 36"):
        create(name, 8, 8, 37, num_patches=36)  # at once, where L is known
    connector = create(name, 8, 8, 37, extra_token=None)
    with pytest.raises(ValueError, match=r"36 tokens cannot give 37; choose num_tokens <= 36"):
        connector(TOKENS, cls_attention=torch.rand(2, 36))
    with pytest.raises(ValueError, match=r"36 tokens cannot give 37"):
        connector.num_output_tokens(36)


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("name", CONNECTORS)
def test_no_tokens_at_all(name, count):
    with pytest.raises(ValueError, match=f"{count}.*; choose"):
        create(name, 8, 8, count)


@pytest.mark.parametrize("name", ["pool", "c_abstractor"])
@pytest.mark.parametrize(
    ("count", "nearest"), [(288, r"289 \(17 x 17\)"), (288, r"256 \(16 x 16\)"), (192, r"196 \(14 x 14\)")]
)
def test_a_square_is_asked_for_what_is_none(name, count, nearest):
    with pytest.raises(ValueError, match=rf"{name} cannot give {count} tokens, which are no square; .*{nearest}"):
        create(name, 8, 8, count)


@pytest.mark.parametrize("name", ["pool", "c_abstractor"])
def test_a_side_longer_than_the_grid(name):
    with pytest.raises(ValueError, match=r"a grid of 4 x 9 cannot give 5 x 5; choose fewer tokens"):
        create(name, 8, 8, 25, extra_token=None)(TOKENS, grid=(4, 9))


def test_mlp_merges_nothing():
    with pytest.raises(ValueError, match=r"mlp merges nothing: 36 tokens cannot give 144; choose num_tokens=36"):
        create("mlp", 8, 8, 144, extra_token=None)(TOKENS)


def test_pixel_shuffle_names_the_numbers_it_can_give():
    with pytest.raises(
        ValueError, match=r"cannot give 192 of 576 tokens; choose 576, 144, 64, 36, 16, 9, 4, 1, or say num_patches"
    ):
        create("pixel_shuffle", 8, 8, 192)
    with pytest.raises(ValueError, match=r"36 tokens cannot give 144 with r=2; choose num_patches=36"):
        create("pixel_shuffle", 8, 8, 144, extra_token=None)(TOKENS)
    with pytest.raises(ValueError, match=r"a grid of 4 x 9 does not divide into 2 x 2"):
        create("pixel_shuffle", 8, 8, 9, num_patches=36, extra_token=None)(TOKENS, grid=(4, 9))
    with pytest.raises(ValueError, match=r'where=\'after\'; .*choose "before"'):
        create("pixel_shuffle", 8, 8, 144, where="after")


@pytest.mark.parametrize("name", ["pool", "window", "resampler", "c_abstractor", "tree"])
def test_tokens_that_are_no_square_grid(name):
    connector = create(name, 8, 8, 4, extra_token=None)
    with pytest.raises(ValueError, match=r"35 tokens are no square grid; give grid=\(H, W\)"):
        connector(TOKENS[:, :35])
    with pytest.raises(ValueError, match=r"36 tokens are no 5 x 7 grid"):
        connector(TOKENS, grid=(5, 7))


def test_sec_needs_a_grid_for_coordinates_alone():
    tokens = TOKENS[:, :35]
    assert create("sec", 8, 8, 4, extra_token=None)(tokens).shape == (2, 4, 8)
    with pytest.raises(ValueError, match=r"35 tokens are no square grid"):
        create("sec", 8, 8, 4, extra_token=None, positions="coords")(tokens)
    with pytest.raises(ValueError, match=r"35 tokens are no square grid"):
        create("sec", 8, 8, 4, extra_token=None).merged(tokens)


def test_cls_attention_that_is_missing_says_how_to_get_it():
    connector = create("evit", 8, 8, 4, extra_token=None)
    with pytest.raises(ValueError, match=r"cls_attention=\(2, 36\).*none was given; .*eager.*output_attentions=True"):
        connector(TOKENS)
    with pytest.raises(ValueError, match=r"this one is \(2, 37\)"):
        connector(TOKENS, cls_attention=torch.rand(2, 37))


def test_cls_that_is_missing_says_how_to_keep_it():
    connector = create("sec", 8, 8, 4)
    with pytest.raises(
        ValueError, match=r'cls=\(2, 8\), and none was given; .*strategy="full".*extra_token="mean" or None'
    ):
        connector(TOKENS)
    with pytest.raises(ValueError, match=r"this one is \(2, 1, 8\)"):
        connector(TOKENS, CLS.unsqueeze(1))


@pytest.mark.parametrize("tokens", [TOKENS[0], TOKENS[..., :7], TOKENS.unflatten(1, (6, 6))])
def test_tokens_of_another_shape(tokens):
    with pytest.raises(ValueError, match=r"give \(B, L, 8\), without \[cls\]"):
        create("sec", 8, 8, 4, extra_token=None)(tokens)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(name="rec"), r"no connector 'rec'; choose one of sec, mlp,"),
        (dict(extra_token="first"), r"extra_token='first'; choose one of 'cls', 'mean', None"),
        (dict(where="inside"), r"where='inside'; choose one of 'before', 'after'"),
        (dict(positions="xy"), r"positions='xy'; choose one of None, 'coords'"),
        (dict(act="swish"), r"act='swish'; choose one of 'gelu'"),
        (dict(arrangement="both"), r"arrangement='both'; choose 'interleaved' or 'sequential'"),
        (dict(order="column"), r"order='column'; choose 'rank' or 'spatial'"),
        (dict(pooling="max"), r"pooling='max'; choose 'attentive' or 'mean'"),
        (dict(init="zero"), r"init='zero'; choose 'identity' or 'random'"),
        (dict(num_heads=3), r"8 channels do not split into num_heads=3; choose a divisor of 8"),
        (dict(num_heads=0), r"8 channels do not split into num_heads=0"),
        (dict(name="resampler", depth=0), r"depth=0; choose depth >= 1"),
        (dict(name="resampler", in_dim=6), r"6 channels .*choose a multiple of 4"),
    ],
    ids=lambda case: "-".join(f"{k}={v}" for k, v in case.items()) if isinstance(case, dict) else "",
)
def test_choices_that_there_are_not(wrong, said):
    with pytest.raises(ValueError, match=said):
        create(**{"name": "sec", "in_dim": 8, "out_dim": 8, "num_tokens": 4, **wrong})


def test_an_mlp_of_other_widths():
    with pytest.raises(ValueError, match=r"from 6 to 8 channels for a connector from 8 to 8"):
        create("sec", 8, 8, 4).take_mlp(create("mlp", 6, 8))
    quantised = create("mlp", 8, 8)
    quantised.linear_1.weight = torch.nn.Parameter(quantised.linear_1.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"load the model unquantised or choose another connector"):
        create("pixel_shuffle", 8, 8, 144).take_mlp(quantised)
