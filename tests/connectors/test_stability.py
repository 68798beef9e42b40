"""What disturbed tokens do to the outputs."""

import pytest
import torch

from secvit.connectors import create
from secvit.connectors.stability import stability

TOKENS = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))


def test_nothing_changes_where_nothing_was_disturbed():
    assert stability(create("sec", 16, 8, 16, extra_token=None), TOKENS, TOKENS) == (0, 0, 1)


def test_twice_the_tokens_are_a_change_by_one():
    connector = create("pool", 16, 8, 16, extra_token=None, bias=False, act="relu")  # homogeneous: twice in, twice out
    found = stability(connector, TOKENS, 2 * TOKENS)
    assert found == pytest.approx((1, 1, 1))


def test_groups_of_content_move_where_groups_of_places_stay():
    disturbed = TOKENS + 0.3 * torch.randn(TOKENS.shape, generator=torch.Generator().manual_seed(1))
    kept = {name: stability(create(name, 16, 8, 16, extra_token=None), TOKENS, disturbed).together for name in ("sec", "random", "window")}  # fmt: skip
    assert kept["random"] == kept["window"] == 1 and kept["sec"] < 0.5


def test_pairs_are_counted_one_by_one():
    tokens = torch.tensor(
        [[[1.0, 0], [1, 0.1], [1, -0.5], [1, 0.9]]]
    )  # by cosine to the mean: 1, 0, 2 | 3 in some order
    connector = create("sec", 2, 2, 2, arrangement="sequential", extra_token=None)
    before = connector.merged(tokens, grid=(1, 4)).weights[0] > 0
    moved = tokens[:, [0, 2, 1, 3]]
    after = connector.merged(moved, grid=(1, 4)).weights[0] > 0
    together = {frozenset(row.nonzero()[:, 0].tolist()) for row in before} & {
        frozenset(row.nonzero()[:, 0].tolist()) for row in after
    }
    assert stability(connector, tokens, moved, grid=(1, 4)).together == len(together) / 2
