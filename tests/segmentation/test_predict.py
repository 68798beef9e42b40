"""Labels of images: whole, by windows, at several scales; in bounded memory; saved networks."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn import functional as F

from secvit.segmentation import label_picture, recipes, semantic_fpn
from secvit.segmentation.config import Look
from secvit.segmentation.prediction import Logits, load_trained, starts, view
from secvit.weights import weight_bytes
from tests.conftest import ROOT
from tests.segmentation.make import scene

NANO = {"stem_stride": 4, "depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 2, 4, 4)}


class Local(nn.Module):
    """Logits of 4x4 px cells from their mean colour: what a window sees elsewhere does not matter."""

    def __init__(self, classes=5):
        super().__init__()
        self.colours = nn.Conv2d(3, classes, 1)
        self.strides = [4, 8, 16, 32]

    @property
    def backbone(self):
        return self

    def normalization(self):
        return (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)

    def logits(self, images):
        return self.colours(F.avg_pool2d(images, 4, ceil_mode=True, count_include_pad=False))


def small():
    return semantic_fpn("secvit_nano", 5, pyramid=16, channels=8, backbone_args=NANO).eval()


def make_photo(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(80, 64), (75, 61), (33, 90)])
def test_a_whole_image_is_labelled_as_the_network_does(size):
    model, photo = small(), make_photo(*size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in model.backbone.normalization())
    image = (torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        logits = model(image[None])[0]
    found = label_picture(model, photo, Look(short_side=0))
    best = logits.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()  # two ways of bilinear resizing, in float32
    assert clear.mean() > 0.9 and (found == logits.argmax(0).numpy())[clear].all()


@pytest.mark.parametrize("size", [(7, 5), (40, 30), (64, 48), (131, 67)])
def test_bands_are_bilinear_resizing(size):
    values = torch.randn(3, 16, 12)
    whole = F.interpolate(values[None], size=size[::-1], mode="bilinear", align_corners=False)[0]
    bands = [Logits(values, 16, 12).band(top, min(top + 10, size[1]), size[::-1]) for top in range(0, size[1], 10)]
    torch.testing.assert_close(torch.cat(bands, dim=1), whole, atol=1e-5, rtol=1e-5)  # float32, another order


@pytest.mark.parametrize("window", [64, 96, 128])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_what_is_local_are_the_whole(window, flip):
    model, photo = Local(), make_photo(324, 200)
    whole, parts = (view(model, photo, Look(0, w), flip, False) for w in (0, window))
    assert (parts.rows, parts.columns) == whole.values.shape[-2:]
    torch.testing.assert_close(parts.values, whole.values, atol=1e-5, rtol=1e-5)  # means of float32


def test_windows_cover_sides_that_are_no_multiple_of_anything():
    model, photo = Local(), make_photo(333, 215)
    parts = view(model, photo, Look(0, 96), False, False)
    assert (parts.rows, parts.columns) == (215 / 4, 333 / 4) and parts.values.isfinite().all()
    whole = view(model, photo, Look(0), False, False)
    assert label_picture(model, photo, Look(0, 96)).shape == (215, 333)
    torch.testing.assert_close(parts.values[:, :53, :83], whole.values[:, :53, :83], atol=1e-5, rtol=1e-5)


def test_a_constant_field_is_labelled_alike_by_windows_and_as_a_whole():
    model, photo = small(), Image.new("RGB", (256, 192), (120, 90, 60))
    whole, parts = (label_picture(model, photo, Look(0, w)) for w in (0, 256))  # one window
    assert np.array_equal(whole, parts)
    local = Local()
    whole, parts = (label_picture(local, photo, Look(0, w)) for w in (0, 64))
    assert np.array_equal(whole, parts) and len(np.unique(parts)) == 1


def test_windows_reach_the_end_and_overlap_enough():
    for side, window, overlap, cell in (
        (1000, 512, 1 / 3, 4),
        (512, 512, 0.5, 4),
        (300, 512, 0.5, 4),
        (4000, 96, 0.9, 2),
    ):
        found = starts(side, window, overlap, cell)
        assert found[0] == 0 and found[-1] == max(side - window, 0) and all(at % cell == 0 for at in found)
        assert all(b - a <= window * (1 - overlap) for a, b in itertools.pairwise(found))


def test_scales_and_flips_average_probabilities():
    model, photo = small(), make_photo(96, 64)
    look = Look(0, scales=(0.5, 1.0), flip=True)
    total = 0
    for scale in look.scales:
        seen = photo.resize((round(96 * scale), round(64 * scale)), Image.Resampling.BILINEAR)
        for flip in (False, True):
            total = total + view(model, seen, look, flip, False).band(0, 64, (64, 96)).softmax(0)
    assert np.array_equal(label_picture(model, photo, look), total.detach().argmax(0).numpy())


def test_a_mirrored_image_has_the_mirrored_labels():
    model, photo = small(), make_photo(90, 61)
    look = Look(0, flip=True)
    mirrored = label_picture(model, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), look)
    assert (mirrored[:, ::-1] == label_picture(model, photo, look)).mean() > 0.999  # float32 ties


MEMORY = """
import resource, sys, torch
from PIL import Image
from secvit.segmentation import label_picture, recipes, semantic_fpn
from secvit.segmentation.config import Look
torch.set_num_threads(1)
model = semantic_fpn("test_convnext", 150, pyramid=8, channels=8).eval()
size = int(sys.argv[1]), int(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = label_picture(model, Image.new("RGB", size, (90, 120, 60)), Look(0, 512, overlap=0.0))
assert labels.shape == size[::-1]
print(before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def memory(*size):
    """MiB before and at most while an image gets its labels, of 150 classes."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, size)], capture_output=True, text=True, timeout=500,
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return map(int, done.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.slow
def test_windows_never_hold_the_logits_of_all_pixels():
    before, most = memory(1200, 900)
    assert most - before < 4 * 150 * 1200 * 900 >> 20  # they would be 617 MiB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_an_image_of_12_megapixels_and_150_classes_stays_under_4_gib():
    assert max(memory(4000, 3000)) < 4096


@pytest.mark.parametrize(
    "wrong", [{"window": 100}, {"overlap": 1.0}, {"scales": ()}, {"scales": (0.0,)}, {"short_side": -1}]
)
def test_impossible_looks_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Look(**wrong)


def test_weights_of_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.yaml of a segmentation run"):
        load_trained(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {name: secvit_nano}\nclasses: [a, b]\n")
    with pytest.raises(ValueError, match="no config.yaml of a segmentation run"):
        load_trained(tmp_path)
    with pytest.raises(ValueError, match="gone: no such run or weights"):
        load_trained(tmp_path / "gone")


def test_weights_of_another_number_of_classes_are_refused(tmp_path):
    config = {"model": {"head": "semantic_fpn", "backbone": "secvit_nano", "backbone_args": recipes.SMALL}}
    config |= {"classes": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "look": {"short_side": 64, "scales": [1.0]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    state = semantic_fpn("secvit_nano", 3, backbone_args=recipes.SMALL).state_dict()
    (tmp_path / "model.safetensors").write_bytes(weight_bytes(state))
    with pytest.raises(ValueError, match="does not fit Segmenter: 2 of another shape .head.classify.1.weight"):
        load_trained(tmp_path)


def test_a_scene_has_the_classes_that_its_maker_says():
    pixels, mask = scene(0)
    assert pixels.shape == (64, 80, 3) and np.unique(mask).tolist() == [0, 1, 2]
