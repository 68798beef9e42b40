"""Mask files: pixels that are class numbers, or colours that stand for them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from secvit.fields import read_bytes
from secvit.images.files import EXTENSIONS
from secvit.images.read import open_image

# endings of formats that change the values of pixels
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c",
         ".mpo")  # fmt: skip
Indexed = tuple[Path, Sequence[int], bytes]  # a mask, values in it, its palette: red, green, blue of index 0, 1, ...
MASKS = tuple(ending for ending in EXTENSIONS if ending not in LOSSY)
LARGEST = 65535  # value of a mask
VOID = (224, 224, 192)  # PASCAL VOC's colour of pixels without a class
IN_COLOUR = ("RGB", "RGBA", "RGBX")
GREYS = bytes(value for value in range(256) for _ in "rgb")  # the palette whose indices are grey values
# Pillow stretches grey values of 2 and 4 bits to 0..255
STRETCHED = {"L;2": 85, "L;4": 17}
# what Pillow's decoders raise on bytes that are not the image they claim to be
BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError,
          AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
          Image.DecompressionBombWarning)  # fmt: skip


@dataclass(frozen=True)
class Colours:
    """Colours that stand for numbers.

    codes: red << 16 | green << 8 | blue, rising.  values: the number of each.  source: what lists them, for errors.
    everywhere: indexed and grey masks are read by their colours as well, not by their indices.
    """

    codes: np.ndarray
    values: np.ndarray
    source: str
    everywhere: bool

    @classmethod
    def of(cls, numbers: Mapping[tuple[int, ...], int], source: str, everywhere: bool) -> Colours:
        """From the number of each (red, green, blue)."""
        pairs = sorted((r << 16 | g << 8 | b, value) for (r, g, b), value in numbers.items())
        codes, values = zip(*pairs, strict=True)
        return cls(np.array(codes, np.int32), np.array(values, np.uint8), source, everywhere)

    def read(self, rgb: np.ndarray) -> np.ndarray:
        """The numbers of pixels (H, W, 3), (H, W)."""
        wide = rgb.astype(np.int32)
        codes = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        at = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        if (wrong := self.codes[at] != codes).any():
            red, green, blue = rgb[wrong][0].tolist()
            raise ValueError(f"it holds the colour {red},{green},{blue}, which {self.source} does not list")
        return self.values[at]


def read_mask(path: Path, colours: Colours | None = None) -> np.ndarray:
    """The numbers in a mask, as `read_indexed` gives them."""
    return read_indexed(path, colours)[0]


def read_indexed(path: Path, colours: Colours | None = None) -> tuple[np.ndarray, bytes]:
    """The numbers in a mask, upright (EXIF), (H, W) uint8, or uint16 if one is above 255, and its palette.

    The palette is red, green, blue of index 0, 1, ...; b"" where no index was read or where it shows nothing.

    Those of a grey mask are its values, of an indexed one its indices, of one in colours what `colours` says.
    A ValueError names a file that is no such mask.
    """
    content = read_bytes(path)
    try:
        with open_image(io.BytesIO(content)) as opened:
            if opened.width * opened.height > (limit := Image.MAX_IMAGE_PIXELS or 2**31):
                raise ValueError(f"more than {limit // 10**6} million pixels")
            if opened.format in ("JPEG", "MPO"):
                raise ValueError("it is a JPEG, which changes the values of pixels; export the masks anew as PNG")
            _check_frames(opened)
            tile = getattr(opened, "tile", None)  # of files alone
            raw = tile[0][3] if tile else None
            stretch = STRETCHED.get(str(raw[0] if isinstance(raw, tuple) and raw else raw), 1)
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            values = _numbers(opened, colours)
            palette = _palette(opened) if opened.mode == "P" and not (colours and colours.everywhere) else b""
            if stretch > 1:
                values = values // stretch
    except BROKEN as error:
        reason = "no image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
        raise ValueError(f"{path}: not a mask that can be read ({reason})") from None
    if values.dtype == np.uint8:
        return values, palette
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if low < 0 or high > LARGEST:
        raise ValueError(f"{path}: holds the value {low if low < 0 else high}; expected numbers of 0 to {LARGEST}")
    return values.astype(np.uint8 if high < 256 else np.uint16), palette


def _check_frames(opened: Image.Image) -> None:
    """A ValueError for several pages or frames of one size: which of them is the mask, nobody says."""
    count, size = getattr(opened, "n_frames", 1), opened.size
    if count > 1:
        opened.seek(1)  # a smaller one is a preview
        if opened.size == size:
            raise ValueError(f"it has {count} pages or frames, expected one; save the one that is the mask")
        opened.seek(0)


def _numbers(opened: Image.Image, colours: Colours | None) -> np.ndarray:
    """Whole numbers of any type, (H, W)."""
    if opened.mode == "LA":
        if opened.getchannel("A").getextrema() != (255, 255):
            raise ValueError("its grey values are transparent in places; save them without transparency as a grey PNG")
        opened = opened.convert("L")
    mode = opened.mode
    if colours and (mode in IN_COLOUR or (colours.everywhere and mode in ("P", "L", "1"))):
        return colours.read(np.asarray(opened.convert("RGB")))
    values = np.asarray(opened)
    if mode == "1":
        return values.astype(np.uint8)
    if mode == "F":
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise ValueError("it holds numbers that are not whole; expected a class number for each pixel")
        return values.clip(-1, LARGEST + 1).astype(np.int32)
    if mode in ("P", "L") or mode.startswith("I"):
        return values
    flat = values.reshape(-1, values.shape[-1])[:, :3]
    remedy = (
        "its channels are equal: save one of them as a grey PNG"
        if mode in IN_COLOUR and (flat == flat[:, :1]).all()
        else "save numbers, or list the colours in labelmap.txt (docs/segmentation.md)"
    )
    raise ValueError(f"its pixels are {mode} colours; expected a class number for each pixel; {remedy}")


def values_of(mask: np.ndarray) -> tuple[int, ...]:
    """The different numbers in a mask, rising."""
    return tuple(np.bincount(mask.ravel()).nonzero()[0].tolist())


# -- palettes ------------------------------------------------------------------------------------


def _palette(opened: Image.Image) -> bytes:
    """The palette of an indexed image; b"" for one colour throughout, and for indices as grey values."""
    palette = bytes(opened.getpalette() or ())
    count = len(palette) // 3
    plain = count > 1 and palette in (palette[:3] * count, GREYS[: 3 * count])
    return b"" if plain else palette


def clashing(masks: Sequence[Indexed]) -> str:
    """Which index has other colours in one mask than in another; "" if none has.

    Ramps of greys may differ: programs stretch them to the values in a file.
    """
    first: dict[int, tuple[Path, bytes, bool]] = {}
    for file, values, palette in masks:
        shown = [index for index in values if 3 * index < len(palette)]
        ramp = bool(shown) and _is_ramp(palette[: 3 * shown[-1] + 3])
        for index in shown:
            colour = palette[3 * index : 3 * index + 3]
            there, before, other_ramp = first.setdefault(index, (file, colour, ramp))
            if colour != before and not (ramp and other_ramp):
                one, other = (",".join(map(str, rgb)) for rgb in (before, colour))
                return (
                    f"the palettes of indexed masks differ: index {index} is the colour {one} in {there} and {other} "
                    f"in {file}; export all masks with one palette, or name their colours in labelmap.txt "
                    "(docs/segmentation.md)"
                )
    return ""


def _is_ramp(palette: bytes) -> bool:
    """Whether the colours are greys from black on, each lighter than the one before."""
    reds = palette[::3]
    return reds == palette[1::3] == palette[2::3] and reds[0] == 0 and all(a < b for a, b in pairwise(reds))


# -- colours to show classes with ----------------------------------------------------------------


def palette_of(mask: Path, values: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    """The colours that an indexed mask gives to some values; None where it gives them none or all the same."""
    with open_image(mask) as opened:
        table = opened.getpalette() if opened.mode == "P" else None
    if not table or len(table) < 3 * (max(values) + 1):
        return None
    palette = tuple(tuple(table[3 * v : 3 * v + 3]) for v in values)
    return palette if len(set(palette)) > 1 else None


def voc_colour(number: int) -> tuple[int, ...]:
    """PASCAL VOC's colour of a number in 0..255: far apart for near numbers; that of 255 is VOID."""
    bits = [number >> i & 1 for i in range(9)]
    return tuple(sum(bits[3 * j + c] << (7 - j) for j in range(3)) for c in range(3))


def voc_palette(count: int) -> tuple[tuple[int, ...], ...]:
    """PASCAL VOC's colours of classes 1, 2, ..."""
    return tuple(voc_colour(i) for i in range(1, count + 1))
