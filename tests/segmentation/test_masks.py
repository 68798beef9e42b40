"""What is read of a mask file in any mode, turned as its image is, and what is no mask."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from secvit.images import read_image
from secvit.segmentation.data import load
from secvit.segmentation.masks import Colours, read_mask
from tests.segmentation.make import mask_folder, scene

VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4


def written(tmp_path, picture, name="0.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def indexed(values):
    picture = Image.fromarray(values)
    picture.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0, 0, 200, 0] + [0] * 756)
    return picture


READ = {
    "grey": (Image.fromarray(VALUES), "png"),
    "indexed": (indexed(VALUES), "png"),
    "indexed with 2 bits": (indexed(VALUES), "png2"),
    "16 bits": (Image.fromarray(VALUES.astype(np.uint16) * 300), "png"),
    "16 bits, tiff": (Image.fromarray(VALUES.astype(np.uint16) * 300), "tif"),
    "32 bits": (Image.fromarray(VALUES.astype(np.int32) * 300), "tif"),
    "whole floats": (Image.fromarray(VALUES.astype(np.float32) * 300), "tif"),
    "bmp": (Image.fromarray(VALUES), "bmp"),
    "gif": (indexed(VALUES), "gif"),
    "pgm": (Image.fromarray(VALUES), "pgm"),
}


@pytest.mark.parametrize(("picture", "kind"), READ.values(), ids=READ)
def test_the_numbers_of_a_mask_are_read_as_they_are(tmp_path, picture, kind):
    options = {"bits": 2} if kind == "png2" else {}
    path = written(tmp_path, picture, f"0.{kind[:3]}", **options)
    found = read_mask(path)
    scale = 300 if picture.mode not in ("L", "P") else 1
    assert np.array_equal(found, VALUES.astype(np.uint16) * scale)
    assert found.dtype == (np.uint8 if scale == 1 else np.uint16)


def test_a_mask_of_one_bit_holds_0_and_1(tmp_path):
    found = read_mask(written(tmp_path, Image.fromarray(VALUES > 1)))
    assert found.dtype == np.uint8 and np.array_equal(found, VALUES > 1)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_values_of_few_bits_are_not_stretched(tmp_path, bits):
    rows = [[0, 1, 2, 3], [3, 2, 1, 0]]
    packed = b"".join(
        b"\0" + int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(4 * bits // 8, "big") for row in rows
    )
    (tmp_path / "0.png").write_bytes(png(4, 2, bits, 0, packed))
    assert read_mask(tmp_path / "0.png").tolist() == rows


def png(width, height, bits, colour, rows):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_mask_is_turned_exactly_as_its_image(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    grey = VALUES * 60
    picture = written(tmp_path, Image.fromarray(grey).convert("RGB"), f"picture.{kind}", exif=exif)
    mask = written(tmp_path, Image.fromarray(grey), f"mask.{kind}", exif=exif)
    assert np.array_equal(read_mask(mask), np.asarray(read_image(picture))[..., 0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "PA", "CMYK", "LAB"])
def test_colours_are_refused_with_that_reason(tmp_path, mode):
    picture = Image.fromarray(np.stack([VALUES, 0 * VALUES, 9 * VALUES], -1)).convert("L" if mode == "PA" else "RGB")
    path = written(tmp_path, picture.convert(mode), "0.tif")
    with pytest.raises(
        ValueError, match=f"0.tif: not a mask that can be read .its pixels are {mode} colours.*labelmap"
    ):
        read_mask(path)


@pytest.mark.parametrize("names", [True, False])
def test_colours_with_equal_channels_are_refused_with_the_remedy(tmp_path, names):
    mask_folder(tmp_path, classes=("a", "b", "c") if names else ())
    for path in (tmp_path / "train_label").iterdir():
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"(?s)0.png: .*RGB colours.*channels are equal: save one.*3.png"):
        load(tmp_path, "train")


def test_the_masks_of_train_are_named_if_those_of_val_need_them(tmp_path):
    mask_folder(tmp_path, classes=())
    Image.open(tmp_path / "train_label" / "1.png").convert("RGB").save(tmp_path / "train_label" / "1.png")
    with pytest.raises(ValueError, match="train_label.1.png: .*RGB colours"):
        load(tmp_path, "val")


def test_colours_are_read_by_a_table(tmp_path):
    rgb = np.array([[[0, 0, 0], [200, 0, 0]], [[0, 200, 0], [224, 224, 192]]], np.uint8)
    table = {(0, 0, 0): 0, (200, 0, 0): 7, (0, 200, 0): 3, (224, 224, 192): 255}
    colours = Colours.of(table, "labelmap.txt", everywhere=True)
    for picture in (Image.fromarray(rgb), Image.fromarray(rgb).quantize(4), Image.fromarray(rgb).convert("RGBA")):
        assert read_mask(written(tmp_path, picture), colours).tolist() == [[0, 7], [3, 255]]
    with pytest.raises(ValueError, match="0.png: .*it holds the colour 9,9,9, which labelmap.txt does not list"):
        read_mask(written(tmp_path, Image.new("L", (2, 2), 9)), colours)


BLACK, WHITE, GREY, RED, BLUE = (0, 0, 0), (255, 255, 255), (127, 127, 127), (255, 0, 0), (0, 0, 255)
RAMP = tuple((i, i, i) for i in range(3))
# values and colours of two masks, and the index that differs
PALETTES = {
    "the same": ((0, 1, 2), (BLACK, RED, BLUE), (0, 1, 2), (BLACK, RED, BLUE), None),
    "swapped": ((0, 1), (BLACK, RED), (0, 1), (RED, BLACK), 0),
    "one differs": ((0, 1, 2), (BLACK, RED, BLUE), (0, 1), (BLACK, BLUE), 1),
    "black and white, swapped": ((0, 1), (BLACK, WHITE), (0, 1), (WHITE, BLACK), 0),
    "black and white, all white": ((0, 1), (BLACK, WHITE), (0, 0), (WHITE,), 0),
    "an index that only one uses": ((0, 1, 2), (BLACK, RED, BLUE), (0, 1), (BLACK, RED, WHITE), None),
    "stretched greys": ((0, 1), (BLACK, WHITE), (0, 1, 2), (BLACK, GREY, WHITE), None),
    "indices as greys": ((0, 1), RAMP, (0, 1, 2), (BLACK, RED, BLUE), None),
    "without a palette": ((0, 1), None, (0, 1, 2), (BLACK, RED, BLUE), None),
    "one colour": ((0, 1), (BLACK, BLACK), (0, 1, 2), (BLACK, RED, BLUE), None),
}


@pytest.mark.parametrize(("one", "its", "other", "others", "index"), PALETTES.values(), ids=PALETTES)
def test_palettes_that_disagree_on_an_index_are_refused(tmp_path, one, its, other, others, index):
    mask_folder(tmp_path, classes=())
    for name, values, palette in (("0", one, its), ("1", other, others), ("2", one, its), ("3", other, others)):
        picture = Image.fromarray(np.resize(np.array(values, np.uint8), (64, 80)))
        if palette:
            picture.putpalette([part for colour in palette for part in colour])
        picture.save(tmp_path / "train_label" / f"{name}.png")
    if index is None:
        assert len(load(tmp_path, "train")) == 4
        return
    a, b = (",".join(map(str, palette[index])) for palette in (its, others))
    message = (
        rf"index {index} is the colour {a} in .*0.png and {b} in .*1.png; export all .* one palette, or .*labelmap"
    )
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, split)


def test_palettes_of_val_are_compared_with_those_of_train(tmp_path):
    mask_folder(tmp_path, classes=())
    for split, palette in (("train", (BLACK, RED)), ("val", (RED, BLACK))):
        for i in range(4):
            picture = Image.fromarray(np.resize(np.array([0, 1], np.uint8), (64, 80)))
            picture.putpalette([part for colour in palette for part in colour])
            picture.save(tmp_path / f"{split}_label" / f"{i}.png")
    train = load(tmp_path, "train")
    with pytest.raises(ValueError, match=r"index 0 is the colour 0,0,0 in .*train_label.0.png and 255,0,0 in .*val_l"):
        load(tmp_path, "val", train)


def test_palettes_that_disagree_are_read_by_a_labelmap(tmp_path):
    mask_folder(tmp_path, classes=())
    (tmp_path / "labelmap.txt").write_text("a:0,0,0\nb:255,0,0\n")
    for split, i in ((split, i) for split in ("train", "val") for i in range(4)):
        picture = Image.fromarray(np.resize(np.array([i % 2, 1 - i % 2], np.uint8), (64, 80)))
        picture.putpalette([*RED, *BLACK] if i % 2 else [*BLACK, *RED])
        picture.save(tmp_path / f"{split}_label" / f"{i}.png")
    found = load(tmp_path, "train")
    assert np.array_equal(found.mask(0), found.mask(1)) and found.mask(0)[0, :2].tolist() == [0, 1]


def cut(path):
    path.write_bytes(path.read_bytes()[:48])


def empty(path):
    path.write_bytes(b"")


def giant(path):
    path.write_bytes(png(60_000, 60_000, 8, 0, b"\0" * 60))


def large(path):
    path.write_bytes(png(14_000, 14_000, 8, 0, b"\0" * 60))


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def jpeg(path):
    content = io.BytesIO()
    Image.fromarray(VALUES).save(content, "JPEG")
    path.write_bytes(content.getvalue())


def negative(path):
    Image.fromarray(VALUES.astype(np.int32) - 1).save(path.with_suffix(".tif"))
    path.with_suffix(".tif").rename(path)


def too_high(path):
    Image.fromarray(VALUES.astype(np.int32) * 40_000).save(path.with_suffix(".tif"))
    path.with_suffix(".tif").rename(path)


def fractions(path):
    Image.fromarray(VALUES.astype(np.float32) / 2).save(path.with_suffix(".tif"))
    path.with_suffix(".tif").rename(path)


def not_a_number(path):
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(path.with_suffix(".tif"))
    path.with_suffix(".tif").rename(path)


def missing(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


BROKEN = {
    cut: "not a mask that can be read",
    empty: "not a mask that can be read .no image",
    giant: "not a mask that can be read .*(pixels|bomb)",
    large: "not a mask that can be read .*(178 million pixels|bomb)",
    postscript: "not a mask that can be read .no image",
    jpeg: "not a mask that can be read .it is a JPEG, which changes the values of pixels",
    negative: "holds the value -1; expected numbers of 0 to 65535",
    too_high: "holds the value 120000; expected numbers of 0 to 65535",
    fractions: "not a mask that can be read .it holds numbers that are not whole",
    not_a_number: "not a mask that can be read .it holds numbers that are not whole",
    missing: "cannot be read .No such file",
    folder: "a folder, not a file",
    pipe: "a device, pipe or socket, not a file",
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda f: f.__name__)
def test_what_is_no_mask_is_named(tmp_path, breaks):
    path = written(tmp_path, Image.fromarray(VALUES))
    breaks(path)
    with pytest.raises(ValueError, match=f"0.png: {BROKEN[breaks]}"):
        read_mask(path)


def test_bytes_that_are_no_mask_end_in_an_error_that_names_the_file(tmp_path):
    random = np.random.default_rng(0)
    wholes = []
    for kind in ("png", "tif", "bmp", "gif", "pgm"):
        content = io.BytesIO()
        indexed(scene(0)[1]).convert("L" if kind in ("pgm", "tif") else "P").save(
            content, {"tif": "TIFF", "pgm": "PPM"}.get(kind, kind)
        )
        wholes.append(content.getvalue())
    path = tmp_path / "0.png"
    for i in range(300):
        content = bytearray(wholes[i % len(wholes)])
        for at in random.integers(0, min(len(content), 400), 3):
            content[at] = random.integers(256)
        path.write_bytes(content[: random.integers(1, len(content) + 1)] if i % 3 == 0 else content)
        try:
            read_mask(path)
        except ValueError as error:
            assert str(path) in str(error)
        except (ResourceWarning, UserWarning):
            pass  # Pillow's own, of odd metadata; errors only under this suite's filters


def test_grey_values_without_transparency_are_read_others_are_refused(tmp_path):
    opaque = Image.merge("LA", [Image.fromarray(VALUES), Image.new("L", (4, 3), 255)])
    assert np.array_equal(read_mask(written(tmp_path, opaque)), VALUES)
    opaque.putpixel((0, 0), (1, 254))
    with pytest.raises(ValueError, match="0.png: .*transparent in places; save them without transparency"):
        read_mask(written(tmp_path, opaque))


@pytest.mark.parametrize("kind", ["tif", "gif", "png"])
def test_a_mask_of_several_pages_or_frames_is_refused(tmp_path, kind):
    pages = [indexed(VALUES), indexed(VALUES[:, ::-1].copy())]
    path = written(tmp_path, pages[0], f"0.{kind}", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=rf"0.{kind}: .*it has 2 pages or frames, expected one"):
        read_mask(path)


def test_a_mask_with_a_smaller_preview_is_read(tmp_path):
    path = written(tmp_path, Image.fromarray(VALUES), "0.tif", save_all=True, append_images=[Image.new("L", (2, 1))])
    assert np.array_equal(read_mask(path), VALUES)


def test_the_remedy_of_a_wrong_size_does_not_speak_of_values(tmp_path):
    mask_folder(tmp_path)
    Image.new("L", (40, 32)).save(tmp_path / "train_label" / "0.png")
    with pytest.raises(ValueError, match="0.png is 40x32 px, 0.png is 80x64 px upright\nRepair or remove them$"):
        load(tmp_path, "train")
