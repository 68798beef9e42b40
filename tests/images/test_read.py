import io
import warnings

import numpy as np
import pytest
from PIL import Image

from secvit.images import read_image

RED = (200, 10, 30)


def encode(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def near(image, colour, tolerance=6):
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image)[0, 0], colour, atol=tolerance)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (64, 48)])
def test_rgb_of_any_size_is_read_as_it_is(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.size == size
    near(image, RED, 0)


def test_grey_bilevel_and_palette_become_rgb():
    near(read_image(encode(Image.new("L", (4, 4), 77))), (77, 77, 77), 0)
    near(read_image(encode(Image.new("1", (4, 4), 1))), (255, 255, 255), 0)
    near(read_image(encode(Image.new("RGB", (4, 4), RED).quantize(4), "gif")), RED, 1)


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = np.array([[0, 0x7FFF], [0x8000, 0xFFFF]], np.uint16)
    found = np.asarray(read_image(encode(Image.fromarray(grey))))[..., 0]
    np.testing.assert_allclose(found, [[0, 127], [128, 255]], atol=1)


def test_float_images_are_stretched_to_eight_bits():
    values = np.array([[-1.0, 0.0, 1.0]], np.float32)
    found = np.asarray(read_image(encode(Image.fromarray(values), "tiff")))[0, :, 0]
    np.testing.assert_allclose(found, [0, 128, 255], atol=1)


def test_cmyk_is_converted():
    near(read_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg")), (255, 0, 0), 12)


def test_transparency_lies_over_white():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    near(read_image(encode(half)), (127, 127, 127), 1)
    near(read_image(encode(Image.new("LA", (4, 4), (0, 0)))), (255, 255, 255), 0)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 10, 30] + [0] * 765)
    near(read_image(encode(palette, transparency=0)), (255, 255, 255), 0)
    near(read_image(encode(palette, transparency=bytes([0] * 3))), (255, 255, 255), 0)


def test_exif_rotation_is_undone():
    image = Image.new("RGB", (40, 20), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_image(encode(image, "jpeg", exif=exif))
    assert turned.size == (20, 40)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "bmp", "tiff"])
def test_truncated_files_are_refused_by_name(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"half.{kind}"
    content = encode(Image.fromarray(noise), kind)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=path.name):
        read_image(path)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_give_an_image_or_a_value_error(seed):
    rng = np.random.default_rng(seed)
    kind = ["jpeg", "png", "gif", "webp", "bmp", "tiff"][seed % 6]
    image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
    content = bytearray(encode(image, kind))
    for place in rng.integers(0, len(content), 12):
        content[place] = int(rng.integers(256))
    try:
        assert read_image(bytes(content), "damaged").mode == "RGB"
    except ValueError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"no image at all", "not an image"), (None, "check the path")],
)
def test_what_is_no_image_is_refused_with_the_remedy(tmp_path, content, message):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x.jpg.*{message}"):
        read_image(path)
    with pytest.raises(ValueError, match="a folder, not a file"):
        read_image(tmp_path)


def test_enormous_images_are_refused(monkeypatch):
    content = encode(Image.new("L", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="pixels; make it smaller"):
            read_image(content)
