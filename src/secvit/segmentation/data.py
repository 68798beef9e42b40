"""Folders of pictures and masks: found, checked before the first step, read as classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from secvit.images import EXTENSIONS, Images, View, seeded, upright_size
from secvit.segmentation.augment import IGNORED, training_view
from secvit.segmentation.config import Augment
from secvit.train.sampler import mix
from secvit.train.shares import is_first

NAMED = 20  # faults that an error names
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
# where pictures and masks of a split lie
LAYOUTS = (
    ("images/{}", "annotations/{}"),
    ("images/{}", "masks/{}"),
    ("images/{}", "labels/{}"),
    ("img_dir/{}", "ann_dir/{}"),
    ("{}", "{}_label"),
    ("{}", "{}annot"),
    ("{}/images", "{}/masks"),
)
UNDIVIDED = (("images", "masks"), ("images", "annotations"), ("images", "labels"))
HELD_OUT = 0.15  # of an undivided set
MASKS = (".png", ".tif", ".tiff", ".bmp", ".gif")
ADE20K = ("images/training", "annotations/training")  # its masks count classes from 1, and 0 is unlabelled


@dataclass(frozen=True)
class Split:
    """Pictures with a mask each.

    masks: their files.  classes: names.  ignored: the value in masks that is no class, besides 255.
    palette: red, green and blue of each class in 0..255.
    """

    images: Images
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    ignored: int
    palette: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def table(self) -> np.ndarray:
        """The class of each value in a mask, (256,), 255 for what is ignored: other values count in rising order."""
        table = np.full(256, IGNORED, np.uint8)
        table[class_values(len(self.classes), self.ignored)] = np.arange(len(self.classes))
        return table

    def mask(self, i: int) -> np.ndarray:
        """The classes of a picture's pixels, (H, W), 255 where there is none."""
        return self.table[read_mask(self.masks[i])]


class Classes(NamedTuple):
    """What a data set says of its classes; None where it does not."""

    names: tuple[str, ...] | None
    ignored: int
    palette: tuple[tuple[int, ...], ...] | None


def class_values(count: int, ignored: int) -> list[int]:
    """The values in masks that stand for classes 0, 1, ..."""
    return [value for value in range(256) if value != ignored][:count]


def load(root: str | Path, split: str) -> Split:
    """A split ("train", "val" or "test"), checked.

    A ValueError names pictures without a mask, masks of another size or with values that are no class, and what
    cannot be read.  Of a set without splits, "val" is a fixed 15 %.
    """
    root = Path(root)
    images, masks = pairs(root, split)
    said = read_classes(root)
    names, palette = said.names, said.palette
    if names is None:  # as many as the training masks use
        own = masks if split == "train" else pairs(root, "train")[1]
        used = over(values_in, own, f"reading masks of {own[0].parent.name}")
        highest = max((value for values in used for value in values if value != IGNORED), default=0)
        if highest < 1:
            raise ValueError(f"{own[0].parent}: masks hold no class but 0; expected a class number for each pixel")
        names = tuple(str(value) for value in range(highest + 1) if value != said.ignored)
        palette = palette_of(own[0], class_values(len(names), said.ignored))
    check(images, masks, names, said.ignored)
    found = Images(split, names, torch.zeros(len(images)), None, tuple(map(str, images)), root=str(images[0].parent))
    return Split(found, masks, names, said.ignored, palette or voc_palette(len(names)))


def splits(root: str | Path) -> tuple[str, ...]:
    """The splits that `load` can give."""
    found = tuple(split for split in SPLITS if folders(Path(root), split, LAYOUTS))
    return found or (("train", "val") if folders(Path(root), "train", UNDIVIDED) else ())


def folders(root: Path, split: str, layouts: Sequence[tuple[str, str]]) -> tuple[Path, Path] | None:
    """The folders of a split's pictures and masks, if there are any."""
    for word in SPLITS.get(split, ()):
        for layout in layouts:
            images, masks = (root / part.format(word) for part in layout)
            if images.is_dir() and masks.is_dir():
                return images, masks
    return None


