import numpy as np
import pytest
import torch
from PIL import Image

from secvit.images import View, middle, seeded, skipped_in
from secvit.images.folders import read_folder
from tests.images.make import make_image, save


class Middle(View):
    """The middle of each image, broken ones left out."""

    def __getitems__(self, keys):
        return {"image": self.whole_ones(keys)[1]}


def test_every_kind_of_image_becomes_a_view_and_broken_ones_are_counted(tmp_path):
    root, rgb = tmp_path / "odd", make_image(0)
    for name in ("whole", "other"):
        for i in range(60):
            save(root / name / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    kinds = root / "odd"
    kinds.mkdir()
    rgb.convert("CMYK").save(kinds / "cmyk.jpg")
    rgb.convert("L").save(kinds / "grey.jpg")
    rgb.convert("RGBA").save(kinds / "rgba.png")
    rgb.save(kinds / "turned.jpg", exif=exif)
    rgb.resize((1, 1)).save(kinds / "one_pixel.png")
    rgb.resize((300, 1)).save(kinds / "line.png")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(kinds / "sixteen.png")
    (kinds / "truncated.png").write_bytes((root / "whole" / "0.png").read_bytes()[:200])
    every = read_folder(root, "all")
    view = Middle(every, middle(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    odd = [i for i, name in enumerate(every.names) if "/odd/odd/" in name]
    batch = view.__getitems__(odd)["image"]
    assert batch.shape == (7, 3, 8, 8) and batch.isfinite().all() and batch.abs().max() <= 2
    assert view.skipped == [str(kinds / "truncated.png")]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (8, 8), (7, 9)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_middle_has_the_size_that_was_asked_for(size, crop_pct):
    assert middle(8, (0.0,) * 3, (1.0,) * 3, crop_pct)(make_image(0, size)).shape == (3, 8, 8)


def test_batches_hold_each_whole_image_once(tmp_path):
    for name in ("a", "b"):
        for i in range(60):
            save(tmp_path / name / f"{i}.png")
    (tmp_path / "a" / "7.png").write_bytes(b"no image")
    view = Middle(read_folder(tmp_path, "all"), middle(8, (0.0,) * 3, (1.0,) * 3))
    assert sum(len(batch["image"]) for batch in view.batches(7)) == 119
    assert skipped_in(view) == [str(tmp_path / "a" / "7.png")]


def test_random_numbers_come_from_the_seed_and_are_put_back():
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(2), np.random.rand()
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3):
        assert torch.equal(torch.rand(2), first[0]) and np.random.rand() == first[1]
