"""Image files of all kinds: sizes, pixels and refusals."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from secvit.images import read_image
from tests.fuzz.case import Case
from tests.fuzz.mutate import damaged, replaced

EXACT = ("PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "TGA")
ENDINGS = {"JPEG": ".jpg", "JPEG2000": ".jp2", "GIF": ".gif"}
ORIENTATION = 274
# what an image of each orientation is, once stored, turned to be upright
UPRIGHT = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a, 1),
}  # fmt: skip


class Expected(NamedTuple):
    """What a file must give: width and height in px, pixels (H, W, 3) if they are known, how far they may be off."""

    path: Path
    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    off: float = 0.0
    marker: Path | None = None  # a file that only a program which must not start would write


def smooth(rng: random.Random, height: int, width: int, channels: int) -> np.ndarray:
    """An image that every codec keeps nearly as it is, (H, W, channels) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    slopes = [(rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(60, 190)) for _ in range(channels)]
    return np.stack([(b + a * x + c * y).clip(0, 255).astype(np.uint8) for a, c, b in slopes], axis=2)


def encoded(rng: random.Random) -> tuple[str, str, bytes, np.ndarray | None, tuple[int, int], float]:
    """An image file: what it is, its ending, bytes, upright RGB pixels if known, upright size, mean error."""
    height, width = rng.randint(1, 40), rng.randint(1, 40)
    kind = rng.choice(["RGB", "RGB", "RGB", "L", "RGBA", "LA", "P", "1", "I;16", "F", "CMYK"])
    formats = {
        "RGB": [*EXACT[:5], "JPEG", "JPEG2000"], "L": ["PNG", "TIFF", "JPEG", "PPM", "BMP"], "RGBA": ["PNG", "WEBP", "TGA"],
        "LA": ["PNG"], "P": ["PNG", "GIF", "BMP"], "1": ["PNG", "TIFF"], "I;16": ["PNG", "TIFF"], "F": ["TIFF"],
        "CMYK": ["JPEG", "TIFF"],
    }  # fmt: skip
    form = rng.choice(formats[kind])
    pixels: np.ndarray | None
    if kind in ("I;16", "F"):
        stored = smooth(rng, height, width, 1)[:, :, 0].astype(np.uint16 if kind == "I;16" else np.float32)
        stored = stored * np.uint16(200) if kind == "I;16" else stored / np.float32(255)
        image, pixels = Image.fromarray(stored), None
    elif kind == "P":
        colours = np.array([[rng.randrange(256) for _ in range(3)] for _ in range(8)], np.uint8)
        numbers = np.array([[rng.randrange(8) for _ in range(width)] for _ in range(height)], np.uint8)
        image = Image.fromarray(numbers)
        image.putpalette(colours.tobytes())
        pixels = colours[numbers]
    elif kind == "1":
        bits = np.array([[rng.random() < 0.5 for _ in range(width)] for _ in range(height)])
        image, pixels = Image.fromarray(bits), np.repeat(bits[:, :, None] * np.uint8(255), 3, 2)
    else:
        stored = smooth(rng, height, width, len(kind) if kind != "L" else 1)
        image = Image.fromarray(stored[:, :, 0] if kind == "L" else stored, mode=kind)
        alpha = stored[:, :, -1:].astype(float) / 255 if kind in ("RGBA", "LA") else 1.0
        colour = stored[:, :, : {"L": 1, "LA": 1}.get(kind, 3)]
        over = np.broadcast_to(np.round(colour * alpha + 255 * (1 - alpha)), (height, width, 3))
        pixels = None if kind == "CMYK" else over
    options, orientation = {}, 1
    if form in ("PNG", "JPEG", "TIFF", "WEBP") and rng.random() < 0.4:
        orientation = rng.randint(1, 8)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    if form == "WEBP":
        options |= {"lossless": True, "exact": True}
    elif form == "JPEG":
        options |= {"quality": 95, "progressive": rng.random() < 0.3}
    elif form == "TIFF" and kind != "F":
        options |= {"compression": rng.choice([None, "tiff_lzw", "tiff_deflate", "packbits"])}
    file = io.BytesIO()
    image.save(file, form, **options)
    turned = UPRIGHT[orientation](np.zeros((height, width)) if pixels is None else pixels)
    size = (turned.shape[1], turned.shape[0])
    off = 12.0 if form in ("JPEG", "JPEG2000") else 1.0 if kind in ("RGBA", "LA") else 0.0
    name = f"{form} {kind}{' turned' * (orientation > 1)}"
    return name, ENDINGS.get(form, f".{form.lower()}"), file.getvalue(), None if pixels is None else turned, size, off


# -- foreign files and giant headers -----------------------------------------------------------


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    made = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return made


