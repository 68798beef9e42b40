import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from secvit.classification.augment import Augment, training_transform
from secvit.classification.data import EvalView, TrainView
from secvit.images import Images, middle
from secvit.train.sampler import Keys

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
ALL = Augment(auto="rand-m9-mstd0.5-inc1", erase=0.5, mixup=0.8, cutmix=1.0)


def images(count=24, size=16):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8)
    names = tuple(map(str, range(count)))
    return Images("test", ("a", "b", "c"), torch.arange(count) % 3, pixels, names)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_batches_depend_on_seed_and_keys_alone(crop):
    augment = Augment(**{**ALL.__dict__, "crop": crop})
    view = TrainView(images(), augment, 16, MEAN, STD, seed=1)
    first = view.__getitems__([3, 30, 51, 70])
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again = view.__getitems__([3, 30, 51, 70])
    other = TrainView(images(), augment, 16, MEAN, STD, seed=2).__getitems__([3, 30, 51, 70])
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


def test_padded_crops_are_shifts_with_black_borders():
    white = Image.new("RGB", (16, 16), (255, 255, 255))
    transform = training_transform(Augment(crop="pad", padding=4, flip=0.0), 16, (0.0,) * 3, (1.0,) * 3)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        rows, columns = (transform(white)[0].amax(i).sum().int().item() for i in (1, 0))
        seen.add((rows, columns))
        assert 12 <= rows <= 16 and 12 <= columns <= 16
    assert len(seen) > 10


@pytest.mark.parametrize("augment", [Augment(cutmix=1.0, padding=0, flip=0.0), Augment(mixup=0.8, padding=0, flip=0.0)])
def test_mixed_targets_are_the_shares_of_what_is_in_the_image(augment):
    pixels = images().pixels.clone()
    pixels[:] = 0
    for i in range(24):
        pixels[i, i % 3] = 255  # the class is the colour
    data = Images("test", ("a", "b", "c"), torch.arange(24) % 3, pixels, tuple(map(str, range(24))))
    view = TrainView(data, augment, 16, (0.0,) * 3, (1.0,) * 3)
    mixed = 0
    for first in range(0, 240, 8):
        batch = view.__getitems__(list(range(first, first + 8)))
        torch.testing.assert_close(batch["target"].sum(1), torch.ones(8))
        shares = batch["image"].mean((2, 3))
        torch.testing.assert_close(shares, batch["target"], atol=1e-5, rtol=0)  # float32 means of 256 pixels
        mixed += int((batch["target"].amax(1) < 0.999).sum())
    assert mixed > 50


def test_augmentation_leaves_the_global_generators_alone():
    view = TrainView(images(), ALL, 16, MEAN, STD)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    view.__getitems__([1, 2, 3, 4])
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[2])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_randaugment_survives_every_draw():
    """timm posterizes to 0 bits now and then, which Pillow 13 refuses."""
    transform = training_transform(Augment(auto="rand-m10-mstd0.5-inc1"), 16, MEAN, STD)
    image = Image.fromarray(images().pixels[0].permute(1, 2, 0).numpy())
    for seed in range(400):
        random.seed(seed), np.random.seed(seed)
        assert transform(image).shape == (3, 16, 16)


def test_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="timm knows no such augmentation"):
        training_transform(Augment(auto="magic-m9"), 16, MEAN, STD)


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (17, 31), (64, 64)])
def test_crops_have_the_right_size_whatever_the_image(size):
    image = Image.new("RGB", size)
    assert training_transform(Augment(crop="resized"), 24, MEAN, STD)(image).shape == (3, 24, 24)
    assert middle(24, MEAN, STD, 0.875)(image).shape == (3, 24, 24)


def test_training_and_evaluation_normalise_alike():
    wanted = (images().pixels[:2] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(EvalView(images(), 16, MEAN, STD).__getitems__([0, 1])["image"], wanted)
    view = TrainView(images(), Augment(padding=0, flip=0.0), 16, MEAN, STD)
    torch.testing.assert_close(view.__getitems__([0, 1])["image"], wanted)


def test_padding_needs_images_of_the_training_size():
    with pytest.raises(ValueError, match='use crop="resized"'):
        TrainView(images(size=20), Augment(crop="pad"), 16, MEAN, STD)
