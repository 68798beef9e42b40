import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from secvit.classification.augment import Augment, auto_augment, pad_crop, resized_crop, uniforms
from secvit.classification.data import EvalView, TrainView, centre_crop
from secvit.classification.sources import Images
from secvit.train.sampler import Keys

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
ALL = Augment(auto="rand-m9-mstd0.5-inc1", erase=0.5, mixup=0.8, cutmix=1.0)


def images(count=24, size=16):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8)
    names = tuple(map(str, range(count)))
    return Images("test", ("a", "b", "c"), torch.arange(count) % 3, pixels, names)


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_batches_depend_on_seed_and_keys_alone(crop):
    augment = Augment(**{**ALL.__dict__, "crop": crop})
    view = TrainView(images(), augment, 16, MEAN, STD, seed=1)
    first = view.__getitems__([3, 30, 51])
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again = view.__getitems__([3, 30, 51])
    other = TrainView(images(), augment, 16, MEAN, STD, seed=2).__getitems__([3, 30, 51])
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["target"], again["target"])
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("augment", [Augment(), Augment(auto="rand-m9-mstd0.5-inc1", erase=0.5)])
def test_a_sample_does_not_depend_on_its_batch(augment):
    view = TrainView(images(), augment, 16, MEAN, STD)
    together = view.__getitems__([5, 29, 7])["image"]
    alone = torch.stack([view[k]["image"] for k in (5, 29, 7)])
    assert torch.equal(together, alone)


def test_the_same_sample_is_augmented_anew_in_the_next_epoch():
    view = TrainView(images(), Augment(crop="pad"), 16, MEAN, STD)
    draws = [view[5 + 24 * epoch]["image"] for epoch in range(8)]
    assert sum(torch.equal(draws[0], d) for d in draws) < 3


def test_workers_give_the_batches_of_the_main_process():
    view = TrainView(images(), ALL, 16, MEAN, STD)
    keys = Keys(24, 8, seed=0, start=0, stop=4)
    loaders = [DataLoader(view, batch_sampler=keys, num_workers=n, collate_fn=view.collate) for n in (0, 1)]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one["image"], other["image"])


def test_uniform_numbers_are_uniform_and_unrelated():
    draws = uniforms(0, range(4000), 6)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.02  # 4 sigma of a mean of 4000
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.07
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.07


def test_pad_crop_without_shift_changes_nothing():
    pixels = images().pixels
    assert torch.equal(pad_crop(pixels, 2, np.full((24, 2), 0.5)), pixels)
    shifted = pad_crop(pixels, 2, np.zeros((24, 2)))
    assert torch.equal(shifted[:, :, 2:, 2:], pixels[:, :, :-2, :-2])
    assert (shifted[:, :, :2] == 0).all()


def test_mixed_targets_sum_to_one_and_keep_their_share():
    view = TrainView(images(), Augment(crop="none", flip=0.0, cutmix=1.0), 16, MEAN, STD)
    plain = EvalView(images(), 16, MEAN, STD)
    for first in range(0, 240, 8):
        keys = list(range(first, first + 8))
        batch, raw = view.__getitems__(keys), plain.__getitems__([k % 24 for k in keys])["image"]
        torch.testing.assert_close(batch["target"].sum(1), torch.ones(8))
        own = (batch["image"] == raw).all(1).float().mean((1, 2))
        label = torch.tensor(keys) % 24 % 3
        share = batch["target"][torch.arange(8), label]
        differ = label != label.flip(0)
        torch.testing.assert_close(own[differ], share[differ], atol=0.02, rtol=0)


def test_augmentation_leaves_the_global_generators_alone():
    view = TrainView(images(), ALL, 16, MEAN, STD)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    view.__getitems__([1, 2, 3])
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[2])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_randaugment_survives_every_draw():
    """timm posterizes to 0 bits now and then, which Pillow 13 refuses."""
    apply = auto_augment("rand-m10-mstd0.5-inc1", 16, MEAN)
    image = Image.fromarray(images().pixels[0].permute(1, 2, 0).numpy())
    for seed in range(400):
        random.seed(seed), np.random.seed(seed)
        assert apply(image).size == (16, 16)


def test_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="timm knows no such augmentation"):
        auto_augment("magic-m9", 16, MEAN)


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (17, 31), (64, 64)])
def test_crops_have_the_right_size_whatever_the_image(size):
    image = Image.new("RGB", size)
    assert resized_crop(image, 24, (0.08, 1.0)).size == (24, 24)
    assert centre_crop(image, 24, 0.875).size == (24, 24)


def test_normalisation_is_that_of_the_model():
    view = EvalView(images(), 16, MEAN, STD)
    wanted = (images().pixels[:2] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(view.__getitems__([0, 1])["image"], wanted)


def test_padding_needs_images_of_the_training_size():
    with pytest.raises(ValueError, match='use crop="resized"'):
        TrainView(images(size=20), Augment(crop="pad"), 16, MEAN, STD)
