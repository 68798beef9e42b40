"""The scenes of `make` as other tools write them: background 0, squares 1, stripes 2, two ignored rows."""

import numpy as np
from PIL import Image

from secvit.segmentation.masks import VOID, voc_colour
from secvit.segmentation.standard_classes import CITYSCAPES
from tests.segmentation.make import save, scene

COLOURS = ((0, 0, 0), (250, 50, 83), (51, 221, 255))
NAMES = ("background", "square", "stripe")


def scenes(splits=("train", "val"), images=5):
    """split, number, pixels (H, W, 3), mask (H, W) with 255 in two rows."""
    for number, split in enumerate(splits):
        for i in range(images):
            pixels, mask = scene(100 * number + i)
            mask[:2] = 255
            yield split, i, pixels, mask


def coloured(mask, colours):
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)], table[255] = colours, VOID
    return table[mask]


def cvat(root, splits=("Train", "Validation")):
    """Segmentation mask 1.1 of a project: colours by labelmap.txt, lists by subset."""
    for split, i, pixels, mask in scenes(splits):
        save(root / "JPEGImages" / f"{split} {i}.png", pixels)
        save(root / "SegmentationClass" / f"{split} {i}.png", coloured(mask, COLOURS))
        save(root / "SegmentationObject" / f"{split} {i}.png", pixels)
        write_list(root, split, f'"{split} {i}"')
    lines = ["# label:color_rgb:parts:actions", *(f"{n}:{','.join(map(str, c))}::" for n, c in zip(NAMES, COLOURS))]
    (root / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return root


def cvat_task(root):
    """Of a task: one list, default.txt."""
    return cvat(root, ("default",))


def voc(root, indexed=True):
    """PASCAL VOC: masks in its palette, more images than masks, lists of both."""
    for split, i, pixels, mask in scenes():
        save(root / "JPEGImages" / f"{split}_{i}.jpg", pixels)
        save(root / "JPEGImages" / f"{split}_{i}_without.jpg", pixels)
        picture = Image.fromarray(mask)
        picture.putpalette([part for number in range(256) for part in voc_colour(number)])
        path = root / "SegmentationClass" / f"{split}_{i}.png"
        path.parent.mkdir(exist_ok=True)
        (picture if indexed else picture.convert("RGB")).save(path)
        for name in (split, "trainval"):
            write_list(root, name, f"{split}_{i}")
    return root


def voc_in_colours(root):
    return voc(root, indexed=False)


def roboflow(root, splits=("train", "valid")):
    for split, i, pixels, mask in scenes(splits):
        save(root / split / f"{i}_png.rf.abc.jpg", pixels)
        save(root / split / f"{i}_png.rf.abc_mask.png", np.where(mask == 255, 0, mask).astype(np.uint8))
        rows = "".join(f"{value}, {name}\n" for value, name in enumerate(NAMES))
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n" + rows)
    return root


def roboflow_train_alone(root):
    return roboflow(root, ("train",))


def cityscapes(root, kind="labelTrainIds"):
    ids = np.full(256, 255, np.uint8)
    ids[:3] = [0, 1, 2] if kind == "labelTrainIds" else [CITYSCAPES[i][1] for i in range(3)]
    ids[255] = 255 if kind == "labelTrainIds" else 4  # static, which is no class
    for split, i, pixels, mask in scenes():
        name = f"ulm/ulm_{i:06}_000019"
        save(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", pixels)
        labels = root / "gtFine" / split / f"{name}_gtFine_"
        save(labels.with_name(labels.name + f"{kind}.png"), ids[mask])
        save(labels.with_name(labels.name + "color.png"), pixels)
        save(labels.with_name(labels.name + "instanceIds.png"), mask.astype(np.uint16) * 1000)
    return root


def cityscapes_label_ids(root):
    return cityscapes(root, "labelIds")


def write_list(root, name, line):
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + line + "\n")
