"""The classes of well-known data sets, whose files say less: ADE20K, PASCAL VOC, Cityscapes."""

from __future__ import annotations

from pathlib import Path

from secvit.segmentation.augment import IGNORED
from secvit.segmentation.masks import Colours, voc_colour
from secvit.segmentation.names import Named, lines_of


def ade20k(root: Path) -> Named:
    """ADE20K's 150 classes, 1 to 150 in masks, by the table that comes with it, else by number; 0 is no class."""
    file = root / "objectInfo150.txt"
    names = [str(i) for i in range(1, 151)]
    if file.is_file():
        rows = [line.split("\t")[-1].strip() for _, line in lines_of(file)[1:]]
        if len(rows) != len(names):
            raise ValueError(f"{file}: {len(rows)} classes below its first line; expected {len(names)}")
        short = [row.split(",")[0].strip() for row in rows]
        names = [row if short.count(one) > 1 else one for row, one in zip(rows, short)]
    return Named(str(file), tuple(names), tuple(range(1, 151)), (0, IGNORED))


VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def voc(root: Path) -> Named:
    """PASCAL VOC's own classes."""
    return Named(
        f"{root} (without labelmap.txt)",
        VOC_NAMES,
        tuple(range(len(VOC_NAMES))),
        (IGNORED,),
        tuple(voc_colour(i) for i in range(len(VOC_NAMES))),
    )


def voc_colours() -> Colours:
    """The number of each of PASCAL VOC's colours, 255 of VOID; indexed masks hold the numbers themselves."""
    return Colours.of({voc_colour(i): i for i in range(256)}, "PASCAL VOC's palette", everywhere=False)


# name, value in labelIds, colour; the place in this list is the value in labelTrainIds
CITYSCAPES = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)  # fmt: skip


def cityscapes(root: Path, train_ids: bool) -> Named:
    """Cityscapes' 19 classes, by the numbers of labelTrainIds or of labelIds, whose other numbers are no classes."""
    names, ids, palette = zip(*CITYSCAPES, strict=True)
    if train_ids:
        return Named(f"{root} (Cityscapes)", names, tuple(range(len(names))), (IGNORED,), palette)
    others = tuple(value for value in (*range(34), IGNORED) if value not in ids)
    return Named(f"{root} (Cityscapes)", names, ids, others, palette)