def giant(rng: random.Random) -> tuple[str, str, bytes]:
    """A small file that claims billions of pixels: name, ending, bytes."""
    side = rng.choice([30_000, 60_000, 65_500])
    bits, colour = rng.choice([(8, 2), (16, 6), (1, 0), (8, 3)])
    palette = [(b"PLTE", bytes(768))] if colour == 3 else []
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, rng.choice([0, 1]))
    png = _png((b"IHDR", header), *palette, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    frame = jpeg.getvalue().index(b"\xff\xc0") + 5
    large = jpeg.getvalue()[:frame] + struct.pack(">HH", side, side) + jpeg.getvalue()[frame + 4 :]
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, side), (279, 4, side)]  # fmt: skip
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    return rng.choice([
        ("PNG", ".png", png),
        ("JPEG", ".jpg", large),
        ("TIFF", ".tif", tiff + bytes(4)),
        ("BMP", ".bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("GIF", ".gif", b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b"," +
         struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x08\x01\x00\x00;"),
        ("PPM", ".ppm", f"P6 {side} {side} 255\n".encode() + bytes(99)),
        ("TGA", ".tga", bytes([0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + struct.pack("<HHBB", side, side, 24, 0)),
        ("QOI", ".qoi", b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + bytes(20)),
        ("PSD", ".psd", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, side, side, 8, 3) + bytes(14)),
    ])  # fmt: skip


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 20 20 rectfill\nshowpage\n%%EOF\n"
FOREIGN = {
    "EPS": EPS, "EPS with a binary head": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS,
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "HTML": b"<!DOCTYPE html><p>404",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(200), "GRIB": b"GRIB\0\0\0\1" + bytes(200), "BUFR": b"BUFR" + bytes(200),
    "MPEG": b"\0\0\1\xb3\x14\0\xf0\x13" + bytes(200), "WMF": b"\xd7\xcd\xc6\x9a" + bytes(6) + b"\1\0\1\0" + bytes(200),
    "EMF": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(100), "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "text": b"a text, not an image\n" * 9, "zeros": bytes(999), "a tar": b"0.png".ljust(512, b"\0"),
    "a git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}  # fmt: skip


def foreign(rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(list(FOREIGN))
    return name, FOREIGN[name]


def _bait(folder: Path) -> Path:
    """Put a `gs` before all others in the path that only leaves a mark; the mark."""
    marker, programs = folder / "started", folder / "bin"
    programs.mkdir()
    program = programs / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(0o755)
    before = os.environ["PATH"].split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([str(programs), *(p for p in before if not p.endswith("/input/bin"))])
    return marker


# -- the area ----------------------------------------------------------------------------------


def make(rng: random.Random, folder: Path) -> Case:
    name, ending, data, pixels, size, off = encoded(rng)
    path, marker = folder / f"{rng.choice(['photo', 'Fuß ball', '写真', 'a+b%20c', 'x.y'])}{ending}", None
    known, meant = Expected(path, size, pixels, off), "either"
    what = rng.random()
    if what < 0.24:
        change, meant = "as it is", "harmless"
        if rng.random() < 0.5:
            change = rng.choice(["other ending", "bytes after the end", "upper-case ending", "a link"])
        if change == "other ending":
            path = path.with_suffix(rng.choice([".jpg", ".png", ".bmp", ".JPG"]))
        elif change == "upper-case ending":
            path = path.with_suffix(ending.upper())
        elif change == "bytes after the end" and name.split()[0] in ("PNG", "JPEG", "GIF"):
            data += rng.randbytes(rng.randint(1, 99))
        if change == "a link":
            (folder / "behind").write_bytes(data)
            path.symlink_to("behind")
        else:
            path.write_bytes(data)
        known = Expected(path, size, pixels, off)
        change = f"{change}: {name}"
    elif what < 0.36:
        what, data = foreign(rng)
        path, change, meant, marker = (
            folder / f"photo{rng.choice(['.jpg', '.png', '.eps'])}",
            f"is {what}",
            "wrong",
            None,
        )
        path.write_bytes(data)
        marker = _bait(folder) if what.startswith("EPS") else None
        known = Expected(path, marker=marker)
    elif what < 0.45:
        what, ending, data = giant(rng)
        path = folder / f"photo{ending}"
        path.write_bytes(data)
        change, meant, known = f"giant header: {what}", "wrong", Expected(path)
    elif what < 0.50:
        path.write_bytes(data)
        change, meant, known = f"in its place: {replaced(rng, path)}", "wrong", Expected(path)
    else:
        change, data = damaged(rng, data)
        change, known = f"{change}: {name}", Expected(path)
        path.write_bytes(data)
    return Case(change, meant, (str(known.path),), known)


def run(case: Case) -> str:
    known: Expected = case.data
    try:
        image = read_image(known.path)
    finally:
        if known.marker and known.marker.exists():
            raise RuntimeError("an image started a program")
    if image.mode != "RGB" or min(image.size) < 1:
        return f"mode {image.mode}, size {image.size}"
    if known.size and image.size != known.size:
        return f"size {image.size}, not {known.size}"
    if known.pixels is not None:
        error = np.abs(np.asarray(image, float) - known.pixels)
        if (error.mean() if known.off > 1 else error.max()) > known.off:
            return f"pixels are off by {error.mean():.1f} on average, {error.max():.0f} at most"
    return ""
