"""Reading image files of any kind as upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps

from secvit.fields import check_file, read_bytes
from secvit.images.files import EXTENSIONS, FORMATS

__all__ = ["EXTENSIONS", "open_image", "read_image", "to_rgb", "upright_size"]

LARGEST = 2**30  # bytes of a file; what Pillow's limit of pixels allows takes less in any mode
OUTLIERS = 0.01  # part of the pixels of a float or 32-bit image that may lie outside of its scale
SCALES = {"I": 65535.0, "F": 1.0}  # the value of white; modes I;16... have all of theirs
LFS = b"version https://git-lfs"  # how the pointer begins that git leaves for a file that was not fetched
# kinds of files that people take for images and that have no decoder here, by their first bytes
_OTHERS = {b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "SVG or other XML", b"ftypheic": "HEIC", b"ftypmif1": "HEIF",
           b"ftyp": "video (MP4)", b"\x1aE\xdf\xa3": "video (Matroska)", b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip",
           b"<!DOC": "HTML", b"<html": "HTML"}  # fmt: skip


def read_image(source: str | os.PathLike[str] | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """The image in a file, in bytes or opened by Pillow, upright (EXIF), as RGB; transparency lies over white.

    An opened image gives the same pixels as its file.  `name` stands for the source in errors.  A file that is
    missing, broken, truncated, no image, or of a format that is not in FORMATS is a ValueError that names it.
    """
    if isinstance(source, Image.Image):
        with _refusing(name or getattr(source, "filename", "") or "the given image"):
            if source.format == "EPS":  # loading it would start Ghostscript
                raise Image.UnidentifiedImageError
            source.load()
            return to_rgb(ImageOps.exif_transpose(source))
    where = name or ("the given bytes" if isinstance(source, bytes) else os.fspath(source))
    if not isinstance(source, bytes):
        source = read_bytes(source, LARGEST)
    if not source:
        raise ValueError(f"{where}: the file is empty; restore or delete it")
    with _refusing(where, source[:4096]), open_image(io.BytesIO(source)) as opened:
        opened.load()
        return to_rgb(ImageOps.exif_transpose(opened))


def open_image(file: io.BytesIO | str | os.PathLike[str]) -> Image.Image:
    """Pillow's `open` for the formats that its own decoders read: a file never starts another program."""
    return Image.open(file, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow opens, the usual ones first, as it asks one after the other.

    MPO is not among them: it is opened as JPEG.
    """
    Image.init()
    return tuple(kind for kind in dict.fromkeys(("JPEG", "PNG", "WEBP", *FORMATS)) if kind in Image.OPEN)


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in px of what `read_image` gives, from the header where it says; else a ValueError."""
    check_file(path)
    with _refusing(os.fspath(path)), open_image(path) as opened:
        if opened.format in ("ICO", "ICNS", "CUR"):  # the image inside decides
            opened.load()
        if opened.format == "TIFF":  # whether `size` is upright already depends on Pillow's version
            tags = opened.tag_v2  # type: ignore[attr-defined]
            width, height = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
            turn = tags.get(ExifTags.Base.Orientation, 1)
        else:
            (width, height), turn = opened.size, opened.getexif().get(ExifTags.Base.Orientation, 1)
        return (height, width) if turn in (5, 6, 7, 8) else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB; alpha is laid over white.

    16-bit and float grey become 8 bits by one scale for all images of a mode, so that a scene keeps its
    brightness: 0..65535 for I;16 and I, 0..1 for F.  I and F may hold other values as well: of up to 1 % of the
    pixels they are cut off, NaN becomes 0, and with more of them the image is refused by a ValueError.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit(image)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


class _OutOfScale(ValueError):
    """Pixels that the scale of their mode does not hold."""


def _eight_bit(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode not in SCALES:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    white = SCALES[image.mode]
    outside = ~((values >= 0) & (values <= white))  # of NaN, too
    if outside.mean() > OUTLIERS:
        finite = values[np.isfinite(values)]
        extent = f"{finite.min():g} to {finite.max():g}" if finite.size else "none that is finite"
        kind = "float" if image.mode == "F" else "32-bit"
        raise _OutOfScale(
            f"{kind} pixels with values {extent}, expected 0 to {white:g} (black to white); scale all images of the "
            "data set alike and save them with 8 or 16 bits"
        )
    values = np.clip(np.nan_to_num(values.astype(np.float64), nan=0.0), 0, white)
    return np.round(values * (255 / white)).astype(np.uint8)


@contextlib.contextmanager
def _refusing(where: str, content: bytes = b"") -> Iterator[None]:
    """Whatever Pillow raises as a ValueError that names the image.  content: how the file begins, if known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # palette transparency, odd EXIF: harmless here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{where}: more than {limit} million pixels; make it smaller first") from None
    except Image.UnidentifiedImageError:
        content = content or _beginning(where)
        if content.startswith(LFS):
            raise ValueError(
                f"{where}: a git-LFS pointer, not the image itself; run `git lfs pull` in its repository"
            ) from None
        kind = _kind(content)
        what = f"a file of the format {kind}, which is not read" if kind else "not an image that Pillow can read"
        raise ValueError(f"{where}: {what}; convert it to PNG or JPEG, or delete it") from None
    except _OutOfScale as error:
        raise ValueError(f"{where}: {error}") from None
    except Exception as error:  # decoders raise anything on bytes that are not what they claim to be
        raise ValueError(f"{where}: broken or truncated ({error}); restore or delete it") from None


def _beginning(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _kind(content: bytes) -> str:
    """What a file is that is none of FORMATS, "" if nobody knows."""
    other = next(
        (kind for start, kind in _OTHERS.items() if start in (content[: len(start)], content[4 : 4 + len(start)])), ""
    )
    for name, (_, accept) in Image.OPEN.items():
        try:
            if name not in FORMATS and accept and accept(content[:16]) is True:
                return "PostScript (EPS)" if name == "EPS" else name
        except Exception:  # it is too short for that format to look at
            continue
    return other
