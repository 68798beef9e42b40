"""wds/DIR_OR_PATTERN: WebDataset shards, tar files in which an image and its label share a name.

A tar is read as a stream by webdataset and by timm's reader; a run that was killed cannot go on from
the middle of a stream to the bit.  Here the members are listed once, in one pass over the headers, and
images are then read by file, offset and size, in any order, by any process: shards shuffle, resume and
are checked like a folder.  Files must be local and not compressed.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import posixpath
import re
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image
from tqdm import tqdm

from secvit.fields import Entry, Wrong, items, once, read_json, read_text, shown, text
from secvit.images.classes import class_names
from secvit.images.files import EXTENSIONS, LeftOut, is_image, is_stray, kind_of
from secvit.images.folders import contents
from secvit.images.labelled import Images, Source, number_labels
from secvit.images.names import Names
from secvit.images.read import LARGEST, LFS, read_image
from secvit.splits import SPLITS, split_of

BLOCK = 512  # of a tar: headers and contents begin at multiples of it
PLACE = re.compile(r"(?P<shard>.+\.tar)@(?P<offset>\d+)\+(?P<size>\d+)/")
INFO = ("_info.json", "info.json")
MOST_SHARDS = 100_000  # that a pattern may stand for
# kinds of packed files by their first bytes
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
FURTHER_DOT = "images with a further dot in their name"
LABEL_BYTES = 2**24  # of a .cls or .json


class Sample(NamedTuple):
    """An image by its place, "SHARD@OFFSET+SIZE/MEMBER", and its label as written."""

    name: str
    label: str


def shard_sources(where: str) -> dict[str, Source]:
    """The splits of shards in a folder (DIR/train-000.tar or DIR/train/*.tar) or by a {000..003} pattern."""
    parts: dict[str | None, dict[str, list[Path]]] = {}
    for shard in _shards(where):
        split, word = _split(shard, Path(where))
        parts.setdefault(split, {}).setdefault(word, []).append(shard)
    if None in parts and len(parts) > 1:
        raise ValueError(
            f"wds/{where}: {parts[None][''][0].name} names no split, others do; put train, val or test into each name"
        )
    for split, words in parts.items():
        if len(words) > 1:
            first, second = list(words)[:2]
            raise ValueError(f"wds/{where}: {second} is a second {split}; keep one of them ({first}, {second})")
    by_split = {split: next(iter(words.values())) for split, words in parts.items()}
    if None in by_split:
        return {"train": _source("shards", by_split[None])}
    return {split: _source(split, by_split[split]) for split in SPLITS if split in by_split}


def _source(split: str, shards: Sequence[Path]) -> Source:
    return Source(partial(_read, split, shards), partial(_classes, shards))


def _shards(where: str) -> list[Path]:
    """The files that a folder or a pattern stands for."""
    if os.path.isdir(where):
        shards = _in_folder(Path(where))
        if not shards:
            raise ValueError(
                f"wds/{where}: no .tar file there or in {'/, '.join(SPLITS)}/; compressed ones do not count"
            )
        return shards
    shards = [Path(path) for path in expand(where)]
    missing = [path for path in shards if not os.path.isfile(path)]
    if missing:
        raise ValueError(f"wds/{where}: {len(missing)} of {len(shards)} shards do not exist, the first: {missing[0]}")
    wrong = [path for path in shards if path.suffix.lower() != ".tar"]
    if wrong:
        raise ValueError(f"wds/{where}: {wrong[0].name} is not a plain .tar file; unpack it first")
    return shards


def _in_folder(where: Path) -> list[Path]:
    """The shards in a folder, or else in its folders that are called like splits."""
    left_out = LeftOut()
    folders, files = contents(where, left_out)
    _check_links(where)
    shards = [where / file for file in files if file.lower().endswith(".tar")]
    for folder in (folder for folder in folders if split_of(folder)):
        _check_links(where / folder)
        inside = [where / folder / f for f in contents(where / folder, left_out)[1] if f.lower().endswith(".tar")]
        if inside and shards and shards[0].parent == where:
            left_out.add(f"in {folder}/, as shards lie above it", len(inside))
        else:
            shards += inside
    packed = [file for file in files if re.search(r"\.(tar\.\w+|tgz)$", file, re.IGNORECASE)]
    left_out.add("compressed", len(packed))
    left_out.tell(f"wds/{where}", len(shards), "shards")
    return shards


def _check_links(folder: Path) -> None:
    """A ValueError for a shard, or a folder of a split, that is a link to nothing: its split would not be whole."""
    for entry in list(os.scandir(folder)):
        named = entry.name.lower().endswith(".tar") or split_of(entry.name)
        if named and not is_stray(entry.name) and kind_of(entry) == "broken links":
            raise ValueError(f"wds/{entry.path}: a link to nothing; fetch what it links to, or remove it")


def expand(pattern: str) -> list[str]:
    """a{00..02}.tar -> a00.tar a01.tar a02.tar, and {a,b}.tar -> a.tar b.tar."""
    choices: list[Sequence[str]] = []
    too_many = ValueError(f"wds/{pattern}: more than {MOST_SHARDS:,} shards; is there a digit too many?")
    for i, piece in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", piece) if i % 2 else None
        if numbers:
            first, last = numbers.groups()
            if len(last) > 12 or not 0 <= int(last) - int(first) < MOST_SHARDS:
                if len(last) <= 12 and int(last) < int(first):
                    raise ValueError(f"wds/{pattern}: {{{piece}}} counts down; write the smaller number first")
                raise too_many
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(",") if i % 2 else [piece])
    if math.prod(map(len, choices)) > MOST_SHARDS:
        raise too_many
    return ["".join(combination) for combination in itertools.product(*choices)]


def _split(shard: Path, where: Path) -> tuple[str | None, str]:
    """The split that a shard's name, or its folder below `where`, speaks of, and the word; None and "" for none."""
    words = [*re.findall(r"[A-Za-z]+", shard.stem), *([shard.parent.name] if shard.parent != where else [])]
    splits = {split: word.casefold() for word in words if (split := split_of(word))}
    if len(splits) > 1:
        raise ValueError(f"{shard}: names {' and '.join(splits)}; put one split into the name of a shard")
    return next(iter(splits.items()), (None, ""))


def _classes(shards: Sequence[Path]) -> tuple[str, ...]:
    return _listed_classes(shards) or class_names(label for shard in shards for label in _labels(shard))


def _listed_classes(shards: Sequence[Path]) -> tuple[str, ...]:
    """Class names by number from classes.txt or _info.json ("classes") beside the shards or above; () if none.

    A ValueError for two lists that differ.
    """
    folder, lists = shards[0].parent, dict[Path, tuple[str, ...]]()
    for place in (folder, folder.parent) if split_of(folder.name) else (folder,):
        for path in (place / name for name in ("classes.txt", *INFO) if os.path.lexists(place / name)):
            names = _lines(path) if path.suffix == ".txt" else _info_classes(path)
            if len(set(names)) < len(names):
                twice = next(name for i, name in enumerate(names) if name in names[:i])
                raise ValueError(f"{path}: class {twice!r} occurs twice; give each class its own name")
            if names or path.suffix == ".txt":
                lists[path] = names
    for path, names in lists.items():
        if names != (first := next(iter(lists.items())))[1]:
            raise ValueError(f"{first[0]} and {path} list other classes ({shown(first[1])}; {shown(names)}); keep one")
    return next(iter(lists.values()), ())


def _lines(path: Path) -> tuple[str, ...]:
    """The class in each line; an empty one in between would shift the numbers of those below."""
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if "" in names:
        raise ValueError(f"{path}, line {names.index('') + 1}: empty; expected a class in each line")
    return tuple(names)


def _info_classes(path: Path) -> tuple[str, ...]:
    entry = Entry(str(path), read_json(path))
    classes = entry.get("classes", items, [])
    try:
        return tuple(text(name) for name in classes)
    except Wrong as error:
        raise ValueError(f"{path}: classes holds what is no name, expected a list of {error}") from None


def _read(split: str, shards: Sequence[Path], classes: tuple[str, ...] | None) -> Images:
    """All samples of some shards, by place."""
    labels: list[str] = []
    left_out = LeftOut()
    listed = _listed_classes(shards)

    def names_in(shard: Path) -> list[str]:
        samples = _list(shard, left_out)
        labels.extend(_named(sample, listed) for sample in samples)
        return [sample.name for sample in samples]

    bar = tqdm(shards, desc=f"listing {split}", disable=None, leave=False)
    names = Names.of(name for shard in bar for name in names_in(shard))
    left_out.tell(split, len(names), "images")
    all_classes, numbers = number_labels(labels, classes or listed, names.__getitem__)
    root = os.path.commonpath([shard.parent for shard in shards])
    return Images(split, all_classes, numbers, None, names, read=read_member, root=root)


def _named(sample: Sample, listed: tuple[str, ...]) -> str:
    """A label as a class name, by the list if there is one."""
    if not listed:
        return sample.label
    number = int(sample.label) if re.fullmatch(r"[0-9]{1,9}", sample.label) else len(listed)
    by_number = listed[number] if number < len(listed) else None
    if sample.label in listed and by_number not in (None, sample.label):
        raise ValueError(
            f"{sample.name}: label {sample.label} is the name of a listed class and the number of another, "
            f"{by_number!r}; write the names of classes as labels, and give them names that are no numbers"
        )
    if sample.label in listed:
        return sample.label
    if by_number is not None:
        return by_number
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
            return read_image(file.read(min(int(place["size"]), LARGEST)), name)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror}); check the shard") from None


# the labels of each shard, by its path, size and time: a run asks for train's classes again with each other split
_read_classes: dict[tuple[str, int, int], tuple[str, ...]] = {}


def _key(shard: Path) -> tuple[str, int, int]:
    about = shard.stat()
    return str(shard), about.st_size, about.st_mtime_ns


def _labels(shard: Path) -> tuple[str, ...]:
    if _key(shard) not in _read_classes:
        _list(shard, LeftOut())
    return _read_classes[_key(shard)]


class _Listing:
    """What the headers of a shard say: the place and size of each file, links, images and labels by sample."""

    def __init__(self, shard: Path) -> None:
        self.shard = shard
        self.places: dict[str, tuple[int, int]] = {}
        self.links: dict[str, str] = {}
        self.images: dict[str, str] = {}  # the member of each sample
        self.labels: dict[tuple[str, str], str] = {}  # and those of its labels, by ending
        self.further: list[tuple[str, str]] = []  # sample and member of images whose ending has a dot: 0.seg.png

    def enter(self, member: tarfile.TarInfo, left_out: LeftOut) -> None:
        """Sort a member in by the part of the path that image and label share: up to the first dot of the name."""
        if member.isdir():
            return
        name = posixpath.normpath(member.name)
        folder, _, file = name.rpartition("/")
        base, _, kind = file.partition(".")
        if any(map(is_stray, name.split("/"))):
            left_out.add("hidden or stray")
            return
        if member.issym():
            self.links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
        elif member.islnk():
            self.links[name] = posixpath.normpath(member.linkname)
        elif member.isreg() and not member.issparse():
            self.places[name] = (member.offset_data, member.size)
        else:
            left_out.add("that are no regular files")
            return
        key = f"{folder}/{base}" if folder else base
        if kind and f".{kind.lower()}" in EXTENSIONS:
            if key in self.images:
                raise ValueError(f"{self.shard}: two images are called {key}; give each its own name")
            self.images[key] = name
        elif kind.lower() in ("cls", "json"):
            self.labels[key, kind.lower()] = name
        elif is_image(file):
            self.further.append((key, name))

    def place(self, name: str) -> tuple[int, int]:
        """Where a member's bytes begin, and how many there are; a link's are those of what it stands for."""
        end = name
        for _ in range(16):
            if end in self.places:
                return self.places[end]
            end = self.links.get(end, "")
        raise ValueError(
            f"{self.shard}/{name}: a link to {self.links[name]}, which is no file of this shard; write the file itself"
        )


def _list(shard: Path, left_out: LeftOut) -> list[Sample]:
    """The samples of a shard in the order of its images; whatever is wrong is a ValueError that names it."""
    listing, size = _Listing(shard), shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                listing.enter(member, left_out)
                tar.members = []  # type: ignore[attr-defined]  # which would keep all of them
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        raise ValueError(_no_tar(shard) or f"{shard}: not a whole tar file ({error}); copy it again") from None
    with open(shard, "rb") as file:
        file.seek(min(end, size))
        # tarfile takes a header cut in half, or none, for the end; the true end is a block of zeros
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f"{shard}: damaged or cut off at byte {end} of {size}; copy it again")
        labels = _read_labels(listing, file)
    without = next((key for key in listing.images if key not in labels), None)
    if without is not None:
        raise ValueError(f'{shard}: {without} has an image but no label; add {without}.cls, or "label" to its .json')
    if not listing.images:
        dots = "".join(
            f"; {len(listing.further):,} {FURTHER_DOT} ({name}): a sample's name ends at the first dot, "
            "so put another character there, in the names of the labels, too"
            for _, name in listing.further[:1]
        )
        raise ValueError(f"{shard}: no image ({' '.join(EXTENSIONS)}) with a label (.cls or .json){dots}")
    extra = sum(key in listing.images for key, _ in listing.further)  # 0.seg.png beside 0.png
    left_out.add(f"further {FURTHER_DOT}, beside the sample's own", extra)
    left_out.harmless.add(f"further {FURTHER_DOT}, beside the sample's own")
    left_out.add(FURTHER_DOT, len(listing.further) - extra)
    left_out.add("that have a label but no image", len(labels.keys() - listing.images.keys()))
    places = {name: listing.place(name) for name in listing.images.values()}
    _read_classes[_key(shard)] = tuple(set(labels[key] for key in listing.images))
    return [
        Sample(f"{shard}@{places[name][0]}+{places[name][1]}/{name}", labels[key])
        for key, name in listing.images.items()
    ]


def _no_tar(shard: Path) -> str:
    """What a file is instead of a tar, with the remedy; "" if nobody knows."""
    try:
        with open(shard, "rb") as file:
            content = file.read(64)
    except OSError:
        return ""
    if content.startswith(LFS):
        return f"{shard}: a git-LFS pointer, not the shard itself; run `git lfs pull` in its repository"
    kind = next((kind for start, kind in COMPRESSED.items() if content.startswith(start)), None)
    return f"{shard}: compressed with {kind}, though it is called .tar; unpack it first" if kind else ""


def _read_labels(listing: _Listing, file: BinaryIO) -> dict[str, str]:
    """The label of each sample that has one; .cls before .json, which may not say another number or name."""
    labels: dict[str, str] = {}
    for (key, kind), name in sorted(listing.labels.items(), key=lambda item: item[0][1]):
        start, size = listing.place(name)
        where = f"{listing.shard}/{name}"
        if size > LABEL_BYTES:
            raise ValueError(f"{where}: {size:,} bytes, too many for a label")
        file.seek(start)
        label = _label(file.read(size), kind, where)
        if label is None:
            continue
        other = labels.setdefault(key, label)
        if other != label and other.isdecimal() == label.isdecimal():
            raise ValueError(f"{where}: label {label!r}, but its .cls says {other!r}; keep one of them")
    return labels


def _label(content: bytes, kind: str, name: str) -> str | None:
    """What a .cls says, or "label" of a .json; None if a .json has none."""
    try:
        label = content.decode("utf-8-sig") if kind == "cls" else json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: cannot be read ({error})") from None
    if kind == "json":
        label = label.get("label") if isinstance(label, dict) else None
    if label is None:
        return None
    try:
        return text(label).strip()
    except Wrong:
        raise ValueError(f"{name}: label {label!r}; expected a class number or a name") from None
