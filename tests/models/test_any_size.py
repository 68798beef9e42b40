"""One model, any image: sizes, batches, partitions, dtypes, from call to call."""

import pytest
import timm
import torch

from secvit.models import rotary
from secvit.ops import PARTITIONS

SIZES = [(32, 32), (33, 65), (1, 1), (2, 3), (5, 1), (17, 90), (64, 48)]


def nano(**arguments):
    return timm.create_model("secvit_nano", **arguments)


def step(model, x):
    """One forward and backward; the gradients."""
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_trains(model, x):
    for name, gradient in step(model, x).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("arguments", [{}, {"cluster_size": 49}, {"stem_stride": 4}], ids=str)
def test_any_size_runs_forward_and_backward_in_one_model(arguments):
    model = nano(**arguments)
    for height, width in SIZES:
        assert_trains(model, torch.randn(2, 3, height, width))


@pytest.mark.parametrize("size", [(33, 65), (240, 240)])
def test_tiny_runs_at_odd_sizes(size):
    model = timm.create_model("secvit_tiny")
    assert_trains(model, torch.randn(2, 3, *size))
    assert model.forward_features(torch.randn(1, 3, *size)).shape[2:] == tuple(-(-s // 32) for s in size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secvit_nano", "secvit_tiny"])
def test_detection_size_runs_forward_and_backward(name):
    model = timm.create_model(name, cluster_size=98, **({"stem_stride": 4} if name == "secvit_nano" else {}))
    assert_trains(model, torch.randn(1, 3, 800, 1333))
    if name == "secvit_tiny":
        with torch.no_grad():
            assert timm.create_model(name).eval()(torch.randn(1, 3, 800, 1333)).isfinite().all()


def test_sizes_may_change_from_call_to_call():
    model = nano().eval()
    images = [torch.randn(1, 3, *size) for size in SIZES]
    with torch.no_grad():
        first = [model(x) for x in images]
        again = [model(x) for x in reversed(images)][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(32, 32), (33, 65)])
def test_a_batch_equals_its_images_one_by_one(size):
    model = nano().double().eval()
    x = torch.randn(3, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([model(image.unsqueeze(0)) for image in x])
        # float64 products of other shapes
        torch.testing.assert_close(model(x), alone, rtol=1e-9, atol=1e-12)


def test_an_empty_batch_gives_no_logits():
    with torch.no_grad():
        assert nano().eval()(torch.empty(0, 3, 32, 32)).shape == (0, 10)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_partition_trains(partition):
    model = nano(partition=partition)
    for size in ((32, 32), (33, 65), (1, 1)):
        assert_trains(model, torch.randn(2, 3, *size))


@pytest.mark.parametrize("partition", ["window", "raster", "sec", "pc1", "random_projection", "balanced_kmeans"])
def test_plan_is_the_partition_of_the_forward_pass(partition):
    model = nano(partition=partition).double().eval()
    attn = model.stages[0].blocks[0].attn
    x = torch.randn(2, 7, 9, 32, dtype=torch.float64)
    table = rotary.rotary_table(7, 9, 32, torch.float64, x.device)
    with torch.no_grad():
        plan = attn.plan(x, table)
        out = attn(x, table)
        q, k, v = rotary.rotate_packed_(attn.qkv(x).view(2, 63, 1, 3, 32), table).permute(3, 0, 2, 1, 4).unbind(0)
        attended = torch.zeros_like(v)
        for b in range(2):
            for m in range(plan.num_clusters):
                members = (plan.labels[b, 0] == m).nonzero()[:, 0]
                weights = torch.softmax(q[b, 0, members] @ k[b, 0, members].T * attn.scale, dim=-1)
                attended[b, 0, members] = weights @ v[b, 0, members]
        lepe = attn.lepe(v[:, 0].view(2, 7, 9, 32).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        expected = attn.proj(attended[:, 0].view(2, 7, 9, 32) + lepe)
    # float64 sums in another order
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


def test_kmeans_and_sec_differ_only_in_their_partition():
    rivals = {name: nano(partition=name) for name in PARTITIONS}
    for model in rivals.values():
        assert model.state_dict().keys() == rivals["sec"].state_dict().keys()


def test_training_works_after_inference_mode_on_the_same_grid():
    rotary._tables.clear()
    model = nano()
    x = torch.randn(2, 3, 40, 24)
    with torch.inference_mode():
        expected = model.eval()(x)
    model.train()
    assert_trains(model, x)
    with torch.no_grad():
        model.eval()(x)
    assert_trains(model.train(), x)
    assert expected.isfinite().all()


def test_cached_tables_do_not_outlive_their_dtype():
    model = nano().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        single = model(x)
        assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
        double = model.double()(x.double())
        assert double.dtype == torch.float64
    assert single.dtype == torch.float32


def test_cached_tables_are_bounded():
    model = nano().eval()
    with torch.no_grad():
        for side in range(2, 60, 2):
            model(torch.randn(1, 3, 1, side))
    assert len(rotary._tables) <= rotary._MAX_TABLES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_forward_and_backward(dtype):
    model = nano()
    x = torch.randn(2, 3, 33, 65)
    with torch.autocast("cpu", dtype):
        logits = model(x)
    assert logits.dtype == dtype
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_bf16_features_are_near_float32():
    model = nano(partition="raster").eval()  # a fixed partition: with SEC, tokens that nearly tie change clusters
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_features(x).flatten(1)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.forward_features(x).float().flatten(1)
    # 8 bits through 9 blocks: 2^-8 each, at random
    assert torch.cosine_similarity(found, expected).min() > 0.99


def test_a_bad_pixel_never_crashes():
    model = nano().eval()
    x = torch.randn(2, 3, 32, 32)
    x[0, 0, 3, 5] = float("nan")
    with torch.no_grad():
        logits = model(x)
    assert logits.shape == (2, 10)
    assert logits[1].isfinite().all()


def test_input_memory_format_changes_nothing():
    model = nano().double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model(x), model(x.contiguous(memory_format=torch.channels_last)))
    kept = x.clone()
    with torch.no_grad():
        model(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_place_rotation_gives_the_gradients_of_plain_rotation(dtype):
    attn = nano().to(dtype).stages[1].blocks[0].attn
    table = rotary.rotary_table(6, 5, 32, dtype, torch.device("cpu"))

    def run(rotate):
        x = torch.linspace(-1, 1, 2 * 30 * 64, dtype=dtype).sin().view(2, 6, 5, 64).requires_grad_()
        qkv = attn.qkv(x).view(2, 30, 2, 3, 32)
        out = rotate(qkv)
        return out, torch.autograd.grad((out * torch.linspace(0, 1, 32, dtype=dtype)).sum(), x)[0]

    def plain(qkv):
        even, odd = qkv[:, :, :, :2, 0::2], qkv[:, :, :, :2, 1::2]
        cos, sin = (t.view(1, 30, 1, 1, 16) for t in table.unbind(-1))
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
        return torch.cat([turned, qkv[:, :, :, 2:]], dim=3)

    for found, expected in zip(run(lambda qkv: rotary.rotate_packed_(qkv, table)), run(plain), strict=True):
        # rounding of products taken in another order
        torch.testing.assert_close(
            found,
            expected,
            rtol=1e-4 if dtype == torch.float32 else 1e-12,
            atol=1e-5 if dtype == torch.float32 else 1e-12,
        )
