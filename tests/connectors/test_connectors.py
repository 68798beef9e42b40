"""What holds for every connector."""

import json

import pytest
import torch

from secvit.connectors import CONNECTORS, create
from secvit.connectors.base import Connector
from secvit.connectors.positions import locate
from tests.conftest import slow_but

LENGTH, GRID = 64, (8, 8)
# averages of tokens, so that Merged.weights alone say what the outputs are
AVERAGES = ["sec", "mlp", "pool", "evit", "tome", "random", "window", "tree", "divprune"]


def make(name, num_tokens=16, **options):
    options = {"num_patches": LENGTH, "num_heads": 2, **options}
    if name not in ("sec", "resampler", "random", "window", "tree"):
        del options["num_heads"]
    return create(name, 16, 12, LENGTH if name == "mlp" else num_tokens, **options)


def inputs(batch=2, dtype=torch.float32):
    tokens, cls = torch.randn(batch, LENGTH, 16, dtype=dtype), torch.randn(batch, 16, dtype=dtype)
    return dict(tokens=tokens, cls=cls, cls_attention=torch.rand(batch, LENGTH))


@pytest.mark.parametrize("extra", ["cls", "mean", None])
@pytest.mark.parametrize("name", CONNECTORS)
def test_connector_gives_the_tokens_it_promised(name, extra):
    connector = make(name, extra_token=extra)
    out = connector(**inputs())
    assert out.shape == (2, connector.num_output_tokens(), 12)
    assert connector.num_output_tokens(LENGTH) == connector.num_tokens + (extra is not None)
    assert connector.needs_cls == (extra == "cls") and connector.needs_cls_attention == (name == "evit")


@pytest.mark.parametrize("positions", [None, "coords"])
@pytest.mark.parametrize("name", CONNECTORS)
def test_options_make_the_connector_again(name, positions):
    connector = make(name, positions=positions).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    again = create(**json.loads(json.dumps(connector.options))).eval()
    again.load_state_dict(connector.state_dict())
    given = inputs()
    assert again.options == connector.options
    assert torch.equal(again(**given), connector(**given))


@pytest.mark.parametrize("name", CONNECTORS)
def test_all_but_the_mlp_of_llava_is_under_pool(name):
    keys = {key for key in make(name).state_dict() if not key.startswith("pool.")}
    assert keys == {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}


@pytest.mark.parametrize("name", AVERAGES)
def test_merged_weights_are_what_the_outputs_are_made_of(name):
    connector = make(name, where="before")
    given = inputs()
    reduced, _ = connector.reduce(given["tokens"], given["cls_attention"], GRID, weigh=False)
    weights = connector.merged(**given).weights
    # sums of 16 tokens at most in float32, in another order
    torch.testing.assert_close(weights @ given["tokens"], reduced, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONNECTORS)
def test_merged_weights_are_shares_of_tokens_and_lie_in_the_image(name):
    merged = make(name, extra_token=None).merged(inputs()["tokens"], cls_attention=inputs()["cls_attention"])
    outputs = LENGTH if name == "mlp" else 16
    assert merged.weights.shape == (2, outputs, LENGTH)
    torch.testing.assert_close(merged.weights.sum(dim=-1), torch.ones(2, outputs))
    assert (merged.weights >= 0).all()
    assert merged.coordinates.shape == merged.spread.shape == (2, outputs, 2)
    assert (merged.coordinates > 0).all() and (merged.coordinates < 1).all()
    assert (merged.spread >= 0).all() and (merged.spread < 0.5).all()


def test_coordinates_are_the_weighted_mean_of_the_tokens_places():
    weights = torch.zeros(1, 2, 6)  # 2 rows of 3
    weights[0, 0, [0, 5]] = torch.tensor([0.25, 0.75])
    weights[0, 1, 4] = 1
    merged = locate(weights, (2, 3))
    torch.testing.assert_close(
        merged.coordinates, torch.tensor([[[1 / 6 * 0.25 + 5 / 6 * 0.75, 0.25 * 0.25 + 0.75 * 0.75], [0.5, 0.75]]])
    )
    # a deviation of p and 1 - p apart is sqrt(p (1 - p)) times the distance
    torch.testing.assert_close(merged.spread, torch.tensor([[[0.1875**0.5 * 2 / 3, 0.1875**0.5 / 2], [0.0, 0.0]]]))


@pytest.mark.parametrize("name", CONNECTORS)
def test_coordinates_add_nothing_at_first_and_learn_at_once(name):
    torch.manual_seed(0)
    plain = make(name)
    located = make(name, positions="coords")
    assert located.needs_grid
    missing = located.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["pool.position.embed.weight"]
    given = inputs()
    assert torch.equal(located(**given), plain(**given))
    located(**given).square().sum().backward()
    embed = located.pool["position"].embed.weight
    assert embed.grad.isfinite().all() and embed.grad.abs().max() > 0
    embed.data.normal_()
    assert not torch.allclose(located(**given)[:, 1:], plain(**given)[:, 1:])
    assert torch.equal(located(**given)[:, 0], plain(**given)[:, 0])  # [cls] has no place


