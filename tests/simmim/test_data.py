"""Masks and crops are functions of (seed, key)."""

import math

import pytest
import torch

from secvit.images import load_split, seeded
from secvit.simmim import EvalView, TrainView, random_mask
from secvit.simmim.data import Augment, Masking

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def digits():
    return load_split("digits", "val")


def view(digits, seed=0, size=64, patch=16):
    return TrainView(digits, Augment(), Masking(patch), size, MEAN, STD, seed)


@pytest.mark.parametrize(("size", "patch", "ratio"), [(192, 32, 0.6), (64, 32, 0.6), (128, 32, 0.75), (64, 8, 0.01)])
def test_mask_hides_the_ratio_rounded_up(size, patch, ratio):
    side = Masking(patch, ratio).grid(size)
    assert side == size // patch
    for seed in range(5):
        with seeded(seed):
            mask = random_mask(side, ratio)
        assert mask.shape == (side, side) and int(mask.sum()) == math.ceil(ratio * side * side)


def test_every_patch_is_hidden_equally_often():
    with seeded(0):
        share = torch.stack([random_mask(6, 0.6) for _ in range(2000)]).float().mean(0)
    # a share of 22/36 in 2,000 draws has a standard deviation of 0.011; five of them
    assert (share - 22 / 36).abs().max() < 0.055


def test_a_sample_depends_on_seed_and_key_alone(digits):
    n = len(digits)
    keys = [3, n + 3, 5 * n + 17]
    together, again = view(digits).__getitems__(keys), view(digits).__getitems__(keys)
    torch.manual_seed(1)  # what was drawn before does not matter
    alone = [view(digits)[key] for key in reversed(keys)][::-1]
    for name in ("image", "mask"):
        assert torch.equal(together[name], again[name])
        assert all(torch.equal(together[name][i], alone[i][name]) for i in range(3))
    assert not torch.equal(together["image"][0], together["image"][1])  # another draw of the same image
    other = view(digits, seed=1).__getitems__(keys)
    assert not torch.equal(together["mask"], other["mask"]) and not torch.equal(together["image"], other["image"])


def test_training_batch_has_the_shapes_the_task_wants(digits):
    batch = view(digits, size=96, patch=32).__getitems__([0, 1])
    assert batch["image"].shape == (2, 3, 96, 96) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (2, 3, 3) and batch["mask"].dtype == torch.bool
    assert set(batch) == {"image", "mask"}


def test_held_out_masks_stay_whatever_the_batch(digits):
    held_out = EvalView(digits, Masking(16), 64, MEAN, STD)
    whole = held_out.__getitems__([0, 1, 2, 3])
    parts = [held_out.__getitems__(keys) for keys in ([0], [1, 2], [3])]
    for name in ("image", "mask"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    assert not torch.equal(whole["mask"][0], whole["mask"][1])
    assert whole["mask"].flatten(1).sum(1).tolist() == [10] * 4


@pytest.mark.parametrize(
    ("masking", "size", "message"),
    [
        (Masking(32), 100, "100x100 px cannot be cut into mask patches of 32 px; choose image_size .* like 96"),
        (Masking(32), 16, "cannot be cut into .* like 64"),
        (Masking(0), 64, "mask patches of 0 px"),
        (Masking(32, 0.6), 32, "ratio=0.6 of 1 mask patches hides 1 of them"),
        (Masking(32, 0.0), 64, "ratio=0.0 of 4 mask patches hides 0 of them; hide at least one"),
        (Masking(32, 1.0), 64, "ratio=1.0 of 4 mask patches hides 4"),
        (Masking(32, -0.5), 64, "choose a ratio between 0 and 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(digits, masking, size, message):
    with pytest.raises(ValueError, match=message):
        TrainView(digits, Augment(), masking, size, MEAN, STD)
    with pytest.raises(ValueError, match=message):
        EvalView(digits, masking, size, MEAN, STD)
