import io
import os
import re
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from secvit.images import read_image, to_rgb, upright_size

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


# -- one scale for all images of a mode ------------------------------------------------------

SCENES = {
    "png": np.linspace(0, 255, 48 * 64).astype(np.uint16),
    "tiff 16": np.linspace(200, 40_000, 48 * 64).astype(np.uint16),
    "tiff 32": np.linspace(0, 4095, 48 * 64).astype(np.int32),
    "tiff float": np.linspace(0.1, 0.6, 48 * 64).astype(np.float32),
}


@pytest.mark.parametrize("brighter", [256, 65535, 1.0])
@pytest.mark.parametrize("kind", SCENES)
def test_a_scene_keeps_its_brightness_whatever_its_brightest_pixel_is(kind, brighter):
    scene = SCENES[kind].reshape(48, 64)
    other = scene.copy()
    other[0, 0] = brighter
    a, b = (np.asarray(read_image(encode(Image.fromarray(x), kind.split()[0]))).mean() for x in (scene, other))
    assert abs(a - b) < 0.2
    white = 1.0 if scene.dtype.kind == "f" else 65535
    assert abs(a - 255 * scene.mean() / white) < 1


def test_the_scale_does_not_depend_on_how_a_format_stores_the_bytes():
    grey = np.array([[0, 0x7FFF], [0x8000, 0xFFFF]], np.uint16)
    for mode in ("I;16", "I;16B", "I;16L"):
        content = grey.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        found = np.asarray(to_rgb(Image.frombytes(mode, (2, 2), content)))[..., 0]
        assert found.tolist() == [[0, 127], [128, 255]]
    assert np.asarray(read_image(b"P5 2 1 4095\n\x0f\xff\x00\x00"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(0, 255, 3072, dtype=np.float32), "float pixels with values 0 to 255, expected 0 to 1 "),
        (np.linspace(-1, 1, 3072, dtype=np.float32), "values -1 to 1, expected 0 to 1 "),
        (np.full(3072, np.nan, np.float32), "values none that is finite, expected 0 to 1 "),
        (np.linspace(0, 100_000, 3072).astype(np.int32), "32-bit pixels with values 0 to 100000, expected 0 to 65535"),
        (np.linspace(-500, 500, 3072).astype(np.int32), "values -500 to 500, expected 0 to 65535"),
    ],
)
def test_values_that_the_scale_does_not_hold_are_refused(values, message):
    with pytest.raises(ValueError, match=f"depth.tif: .*{message}.*save them with 8 or 16 bits"):
        read_image(encode(Image.fromarray(values.reshape(48, 64)), "tiff"), "depth.tif")


def test_a_few_pixels_beyond_the_scale_are_cut_off():
    values = np.full((48, 64), 0.5, np.float32)
    values[0, :4] = [np.nan, np.inf, -np.inf, 7]
    found = np.asarray(read_image(encode(Image.fromarray(values), "tiff")))[..., 0]
    assert found[0, :4].tolist() == [0, 255, 0, 255] and (found[1:] == 128).all()


# -- opened images ---------------------------------------------------------------------------


def opened_ones():
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 10, 30] + [0] * 765)
    return {
        "16 bits": encode(Image.fromarray((np.arange(96 * 96).reshape(96, 96) * 7).astype(np.uint16))),
        "float": encode(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "tiff"),
        "transparent": encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128))),
        "palette": encode(palette, transparency=0),
        "turned": encode(Image.effect_noise((40, 20), 60).convert("RGB"), "jpeg", exif=exif),
        "turned tiff": encode(Image.effect_noise((40, 20), 60), "tiff", exif=exif),
        "cmyk": encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg"),
    }


@pytest.mark.parametrize("kind", opened_ones())
def test_an_opened_image_has_the_pixels_of_its_file(kind, tmp_path):
    content = opened_ones()[kind]
    (tmp_path / "x").write_bytes(content)
    by_path = np.asarray(read_image(tmp_path / "x"))
    with Image.open(io.BytesIO(content)) as opened:
        np.testing.assert_array_equal(np.asarray(read_image(opened)), by_path)
        np.testing.assert_array_equal(np.asarray(read_image(read_image(opened))), by_path)
    np.testing.assert_array_equal(np.asarray(read_image(content)), by_path)


