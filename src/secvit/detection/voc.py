"""Pascal VOC's XML files as COCO's lists: an image each, boxes by their corner pixels."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from secvit.detection.source import (
    Candidate,
    Content,
    Gathered,
    Listing,
    Source,
    any_below,
    choose,
    files_below,
    files_in,
    folder_called,
    folders,
    not_read,
    speaks_of,
    split_word,
    unreadable,
    unreadable_images,
)
from secvit.fields import Faults, Wrong, flag, number, read_bytes, read_text, shown
from secvit.images.classes import class_names
from secvit.images.files import LeftOut, image_files, is_image
from secvit.images.read import upright_size
from secvit.splits import SPLITS

FOLDERS = ("JPEGImages", "images")
MOST = 1 << 24  # bytes of an XML file
_OF_CLASS = re.compile(r"_\D")  # the name of a class's list, as train_val for the class "train"
_COLUMN = re.compile(r"\s+(?:-1|0|1)$")  # of a class's list: whether it is there
ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")


def voc_splits(root: Path, deep: bool = True) -> Listing:
    """Splits by ImageSets/Main, or by folders of images with an XML file each; "" is a set without splits.

    deep: look two folders deeper, and for XML files beside images, too.
    """
    listing, base = Listing(), None
    near: dict[str, Path] = {}  # each once, whatever is linked
    for place in [root, *(one for child in folders(root) for one in (child, *folders(child)))] if deep else [root]:
        near.setdefault(os.path.realpath(place), place)
    for place in near.values():
        annotations, images = folder_called(place, "Annotations"), folder_called(place, *FOLDERS)
        if images is None or annotations is None or not any_below(annotations, _is_xml):
            continue
        if base:
            raise ValueError(f"{base} and {place} are each a Pascal VOC set; give the folder of one")
        base = place
        _by_lists(place, images, annotations, listing)
        if not listing.sources and not listing.refused:
            read = functools.partial(_read, None, images, annotations)
            listing.sources[""] = Source(annotations, (images,), read)
    if base is None and deep:
        beside = [place for place in (root, folder_called(root, *FOLDERS)) if place]  # XML files and images
        named = [Candidate(child.name, str(child), child) for place in beside for child in folders(place)]
        named = [one for one in named if split_word(one.word) and any(map(_is_xml, one.value.iterdir()))]
        for split, one in choose(named, listing).items():
            read = functools.partial(_read, None, one.value, one.value, above=root)
            listing.sources[split] = Source(one.value, (one.value,), read)
        for place in beside if not named else ():
            if any(map(_is_xml, place.iterdir())) and any(map(is_image, place.iterdir())):
                listing.sources[""] = Source(place, (place,), functools.partial(_read, None, place, place))
    return listing


def _by_lists(base: Path, images: Path, annotations: Path, listing: Listing) -> None:
    """The splits that lists in ImageSets/Main name, or in ImageSets."""
    places = [place for place in (base / "ImageSets" / "Main", base / "ImageSets") if place.is_dir()]
    lists = [file for place in places for file in files_in(place, ".txt") if not _OF_CLASS.search(file.stem)]
    chosen = {split: one.value for split, one in choose([Candidate(f.stem, str(f), f) for f in lists], listing).items()}
    default = [file for file in lists if file.stem.casefold() in ("default", "all")]
    if default and not chosen and not listing.refused:  # CVAT's list of a set without splits
        chosen[""] = default[0]
    if unused := [str(file) for file in lists if not split_word(file.stem) and file not in chosen.values()]:
        listing.notes.append(f"not used: {', '.join(unused)}")
    for split, file in chosen.items():
        if why := unreadable(file):
            listing.refused[split] = f"{file}: {why}; restore it, or remove it if there is no {split} split"
        else:
            read = functools.partial(_read, file, images, annotations)
            listing.sources[split] = Source(file, (images,), read)
    for file in lists if "" not in chosen else ():
        like = speaks_of(file.stem)
        if like in SPLITS and like not in listing.sources and like not in listing.refused:
            listing.refused[like] = not_read(file, like, f"{like}.txt")


def _is_xml(path: Path) -> bool:
    return path.suffix.casefold() == ".xml"


def _read(file: Path | None, images: Path, annotations: Path, faults: Faults, above: Path | None = None) -> Content:
    """What the XML files of the images that a file names hold, or of all that have one."""
    by_name: dict[str, list[Path]] = {}
    for path in image_files(images, left_out := LeftOut()):
        by_name.setdefault(_stem(path, images), []).append(path)
    parsed, broken = _parse_all(above or annotations, faults)
    xmls = {_stem(path, annotations): path for path in [*parsed, *broken] if path.is_relative_to(annotations)}
    # classes are those of all splits, so that each has the same
    labels = {one for root in parsed.values() for one in map(_name, root.iter("object")) if one}
    ids = {name: i for i, name in enumerate(class_names(labels), 1)}
    gathered = Gathered([{"id": i, "name": name} for name, i in ids.items()])
    shift, without = _first_pixel(parsed.values()), 0
    for where, name in [(name, name) for name in by_name] if file is None else _listed(file, by_name):
        some = by_name.get(name) or [path for path in by_name.get(_cut(name), ()) if path.name == Path(name).name]
        xml = xmls.get(_stem(some[0], images)) if some else None
        if not some:
            faults.add(f"image {where}: no file of that name in {images}")
        elif len(some) > 1:
            faults.add(f"image {name}: {some[0].name} and {some[1].name} would have one XML file; rename one of them")
        elif xml is None and file is not None:
            faults.add(
                f"image {where}: no {_stem(some[0], images)}.xml in {annotations}; add it (without objects if there "
                "are none), or remove the line"
            )
        elif xml is None:
            without += 1
        elif xml in parsed:
            try:
                size = _size(some[0], xml, parsed[xml])
            except ValueError as error:
                faults.add(f"image {name}: {error}")
                continue
            gathered.image(some[0], some[0].relative_to(images).as_posix(), size)
            _add_objects(gathered, xml, parsed[xml], ids, shift, faults)
    notes = []
    if lone := sorted(path for stem, path in xmls.items() if stem not in by_name):
        notes.append(f"{len(lone)} XML files have no image and are left out, {lone[0].name} for one")
    return gathered.content(notes, (("without an XML file", without), *unreadable_images(left_out)))


def _parse_all(folder: Path, faults: Faults) -> tuple[dict[Path, ElementTree.Element], list[Path]]:
    """The XML files below a folder that can be read, and those that cannot."""
    parsed: dict[Path, ElementTree.Element] = {}
    broken = []
    for path in files_below(folder, ".xml"):
        try:
            parsed[path] = _parse(path)
        except ValueError as error:
            broken.append(path)
            faults.add(error)
    return parsed, broken


def _size(image: Path, xml: Path, root: ElementTree.Element) -> tuple[int, int]:
    """Width and height of an image in px; a ValueError if its XML file says others."""
    width, height = upright_size(image)
    if fault := _other_size(root, width, height):
        raise ValueError(f"{xml.name}: {fault}")
    return width, height


def _add_objects(
    gathered: Gathered, xml: Path, root: ElementTree.Element, ids: Mapping[str, int], shift: int, faults: Faults
) -> None:
    """The objects of the last image.  shift: the number of the first pixel."""
    for i, one in enumerate(root.iter("object"), 1):
        where = f"{xml.name} object {i}"
        try:
            x0, y0, x1, y1 = _corners(one)
            difficult = _difficult(one)
            if not (label := _name(one)):
                raise Wrong("no name")
        except Wrong as error:
            faults.add(f"{where}: {error}")
            continue
        box = [x0 - shift, y0 - shift, x1 - x0 + shift, y1 - y0 + shift]
        gathered.annotation(where, {"category_id": ids[label], "bbox": box, "iscrowd": int(difficult)})


def _stem(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _cut(name: str) -> str:
    """A name without the ending of an image: of a.99 nothing is cut."""
    return os.path.splitext(name)[0] if is_image(name) else name


def _listed(file: Path, present: Container[str]) -> list[tuple[str, str]]:
    """What errors call each image of a list, and its name: a line, without quotes and the -1, 0 or 1 of a class.

    present: names that are there; "photo 1" is one of them, or all lines have such a column.
    """
    lines = [(i, _unquoted(line)) for i, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    columns = all(_COLUMN.search(line) for _, line in lines) and not all(_cut(line) in present for _, line in lines)
    places: dict[str, str] = {}
    for i, line in lines:
        name = _unquoted(_COLUMN.sub("", line)) if columns else line
        places.setdefault(name, f"{name} ({file.name} line {i})")
    return [(where, name) for name, where in places.items()]


def _unquoted(line: str) -> str:
    name = line.strip()
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" else name


def _difficult(one: ElementTree.Element) -> bool:
    value = (one.findtext("difficult") or "0").strip()
    try:
        return flag(value or 0)
    except Wrong as error:
        raise Wrong(f"difficult is {shown(value)}, expected {error}") from None


def _parse(path: Path) -> ElementTree.Element:
    """The root of an XML file; one that declares entities, which could grow without bounds, is refused."""
    content = _decoded(path)
    if "<!DOCTYPE" in content or "<!ENTITY" in content:
        raise ValueError(f"{path.name}: declares a document type or entities; write it without")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path.name}: not XML ({error}); write it again") from None


def _decoded(path: Path) -> str:
    """An XML file's text, in the encoding that it declares."""
    content = read_bytes(path, MOST)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        declared = ENCODING.match(content)
        encoding = declared[1].decode() if declared else "utf-8"
        if encoding.casefold().startswith(("utf-8", "utf8", "utf-16", "utf16")):  # a text of 16 bits, saved as UTF-8
            encoding = "utf-8-sig"
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode(encoding)
    except (LookupError, ValueError) as error:
        raise ValueError(f"{path.name}: not text in {encoding} ({error}); save it as UTF-8") from None