def pairs(root: Path, split: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The pictures of a split and their masks, which have the same names; a ValueError for one without the other."""
    if split not in (there := splits(root)):
        tried = ", ".join(" + ".join(layout).format(*[split] * 2) for layout in LAYOUTS)
        has = f"there is {', '.join(there)}" if there else f"looked for folders {tried}"
        raise ValueError(f"{root}: no {split} split; {has} (docs/segmentation.md)")
    divided = folders(root, split, LAYOUTS)
    images, masks = divided or folders(root, "train", UNDIVIDED)  # type: ignore[misc]
    pictures, drawn = by_name(images, EXTENSIONS), by_name(masks, MASKS)
    if not pictures:
        raise ValueError(f"{images}: no pictures; expected files ending in {', '.join(EXTENSIONS[:4])} ...")
    for kind, lonely, folder in (
        ("pictures without a mask", pictures.keys() - drawn.keys(), masks),
        ("masks without a picture", drawn.keys() - pictures.keys(), images),
    ):
        if lonely:
            shown = ", ".join(sorted(lonely)[:3])
            raise ValueError(f"{len(lonely)} {kind} of that name in {folder}: {shown}{', ...' * (len(lonely) > 3)}")
    order = sorted(pictures)
    if not divided:
        kept = set(sorted(order, key=by_hash)[: max(1, round(HELD_OUT * len(order)))])
        order = [name for name in order if (name in kept) == (split == "val")]
        if not order:
            raise ValueError(f"{images}: one picture cannot be divided into train and val; add more")
    return tuple(pictures[name] for name in order), tuple(drawn[name] for name in order)


def by_name(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Files by their path in the folder without the ending."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in endings and path.is_file())
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def by_hash(name: str) -> bytes:
    return hashlib.sha1(name.encode()).digest()


def read_classes(root: Path) -> Classes:
    """What classes.json, classes.txt (a name a line) or ADE20K's own table say.

    classes.json: {"classes": [...]} and, if wanted, "ignore_index": 255 and "palette": [[r, g, b], ...].
    """
    ade = all((root / part).is_dir() for part in ADE20K)
    file, ignored = root / "classes.json", 0 if ade else IGNORED
    if file.is_file():
        try:
            said = json.loads(file.read_text())
            names = tuple(str(name) for name in said["classes"])
            colours = said.get("palette")
            palette = tuple(tuple(int(c) for c in colour) for colour in colours)[: len(names)] if colours else None
            ignored = int(said.get("ignore_index", ignored))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{file}: expected {{"classes": ["sky", ...], "ignore_index": 255}}, found {error!r}'
            ) from None
        wrong = [c for c in palette or () if len(c) != 3 or not 0 <= min(c) <= max(c) < 256]
        if palette and (wrong or len(palette) < len(names)):
            raise ValueError(f"{file}: a palette needs red, green, blue in 0..255 for each of {len(names)} classes")
    elif (root / "classes.txt").is_file():
        file = root / "classes.txt"
        names, palette = tuple(line.strip() for line in file.read_text().splitlines() if line.strip()), None
    elif ade:
        return Classes(ade20k_names(root / "objectInfo150.txt"), ignored, None)
    else:
        return Classes(None, ignored, None)
    if not 2 <= len(names) <= 255 or len(set(names)) < len(names):
        raise ValueError(f"{file}: {len(names)} classes; expected 2 to 255 different names")
    return Classes(names, ignored, palette)


def ade20k_names(file: Path) -> tuple[str, ...]:
    """The 150 classes of ADE20K by the table that comes with it, else by number."""
    if not file.is_file():
        return tuple(str(i) for i in range(1, 151))
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    return tuple(row[-1].split(",")[0].strip() for row in rows if len(row) > 1)


# -- masks -------------------------------------------------------------------------------------


def read_mask(path: Path) -> np.ndarray:
    """The values of an indexed or grey picture of up to 255 classes, (H, W) uint8."""
    try:
        with Image.open(path) as opened:
            if opened.mode not in ("P", "L", "1", "I", "I;16"):
                raise ValueError(f"its pixels are {opened.mode} colours; expected a class number for each pixel")
            values = np.asarray(opened)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a mask that can be read ({error})") from None
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise ValueError(f"{path}: holds the value {values.max()}; expected class numbers of 0 to 254")
    return values.astype(np.uint8)


def values_in(mask: Path) -> tuple[int, ...]:
    """The different values in a mask; none where it cannot be read."""
    try:
        return tuple(np.bincount(read_mask(mask).ravel()).nonzero()[0].tolist())
    except ValueError:
        return ()


def over(work: Callable[[Any], Any], items: Sequence[Any], title: str) -> Iterator[Any]:
    """Some work on each item, with a bar; Pillow and numpy let threads run side by side."""
    with ThreadPoolExecutor() as pool:
        yield from tqdm(pool.map(work, items), title, len(items), disable=not is_first() or None, leave=False)


def check(images: Sequence[Path], masks: Sequence[Path], classes: Sequence[str], ignored: int) -> None:
    """A ValueError that names the pictures and masks that do not fit each other or the classes."""
    named, unseen = set(class_values(len(classes), ignored)), {ignored, IGNORED}
    labelled = []

    def fault(pair: tuple[Path, Path]) -> str:
        image, mask = pair
        try:
            size, values = upright_size(image), read_mask(mask)
        except ValueError as error:
            return str(error)
        if size != values.shape[::-1]:
            height, width = values.shape
            return f"{mask} is {width}x{height} px, {image.name} is {size[0]}x{size[1]} px upright"
        found = set(np.bincount(values.ravel()).nonzero()[0].tolist())
        labelled.append(bool(found & named))
        strange = ", ".join(map(str, sorted(found - named - unseen)[:5]))
        return f"{mask} holds {strange}, which is none of {len(classes)} classes" if strange else ""

    where = images[0].parent
    faults = [found for found in over(fault, list(zip(images, masks)), f"checking {where.name}") if found]
    if faults:
        more = f"\n  and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise ValueError(
            f"{where}: pictures and masks that cannot be used:\n  " + "\n  ".join(faults[:NAMED]) + more +
            "\nRepair or remove them; classes.json says which values are classes (docs/segmentation.md)"
        )  # fmt: skip
    if not any(labelled):
        raise ValueError(f"{masks[0].parent}: no pixel of any mask has a class; all hold {ignored} or {IGNORED}")


# -- colours -----------------------------------------------------------------------------------


def palette_of(mask: Path, values: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    """The colours that an indexed mask gives to some values; None where it gives them none or all the same."""
    with Image.open(mask) as opened:
        table = opened.getpalette() if opened.mode == "P" else None
    if not table or len(table) < 3 * (max(values) + 1):
        return None
    found = tuple(tuple(table[3 * v : 3 * v + 3]) for v in values)
    return found if len(set(found)) > 1 else None


def voc_palette(count: int) -> tuple[tuple[int, ...], ...]:
    """PASCAL VOC's colours of classes 1, 2, ...: far apart for near numbers."""

    def colour(number: int) -> tuple[int, ...]:
        bits = [number >> i & 1 for i in range(9)]
        return tuple(sum(bits[3 * j + c] << (7 - j) for j in range(3)) for c in range(3))

    return tuple(colour(i) for i in range(1, count + 1))


# -- batches -----------------------------------------------------------------------------------


class TrainView(View):
    """Batches {"image": (B, 3, S, S), "target": (B, S, S) of classes, 255 to be ignored} by sampler keys.

    What is drawn for a picture depends on (seed, key) alone.
    """

    def __init__(
        self, split: Split, augment: Augment, mean: Sequence[float], std: Sequence[float], seed: int = 0
    ) -> None:
        super().__init__(split.images, pil_to_tensor)
        self.split, self.augment, self.seed = split, augment, seed
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __getitems__(self, keys: list[int]) -> dict[str, Tensor]:
        pairs = [self.pair(key) for key in keys]
        images = torch.stack([image for image, _ in pairs])
        return {"image": images, "target": torch.stack([target for _, target in pairs])}

    def pair(self, key: int) -> tuple[Tensor, Tensor]:
        picture, i = self.open_or_next(key % len(self))
        with seeded(mix(self.seed, key)):
            return training_view(picture, self.split.mask(i), self.augment, self.mean, self.std)


class EvalView(View):
    """Batches {"image": pictures, "target": masks (H, W)} by index, as they are.  Broken pictures drop out."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.images, pil_to_tensor)
        self.split = split

    def __getitems__(self, keys: list[int]) -> dict[str, Any]:
        opened = {i: picture for i in keys if (picture := self.open(i)) is not None}
        return {"image": list(opened.values()), "target": [self.split.mask(i) for i in opened]}
