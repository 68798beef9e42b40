"""wds/DIR_OR_PATTERN: WebDataset shards, tar files in which an image and its label share a name.

A tar is read as a stream by webdataset and by timm's reader; a run that was killed cannot go on from
the middle of a stream to the bit.  Here the members are listed once, in one pass over the headers, and
images are then read by file, offset and size, in any order, by any process: shards shuffle, resume and
are checked like a folder.  Files must be local and not compressed.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from secvit.images.labelled import SPLITS, Images, Source, class_names, number_labels
from secvit.images.read import EXTENSIONS, read_image

BLOCK = 512  # of a tar: headers and contents begin at multiples of it
PLACE = re.compile(r"(?P<shard>.+\.tar)@(?P<offset>\d+)\+(?P<size>\d+)/")
INFO = ("_info.json", "info.json")


class Sample(NamedTuple):
    """An image by its place, "SHARD@OFFSET+SIZE/MEMBER", and its label as written."""

    name: str
    label: str


def shard_sources(where: str) -> dict[str, Source]:
    """The splits of shards in a folder (DIR/train-000.tar or DIR/train/*.tar) or by a {000..003} pattern."""
    shards = _shards(where)
    parts: dict[str | None, list[Path]] = {}
    for shard in shards:
        parts.setdefault(_split(shard, Path(where)), []).append(shard)
    if None in parts and len(parts) > 1:
        raise ValueError(
            f"wds/{where}: {parts[None][0].name} names no split, others do; put train, val or test into each name"
        )
    if None in parts:
        return {"train": _source("shards", parts[None])}
    return {split: _source(split, parts[split]) for split in dict.fromkeys(SPLITS.values()) if split in parts}


def _source(split: str, shards: Sequence[Path]) -> Source:
    return Source(partial(_read, split, shards), partial(_classes, shards))


def _shards(where: str) -> list[Path]:
    """The files that a folder or a pattern stands for."""
    if Path(where).is_dir():
        found = sorted(Path(where).glob("*.tar")) or sorted(f for s in SPLITS for f in Path(where, s).glob("*.tar"))
        if not found:
            raise ValueError(
                f"wds/{where}: no .tar file there or in {'/, '.join(SPLITS)}/; compressed ones do not count"
            )
        return found
    found = [Path(path) for path in expand(where)]
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise ValueError(f"wds/{where}: {len(missing)} of {len(found)} shards do not exist, the first: {missing[0]}")
    wrong = [path for path in found if path.suffix != ".tar"]
    if wrong:
        raise ValueError(f"wds/{where}: {wrong[0].name} is not a plain .tar file; unpack it first")
    return found


def expand(pattern: str) -> list[str]:
    """a{00..02}.tar -> a00.tar a01.tar a02.tar, and {a,b}.tar -> a.tar b.tar."""
    choices: list[Sequence[str]] = []
    for i, piece in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", piece) if i % 2 else None
        if numbers:
            first, last = numbers.groups()
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(",") if i % 2 else [piece])
    return ["".join(combination) for combination in itertools.product(*choices)]


def _split(shard: Path, where: Path) -> str | None:
    """The split that a shard's name, or its folder below `where`, speaks of."""
    words = [*re.split(r"[-_.]", shard.stem), *([shard.parent.name] if shard.parent != where else [])]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _classes(shards: Sequence[Path]) -> tuple[str, ...]:
    return _listed_classes(shards) or class_names(label for shard in shards for _, label in _samples(shard))


def _listed_classes(shards: Sequence[Path]) -> tuple[str, ...]:
    """Class names by number from classes.txt or _info.json ("classes") beside the shards or above; () if none."""
    folder = shards[0].parent
    for place in (folder, folder.parent) if folder.name in SPLITS else (folder,):
        if (place / "classes.txt").is_file():
            names = [line.strip() for line in (place / "classes.txt").read_text("utf-8").splitlines()]
            return tuple(name for name in names if name)
        for info in (place / name for name in INFO):
            if info.is_file():
                return _info_classes(info)
    return ()


def _info_classes(path: Path) -> tuple[str, ...]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    names = found.get("classes", ()) if isinstance(found, dict) else ()
    return tuple(map(str, names))


def _read(split: str, shards: Sequence[Path], classes: tuple[str, ...] | None) -> Images:
    """All samples of some shards, by place."""
    samples: list[Sample] = []
    for shard in tqdm(shards, desc=f"listing {split}", disable=None, leave=False):
        samples += _samples(shard)
    listed = _listed_classes(shards)
    names = tuple(sample.name for sample in samples)
    labels = [_named(sample, listed) for sample in samples]
    known, numbers = number_labels(labels, classes or listed, names.__getitem__)
    root = os.path.commonpath([shard.parent for shard in shards])
    return Images(split, known, numbers, None, names, read=read_member, root=root)


def _named(sample: Sample, listed: tuple[str, ...]) -> str:
    """A label as a class name, by the list if there is one."""
    if not listed or sample.label in listed:
        return sample.label
    if re.fullmatch(r"-?\d+", sample.label) and 0 <= int(sample.label) < len(listed):
        return listed[int(sample.label)]
    raise ValueError(
        f"{sample.name}: label {sample.label}, which is neither 0..{len(listed) - 1} nor one of the "
        f"{len(listed)} listed class names"
    )


def read_member(name: str) -> Image.Image:
    """The image at "SHARD@OFFSET+SIZE/MEMBER"."""
    place = PLACE.match(name)
    if not place:
        raise ValueError(f"{name}: not a place in a shard")
    try:
        # opened for each image: a handle would be shared, and moved, by all loading processes
        with open(place["shard"], "rb") as file:
            file.seek(int(place["offset"]))
            return read_image(file.read(int(place["size"])), name)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror}); check the shard") from None


def _samples(shard: Path) -> list[Sample]:
    about = shard.stat()
    return _list(shard, about.st_size, about.st_mtime_ns)


@functools.cache  # a run asks for train's classes again with each other split
def _list(shard: Path, size: int, changed: int) -> list[Sample]:
    """The samples of a shard in the order of its images; whatever is wrong is a ValueError that names it."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                _sort_in(tar, member, shard, images, labels)
        with open(shard, "rb") as file:
            file.seek(end)
            # tarfile takes a header cut in half, or none, for the end; the true end is a block of zeros
            if file.read(BLOCK) != bytes(BLOCK):
                raise ValueError(f"{shard}: damaged or cut off at byte {end} of {size}; copy it again")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{shard}: not a whole tar file ({error}); copy it again") from None
    without = next((key for key in images if key not in labels), None)
    if without is not None:
        raise ValueError(f'{shard}: {without} has an image but no label; add {without}.cls, or "label" to its .json')
    if not images:
        raise ValueError(f"{shard}: no image ({' '.join(EXTENSIONS)}) with a label (.cls or .json)")
    return [Sample(name, labels[key]) for key, name in images.items()]


def _sort_in(
    tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path, images: dict[str, str], labels: dict[str, str]
) -> None:
    """Enter an image's place, or a label, by the part of the path that they share: up to the first dot of the name."""
    folder, _, file = member.name.rpartition("/")
    base, _, kind = file.partition(".")
    if not member.isreg() or not base or not kind:
        return
    key = f"{folder}/{base}" if folder else base
    if f".{kind.lower()}" in EXTENSIONS:
        if key in images:
            raise ValueError(f"{shard}: two images are called {key}; give each its own name")
        images[key] = f"{shard}@{member.offset_data}+{member.size}/{member.name}"
    elif kind in ("cls", "json"):
        content = tar.extractfile(member)
        label = _label(content.read() if content else b"", kind, f"{shard}/{member.name}")
        if label is not None:
            labels[key] = label


def _label(content: bytes, kind: str, name: str) -> str | None:
    """What a .cls says, or "label" of a .json; None if a .json has none."""
    try:
        found = content.decode("utf-8") if kind == "cls" else json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None
    if kind == "json":
        found = found.get("label") if isinstance(found, dict) else None
    if found is None:
        return None
    if not str(found).strip() or isinstance(found, (list, dict, bool, float)):
        raise ValueError(f"{name}: label {found!r}; expected a class number or a name")
    return str(found).strip()