def test_an_opened_image_whose_file_is_cut_off_is_named(tmp_path):
    content = encode(Image.effect_noise((64, 64), 60), "jpeg")
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "half.jpg") as opened, pytest.raises(ValueError, match="half.jpg: broken or truncated"):
        read_image(opened)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "La", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr",
                                  "LAB", "HSV", "I", "F", "I;16", "I;16B"])  # fmt: skip
def test_every_mode_becomes_rgb(mode):
    assert read_image(Image.new(mode, (5, 4))).mode == "RGB"


# -- formats that are not opened ---------------------------------------------------------------

FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n",
    "PostScript (EPS)": b"\xc5\xd0\xd3\xc6" + bytes(30) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "PDF": b"%PDF-1.7\n" + bytes(60),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(60),
    "ZIP": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_by_name_and_start_no_program(kind, tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "photo.jpg").write_bytes(FOREIGN[kind])
    for read in (read_image, upright_size):
        with pytest.raises(ValueError, match=rf"photo.jpg: a file of the format {re.escape(kind)}.*convert it to PNG"):
            read(tmp_path / "photo.jpg")
    assert not (tmp_path / "ran").exists()


def test_an_opened_postscript_image_is_refused_before_it_is_drawn():
    content = FOREIGN["PostScript"]
    with Image.open(io.BytesIO(content)) as opened, pytest.raises(ValueError, match="not an image|PostScript"):
        read_image(opened)


# -- what the header says ----------------------------------------------------------------------


@pytest.mark.parametrize("turn", [None, 1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "avif", "mpo", "gif", "bmp", "ico", "jpeg2000"])
def test_the_size_of_the_header_is_that_of_the_image_read(kind, turn, tmp_path):
    exif = Image.Exif()
    if turn:
        exif[0x0112] = turn
    turns = kind in ("jpeg", "png", "webp", "tiff", "avif", "mpo")
    Image.new("RGB", (48, 32), RED).save(tmp_path / "x", kind, **({"exif": exif} if turns else {}))
    size = read_image(tmp_path / "x").size
    assert upright_size(tmp_path / "x") == size
    if turns:
        assert size == ((32, 48) if turn and turn >= 5 else (48, 32))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
    "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 90000, 90000, 1, 24, *[0] * 6),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;",
    "ppm": b"P6 70000 70000 255\n" + bytes(100),
    "qoi": b"qoif" + struct.pack(">IIBB", 60000, 60000, 3, 0) + bytes(64),
    "sgi": struct.pack(">HBBHHHH", 474, 1, 1, 3, 60000, 60000, 3) + bytes(600),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("read", [read_image, upright_size])
def test_a_giant_header_is_refused_at_once(read, kind, tmp_path):
    (tmp_path / "bomb").write_bytes(BOMBS[kind])
    start = time.perf_counter()
    with pytest.raises(ValueError, match="bomb: more than 89 million pixels; make it smaller"):
        read(tmp_path / "bomb")
    assert time.perf_counter() - start < 2  # seconds, on a machine that is busy


@pytest.mark.parametrize("read", [read_image, upright_size])
def test_what_is_no_file_is_refused_without_being_read(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    for name in ("pipe", "zero.png"):
        with pytest.raises(ValueError, match=f"{name}: a device, pipe or socket, not a file"):
            read(tmp_path / name)
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match=r"sparse.png: (8,589,934,592 bytes, more than|not an image)"):
        read(tmp_path / "sparse.png")
    with pytest.raises(ValueError, match="no path of a file"):
        read("a\0b.png")


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


def test_a_pointer_of_git_lfs_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for read in (read_image, upright_size):
        with pytest.raises(ValueError, match="a.jpg: a git-LFS pointer, not the image itself; run `git lfs pull`"):
            read(path)