def test_tokens_that_change_place_change_the_coordinates_of_their_output():
    connector = make("sec", positions="coords", extra_token=None)
    tokens = inputs()["tokens"]
    left_right = tokens.unflatten(1, GRID).flip(2).flatten(1, 2)
    here, there = connector.merged(tokens).coordinates, connector.merged(left_right).coordinates
    torch.testing.assert_close(there, torch.stack([1 - here[..., 0], here[..., 1]], dim=-1))


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", [name for name in CONNECTORS if name != "pixel_shuffle"])
def test_the_extra_token_is_first_and_merged_with_nothing(name, where):
    given = inputs()
    cls, mean, none = (make(name, where=where, extra_token=extra) for extra in ("cls", "mean", None))
    for other in (mean, none):
        other.load_state_dict(cls.state_dict())
    # the same sums over another number of rows
    torch.testing.assert_close(cls(**given)[:, 0], cls.project(given["cls"]))
    torch.testing.assert_close(mean(**given)[:, 0], mean.project(given["tokens"].mean(dim=1)))
    torch.testing.assert_close(cls(**given)[:, 1:], none(**given))


@pytest.mark.parametrize("name", AVERAGES)
def test_after_means_tokens_are_merged_behind_the_mlp(name):
    connector = make(name, where="after", extra_token=None)
    given = inputs()
    by_content = name in ("sec", "tome", "tree", "divprune")  # go by other tokens there
    weights = (connector if by_content else make(name, extra_token=None)).merged(**given).weights
    torch.testing.assert_close(connector(**given), weights @ connector.project(given["tokens"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONNECTORS)
def test_bfloat16_goes_in_and_out(name):
    connector = make(name, positions="coords").bfloat16()
    out = connector(**inputs(dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    out.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in connector.parameters())


@pytest.mark.parametrize("name", CONNECTORS)
def test_what_merges_may_stay_in_float32_beside_a_bfloat16_mlp(name):
    connector = make(name, positions="coords").bfloat16()
    connector.pool.float()
    assert connector(**inputs(dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", CONNECTORS)
def test_autocast_trains(name):
    connector = make(name, positions="coords")
    with torch.autocast("cpu", torch.bfloat16):
        loss = connector(**inputs()).float().square().mean()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in connector.parameters())


@pytest.mark.parametrize("name", CONNECTORS)
def test_connector_starts_again_from_empty_memory(name):
    """As FSDP and transformers make it: on the meta device, then reset_parameters of each module."""
    with torch.device("meta"):
        connector = make(name, positions="coords")
    connector = connector.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.fill_(float("nan"))
    for module in connector.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()
    assert all(p.isfinite().all() for p in connector.parameters())
    start = make(name).pool.state_dict()
    for key in ("attend.q.weight", "attend.k.weight"):
        if key in start:
            assert torch.equal(connector.pool.state_dict()[key], start[key])


@pytest.mark.parametrize("name", [name for name in CONNECTORS if name not in ("mlp", "pixel_shuffle")])
def test_grids_need_not_be_square(name):
    connector = create(name, 16, 12, 9, extra_token=None, positions="coords")
    tokens, attention = torch.randn(1, 54, 16), torch.rand(1, 54)
    assert connector(tokens, cls_attention=attention, grid=(6, 9)).shape == (1, 9, 12)


class Projector(torch.nn.Module):
    """LLaVA's, by its names."""

    def __init__(self):
        super().__init__()
        self.linear_1, self.act, self.linear_2 = torch.nn.Linear(16, 12), torch.nn.GELU(), torch.nn.Linear(12, 12)

    def forward(self, x):
        return self.linear_2(self.act(self.linear_1(x)))


@pytest.mark.parametrize("name", [name for name in CONNECTORS if name != "pixel_shuffle"])
def test_a_trained_mlp_is_taken_as_it_is(name):
    projector, connector = Projector(), make(name, extra_token=None)
    connector.take_mlp(projector)
    assert connector.linear_1 is projector.linear_1 and connector.linear_2 is projector.linear_2
    x = torch.randn(3, 16)
    assert torch.equal(connector.project(x), projector(x))


@pytest.mark.parametrize(
    "name", slow_but(["evit", "resampler", "tree"], ["pool", "evit", "window", "resampler", "tree"])
)
def test_a_compiled_connector_gives_the_same(name):
    given, connector = inputs(), make(name)
    compiled = torch.compile(connector, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**given), connector(**given))


def test_every_connector_is_named_in_the_package():
    assert all(issubclass(type(make(name)), Connector) and make(name).name == name for name in CONNECTORS)
