"""Pascal VOC's XML files as COCO's lists: an image each, boxes by their corner pixels."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from secvit.detection.source import Content, Source, folders
from secvit.fields import Faults, Wrong, flag, number, read_bytes, read_text, shown
from secvit.images.files import image_files
from secvit.images.read import upright_size
from secvit.images.words import class_names, split_of

logger = logging.getLogger(__name__)

FOLDERS = ("JPEGImages", "images")
MOST = 1 << 24  # bytes of an XML file
ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")


def voc_splits(root: Path) -> dict[str, Source]:
    """Splits by ImageSets/Main, or by folders of images with an XML file each; "" is a set without splits."""
    found: dict[str, Source] = {}
    for base in [root, *(deep for child in folders(root) for deep in (child, *folders(child)))]:
        annotations = base / "Annotations"
        pictures = next((base / name for name in FOLDERS if (base / name).is_dir()), None)
        if pictures is None or not annotations.is_dir() or next(annotations.rglob("*.xml"), None) is None:
            continue
        if found:
            raise ValueError(f"{root}: {base.name} is a second Pascal VOC set; give the folder of one")
        for file in sorted((base / "ImageSets" / "Main").glob("*.txt")):
            split = split_of(file.stem)
            if split:
                found[split] = Source(file, (pictures,), functools.partial(_read, file, pictures, annotations))
        whole_set = functools.partial(_read, None, pictures, annotations)
        found = found or {"": Source(annotations, (pictures,), whole_set)}
    if not found:
        for child in folders(root):
            split = split_of(child.name)
            if split and next(child.glob("*.xml"), None) is not None:
                found[split] = Source(child, (child,), functools.partial(_read, None, child, child, above=root))
    return found


def _read(file: Path | None, pictures: Path, annotations: Path, faults: Faults, above: Path | None = None) -> Content:
    """What the XML files of the images that a file names hold, or of all."""
    by_name = {str(path.relative_to(pictures).with_suffix("")): path for path in image_files(pictures)}
    names = list(by_name)
    if file is not None:
        names = list(dict.fromkeys(line.split()[0] for line in read_text(file).splitlines() if line.strip()))
    # classes are those of all splits, so that each has the same
    everywhere = [path for path in sorted((above or annotations).rglob("*.xml"))]
    parsed: dict[Path, ElementTree.Element] = {}
    labels: set[str] = set()
    for path in everywhere:
        try:
            parsed[path] = _parse(path)
            labels |= {one for one in map(_name, parsed[path].iter("object")) if one}
        except ValueError as error:
            faults.add(error)
    ids = {name: i for i, name in enumerate(class_names(labels), 1)}
    content = Content([], [], [{"id": i, "name": name} for name, i in ids.items()], [], [])
    shift = _first_pixel(parsed.values())
    for name in names:
        image = by_name.get(name) or by_name.get(str(Path(name).with_suffix("")))
        if image is None:
            faults.add(f"image {name}: no file of that name in {pictures}")
            continue
        try:
            width, height = upright_size(image)
        except ValueError as error:
            faults.add(f"image {name}: {error}")
            continue
        path = _xml(image, pictures, annotations)
        if path in parsed and (fault := _other_size(parsed[path], width, height)):
            faults.add(f"image {name}: {path.name}: {fault}")
            continue
        image_id = len(content.images) + 1
        name = image.relative_to(pictures).as_posix()
        content.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        content.paths.append(image)
        for i, one in enumerate(parsed[path].iter("object") if path in parsed else (), 1):
            here = f"{path.name} object {i}"
            try:
                x0, y0, x1, y1 = _corners(one)
                difficult = flag(one.findtext("difficult") or 0)
            except Wrong as error:
                faults.add(f"{here}: {error}")
                continue
            if not (label := _name(one)):
                faults.add(f"{here}: no name")
                continue
            box = [x0 - shift, y0 - shift, x1 - x0 + shift, y1 - y0 + shift]
            own = {"image_id": image_id, "category_id": ids[label], "bbox": box, "iscrowd": int(difficult)}
            content.annotations.append(own)
            content.where.append(here)
    with_image = {_xml(path, pictures, annotations) for path in by_name.values()}
    if lone := sorted(path for path in parsed if above is None and path not in with_image):
        logger.warning("%d XML files have no image and are left out, %s for one", len(lone), lone[0].name)
    return content


def _xml(image: Path, pictures: Path, annotations: Path) -> Path:
    return annotations / f"{image.relative_to(pictures).with_suffix('')}.xml"


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
    """What is wrong with the size that an XML file says; "" if it is the picture's, 0 or missing."""
    found = [(root.findtext(f"size/{name}") or "").strip() for name in ("width", "height")]
    try:
        wrong = any(text and number(text) not in (0, size) for text, size in zip(found, (width, height), strict=True))
    except Wrong as error:
        return f"size is {shown(found)}, expected two numbers ({error})"
    return f"the picture is {width}x{height} px upright, size says {'x'.join(found)}" if wrong else ""


def _name(one: ElementTree.Element) -> str:
    return (one.findtext("name") or "").strip()


def _corners(one: ElementTree.Element) -> list[float]:
    """xmin, ymin, xmax, ymax."""
    box = one.find("bndbox")
    if box is None:
        raise Wrong("no bndbox")
    found = [(box.findtext(name) or "").strip() for name in ("xmin", "ymin", "xmax", "ymax")]
    try:
        corners = [number(value) for value in found]
    except Wrong as error:
        raise Wrong(f"bndbox is {shown(found)}, expected four numbers ({error})") from None
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise Wrong(f"bndbox is {shown(found)}, expected xmin <= xmax and ymin <= ymax")
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
