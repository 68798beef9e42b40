"""Image files below a folder: which count, and what is left out and why."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

# Raster formats whose decoder is Pillow's own.  Formats that start another program (EPS, WMF) or need a plug-in that
# Pillow does not bring (HDF5, GRIB, BUFR, MPEG) are not opened, whatever a file calls itself.
# MPO has no opener of its own: Pillow opens it as JPEG.
FORMATS = (
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000",
    "MSP", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
# the endings of these formats
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".mpo",
    ".tga", ".icb", ".vda", ".vst", ".qoi", ".psd", ".pcx", ".dcx", ".dds", ".blp", ".ico", ".cur", ".icns",
    ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".im", ".msp", ".pxr", ".fli", ".flc", ".xbm", ".xpm",
)  # fmt: skip
# what file managers, editors and version control leave among the data; also every name that begins with a dot
STRAY = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir", "lost+found", "system volume information",
         "__pycache__", "cvs"}  # fmt: skip


def is_image(name: str | os.PathLike[str]) -> bool:
    """Whether a file's ending is that of an image."""
    return os.path.splitext(os.fspath(name))[1].lower() in EXTENSIONS


def is_stray(name: str) -> bool:
    """Whether a file or folder is no part of the data: hidden, or made by a file manager or an editor."""
    return name.startswith((".", "~$")) or name.endswith("~") or name.casefold() in STRAY


HIDDEN = "hidden or stray"


@dataclass
class LeftOut:
    """What a reader passed over, by reason, for one line in the log."""

    reasons: Counter[str] = field(default_factory=Counter)
    harmless: set[str] = field(default_factory=lambda: {HIDDEN})  # reasons that nobody needs to be warned of

    def add(self, reason: str, count: int = 1) -> None:
        if count:
            self.reasons[reason] += count

    def line(self, name: str, used: int, things: str = "files") -> str:
        """ "train: used 20 of 28 files; left out: 6 hidden, 2 of another ending (.txt)"; "" if nothing was left out."""
        total = used + sum(self.reasons.values())
        why = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common(12))
        return f"{name}: used {used:,} of {total:,} {things}; left out: {why}" if self.reasons else ""

    def tell(self, name: str, used: int, things: str = "files") -> None:
        """Log the line, as a warning where it may be a mistake."""
        if self.reasons:
            level = logging.INFO if self.reasons.keys() <= self.harmless else logging.WARNING
            logger.log(level, "%s", self.line(name, used, things))


def image_files(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The images below a folder in order of their paths; linked folders are followed, each once."""
    return [Path(name) for name in image_names(folder, left_out)]


def image_names(folder: str | os.PathLike[str], left_out: LeftOut | None = None) -> list[str]:
    """The same as text, which of millions is faster."""
    left_out = LeftOut() if left_out is None else left_out
    paths = []
    for path in _walk(os.fspath(folder), left_out, _above(folder)):
        if is_image(path):
            paths.append(path)
        else:
            left_out.add(f"of another ending ({os.path.splitext(path)[1].lower() or 'none'})")
    return sorted(paths, key=lambda path: path.split(os.sep))


def _above(folder: str | os.PathLike[str]) -> frozenset[tuple[int, int]]:
    """The folders that contain a folder: a link to one of them, inside, is not followed."""
    parents = {*Path(os.path.abspath(folder)).parents, *Path(os.path.realpath(folder)).parents}
    return frozenset((about.st_dev, about.st_ino) for about in map(os.stat, parents))


def kind_of(entry: os.DirEntry[str]) -> Literal["file", "folder", "broken links", "that are no regular files"]:
    """What an entry of a folder is, behind a link; for what cannot be read, the reason to leave it out."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError:  # a link to itself, or to what may not be looked at
        pass
    return "broken links" if entry.is_symlink() else "that are no regular files"


def _walk(folder: str, left_out: LeftOut, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Every regular file below a folder that is no stray; `above`: the folders that contain it."""
    try:
        about = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    here = (about.st_dev, about.st_ino)
    if here in above:
        left_out.add("linked folders that contain themselves")
        return
    for entry in entries:
        if is_stray(entry.name):
            left_out.add(HIDDEN)
        elif (kind := kind_of(entry)) == "file":
            yield entry.path
        elif kind == "folder":
            yield from _walk(entry.path, left_out, above | {here})
        else:
            left_out.add(kind)
