"""Reading an image file, whatever it is, as an upright 8-bit RGB picture."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# What Pillow's decoders raise on bytes that are not the image they claim to be.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
)


def read_image(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """The image in a file or in bytes, upright (EXIF), as RGB; transparency is laid over white.

    `name` stands for the bytes in errors.  A file that is missing, broken, truncated or no image
    is a ValueError that names it.
    """
    where = name or ("the given bytes" if isinstance(source, bytes) else os.fspath(source))
    if not isinstance(source, bytes):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise ValueError(f"{where}: cannot be read ({error.strerror}); check the path") from None
    if not source:
        raise ValueError(f"{where}: the file is empty; restore or delete it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # palette transparency, odd EXIF: harmless here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source)) as opened:
                opened.load()
                return to_rgb(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{where}: more than {limit} million pixels; make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{where}: not an image that Pillow can read; convert or delete it") from None
    except _BROKEN as error:
        raise ValueError(f"{where}: broken or truncated ({error}); restore or delete it") from None


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in px of what `read_image` gives, from the header alone; a ValueError if there is none."""
    try:
        with Image.open(path) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (opened.height, opened.width) if turned else (opened.width, opened.height)
    except _BROKEN:
        raise ValueError(f"{os.fspath(path)}: not an image that Pillow can read; convert or delete it") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: 16-bit and float grey scaled to 8 bits, alpha laid over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _eight_bit(grey: np.ndarray) -> np.ndarray:
    """16-bit values by their high byte; other ranges stretched between their own extremes."""
    values = np.nan_to_num(grey.astype(np.float64))
    low, high = values.min(), values.max()
    if grey.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 255.0 if high <= 255 else 65535.0
    return np.round((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
