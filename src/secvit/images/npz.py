"""npz files of encoded images: jpeg (all bytes), offset (n + 1), label, classes, and name if wanted."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from secvit.fields import check_file
from secvit.images.labelled import Images, check_skipped
from secvit.images.read import read_image

logger = logging.getLogger(__name__)

KEYS = ("jpeg", "offset", "label", "classes")
PACKED = 100  # the arrays take at most so many times the bytes of the file, or it is no honest one
SMALL = 2**24  # bytes of an array that may be packed better than that


def read_npz(path: Path, name: str) -> Images:
    """All images of an npz, decoded into memory; they share one size."""
    arrays = _open(path, (*KEYS, "name"))
    data, label, offset = (
        arrays["jpeg"],
        _whole(path, "label", arrays["label"]),
        _whole(path, "offset", arrays["offset"]),
    )
    classes, entries = _classes(path, arrays["classes"]), None
    if data.dtype != np.uint8:
        raise ValueError(f"{path}: `jpeg` has the type {data.dtype}; expected the bytes of all images as uint8")
    if "name" in arrays:
        entries = _names(path, arrays["name"], len(label))
    _check_offsets(path, offset, len(label), len(data))
    _check_labels(path, label, classes)
    kept: list[int] = []
    skipped: list[str] = []
    pixels: Tensor | None = None
    for i in tqdm(range(len(label)), desc=f"decoding {path.name}", disable=None, leave=False):
        entry = f"{path}[{i}]" + (f" ({entries[i]})" if entries is not None else "")
        try:
            image = read_image(data[int(offset[i]) : int(offset[i + 1])].tobytes(), entry)
        except ValueError as error:
            skipped.append(entry)
            logger.warning("skipped: %s", error)
            check_skipped(skipped, len(label))
            continue
        if pixels is None:
            pixels = _room(path, len(label), image.height, image.width)
        if image.size != (pixels.shape[3], pixels.shape[2]):
            raise ValueError(
                f"{entry}: {image.width}x{image.height} px, but the first is "
                f"{pixels.shape[3]}x{pixels.shape[2]}; use an image folder for mixed sizes"
            )
        pixels[len(kept)] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        kept.append(i)
    if pixels is None:
        raise ValueError(f"{path}: no image that can be read; repair the data")
    names = [entries[i] if entries is not None else str(i) for i in kept]
    labels = torch.from_numpy(label[kept].astype(np.int64))
    return Images(name, classes, labels, pixels[: len(kept)], names, tuple(skipped))


def _names(path: Path, values: np.ndarray, count: int) -> list[str]:
    """A name for each of `count` images, all different."""
    entries = _text(path, "name", values)
    if len(entries) != count:
        raise ValueError(f"{path}: {count} labels and {len(entries)} names; expected as many")
    twice = [entry for entry, times in Counter(entries).items() if times > 1]
    if twice:
        more = f" ({len(twice)} such names)" if twice[1:] else ""
        first = [i for i, entry in enumerate(entries) if entry == twice[0]][:2]
        raise ValueError(
            f"{path}: entries {first[0]} and {first[1]} are both called {twice[0]!r}{more}; give each its own `name`"
        )
    return entries


def _check_offsets(path: Path, offset: np.ndarray, count: int, size: int) -> None:
    """A ValueError where offsets do not cut `size` bytes into `count` images."""
    if count == 0 or len(offset) != count + 1:
        raise ValueError(f"{path}: {count} labels and {len(offset)} offsets; expected n and n + 1")
    if offset[0] != 0 or offset[-1] != size or bool((offset[1:] < offset[:-1]).any()):
        raise ValueError(f"{path}: offsets do not rise from 0 to the {size} bytes of `jpeg`")


def _check_labels(path: Path, label: np.ndarray, classes: tuple[str, ...]) -> None:
    """A ValueError for labels of no class, and for classes without an image."""
    outside = np.flatnonzero((label < 0) | (label >= len(classes)))
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"{path}: entry {i} has label {label[i]}, outside 0..{len(classes) - 1} ({len(outside)} such entries)"
        )
    empty = sorted(set(range(len(classes))) - set(label.tolist()))
    if empty:
        raise ValueError(f"{path}: no image of class {classes[empty[0]]!r}; remove it from `classes`")


def npz_classes(path: Path) -> tuple[str, ...]:
    return _classes(path, _open(path, ("classes",))["classes"])


def _room(path: Path, count: int, height: int, width: int) -> Tensor:
    """Memory for all images; a ValueError where the machine has less."""
    need = count * 3 * height * width
    if hasattr(os, "sysconf") and need > (there := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ValueError(
            f"{path}: {count:,} images of {width}x{height} px take {need / 2**30:,.1f} GiB decoded, this machine has "
            f"{there / 2**30:,.1f}; use an image folder"
        )
    return torch.empty(count, 3, height, width, dtype=torch.uint8)


def _open(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of some keys; each has one dimension and is no larger than the file allows."""
    size = check_file(path)
    try:
        with zipfile.ZipFile(path) as file:
            members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
            if missing := [k for k in KEYS if k not in members]:
                raise ValueError(f"lacks {', '.join(missing)}; it needs {', '.join(KEYS)}")
            arrays = {}
            for key in keys:
                if key in members:
                    with file.open(members[key]) as content:
                        arrays[key] = _array(content, members[key].file_size, max(SMALL, PACKED * size), key)
            return arrays
    except Exception as error:  # zipfile, zlib and numpy raise anything on bytes that are not what they claim to be
        raise ValueError(f"{path}: not an npz of encoded images ({error})") from None