def _other_size(root: ElementTree.Element, width: int, height: int) -> str:
    """What is wrong with the size that an XML file says; "" if it is the image's, 0 or missing."""
    stated = [(root.findtext(f"size/{name}") or "").strip() for name in ("width", "height")]
    try:
        wrong = any(text and number(text) not in (0, size) for text, size in zip(stated, (width, height), strict=True))
    except Wrong as error:
        return f"size is {shown(stated)}, expected two numbers ({error})"
    return f"the image is {width}x{height} px upright, size says {'x'.join(stated)}" if wrong else ""


def _name(one: ElementTree.Element) -> str:
    return (one.findtext("name") or "").strip()


def _corners(one: ElementTree.Element) -> list[float]:
    """xmin, ymin, xmax, ymax."""
    box = one.find("bndbox")
    if box is None:
        raise Wrong("no bndbox")
    texts = [(box.findtext(name) or "").strip() for name in ("xmin", "ymin", "xmax", "ymax")]
    try:
        corners = [number(value) for value in texts]
    except Wrong as error:
        raise Wrong(f"bndbox is {shown(texts)}, expected four numbers ({error})") from None
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise Wrong(f"bndbox is {shown(texts)}, expected xmin <= xmax and ymin <= ymax")
    return corners


def _first_pixel(roots: Sequence[ElementTree.Element] | Any) -> int:
    """1 where corners are pixels that count from 1, as VOC has it; 0 where any is below 1 or no whole number."""
    for root in roots:
        for one in root.iter("object"):
            try:
                corners = _corners(one)
            except Wrong:
                continue
            if min(corners) < 1 or any(value != int(value) for value in corners):
                return 0
    return 1