def _array(content: IO[bytes], size: int, most: int, key: str) -> np.ndarray:
    """An array whose header agrees with the size of its member, in bytes."""
    version = np.lib.format.read_magic(content)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(content)
    if dtype.hasobject:
        raise ValueError(f"`{key}` holds Python objects; save it as numbers or text")
    if len(shape) != 1:
        raise ValueError(f"`{key}` has the shape {shape}; expected one dimension")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size or min(shape) < 0:
        raise ValueError(f"`{key}` claims {needed:,} bytes, of which there are {size:,}")
    if needed > most:
        raise ValueError(f"`{key}` unpacks to {needed:,} bytes, more than {PACKED} times the file")
    data = content.read(needed)
    if len(data) < needed:
        raise ValueError(f"`{key}` ends after {len(data):,} of {needed:,} bytes")
    content.read(1)  # past the end, where the checksum is compared
    return np.frombuffer(data, dtype) if dtype.itemsize else np.zeros(shape, dtype)


def _whole(path: Path, key: str, values: np.ndarray) -> np.ndarray:
    """Numbers as int64; whole ones of a float type are meant so."""
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: `{key}` has the type {values.dtype}; expected whole numbers")
    wrong = np.flatnonzero(~((values == np.floor(values)) & (np.abs(values.astype(np.float64)) < 2**53)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"{path}: `{key}` of entry {i} is {values[i]}; expected a whole number ({len(wrong)} such)")
    return values.astype(np.int64)


def _classes(path: Path, values: np.ndarray) -> tuple[str, ...]:
    names = _text(path, "classes", values)
    if len(names) < 2:
        raise ValueError(f"{path}: {len(names)} classes; expected at least two")
    for i, name in enumerate(names):
        if not name.strip() or names.index(name) < i:
            raise ValueError(f"{path}: class {i} is called {name!r}; give each class its own name")
    return tuple(names)


def _text(path: Path, key: str, values: np.ndarray) -> list[str]:
    """Names, of which numbers become their digits."""
    read: dict[str, Callable[[np.ndarray], list[str]]] = {
        "U": np.ndarray.tolist,
        "S": lambda array: [name.decode("utf-8") for name in array.tolist()],
        "i": lambda array: [str(name) for name in array.tolist()],
        "u": lambda array: [str(name) for name in array.tolist()],
    }
    if values.dtype.kind not in read:
        raise ValueError(f"{path}: `{key}` has the type {values.dtype}; expected names")
    try:
        names = read[values.dtype.kind](values)
        "".join(names).encode("utf-8")
    except ValueError as error:
        raise ValueError(f"{path}: `{key}` holds what is no text ({error})") from None
    return names
