"""Where labelled images come from: folders, npz files of encoded images, scikit-learn's digits.

DIR/train/CLASS/*.jpg, DIR/val/..., DIR/test/...     folders
DIR/CLASS/*.jpg                                      folders, a part is held out
DIR/train.npz, DIR/val.npz, DIR/test.npz             npz (keys: jpeg offset label name classes)
FILE.npz                                             one npz, a part is held out
"digits"                                             1,797 real handwritten digits, 8x8 px
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from secvit.images import EXTENSIONS, read_image

logger = logging.getLogger(__name__)

HELD_OUT = 0.15
KEYS = ("jpeg", "offset", "label", "classes")


@dataclass(frozen=True)
class Images:
    """Labelled images, either in memory as uint8 pixels (n, 3, H, W) or as names of files."""

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    pixels: Tensor | None
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image; a broken file is a ValueError that names it."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].permute(1, 2, 0).numpy())
        return read_image(self.names[index])

    @property
    def majority(self) -> float:
        """Accuracy of always answering the most frequent class."""
        return float(self.labels.bincount().max()) / len(self)


def load_split(data: str | Path, split: str = "train") -> Images:
    """One split ("train", "val" or "test") of the data at a path, checked from end to end.

    Without a split of its own, "val" is held out from "train": a fixed stratified 15 %.
    """
    if str(data) == "digits":
        return _digits(split)
    path = Path(data)
    if not path.exists():
        raise ValueError(f'{path}: no such data; give a folder, an .npz file or "digits"')
    npz = path.suffix == ".npz" or any(path.glob("*.npz"))
    if path.suffix == ".npz" or (not npz and not any((path / s).is_dir() for s in SPLITS)):
        whole = _npz(path, path.stem) if npz else _folder(path, path.name)
        return _held_out(whole, split)
    parts = {s: p for s in SPLITS if (p := path / (f"{s}.npz" if npz else s)).exists()}
    if "train" not in parts:
        raise ValueError(f"{path}: has {', '.join(parts)} but no train; add it")
    load = _npz if npz else _folder
    if split in parts:
        images = load(parts[split], split)
        if split != "train":
            _same_classes(images, _classes(parts["train"]), parts[split], parts["train"])
        elif "val" not in parts and "test" not in parts:
            return _held_out(images, split)
        return images
    if split == "val" and "test" not in parts:
        return _held_out(load(parts["train"], "train"), split)
    raise ValueError(f"{path}: has no split {split!r}, only {', '.join(parts)}")


SPLITS = ("train", "val", "test")


def splits(data: str | Path) -> tuple[str, ...]:
    """The splits that `load_split` can give."""
    path = Path(data)
    found = [s for s in SPLITS if (path / s).is_dir() or (path / f"{s}.npz").exists()]
    return tuple(found) if len(found) > 1 else ("train", "val")


# -- folders -----------------------------------------------------------------------------------


def _folder(path: Path, name: str) -> Images:
    classes = _classes(path)
    names, labels = [], []
    for label, folder in enumerate(classes):
        files = sorted(f for f in (path / folder).rglob("*") if f.suffix.lower() in EXTENSIONS and f.is_file())
        if not files:
            raise ValueError(
                f"{path / folder}: class folder without images ({' '.join(EXTENSIONS)}); "
                "add images or remove the folder"
            )
        names += [str(f) for f in files]
        labels += [label] * len(files)
    return Images(name, classes, torch.tensor(labels), None, tuple(names))


def _classes(path: Path) -> tuple[str, ...]:
    if path.suffix == ".npz":
        return tuple(str(c) for c in _open(path)["classes"])
    classes = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"{path}: {len(classes)} class folders; expected at least two, each with its images")
    return tuple(classes)


def _same_classes(images: Images, wanted: Sequence[str], path: Path, train: Path) -> None:
    if images.classes != tuple(wanted):
        extra = sorted(set(images.classes) - set(wanted))
        lacking = sorted(set(wanted) - set(images.classes))
        raise ValueError(
            f"{path}: {len(images.classes)} classes, but {train} has {len(wanted)}"
            + (f"; only here: {', '.join(extra[:3])}" if extra else "")
            + (f"; missing here: {', '.join(lacking[:3])}" if lacking else "")
            + ("; in another order" if not extra and not lacking else "")
        )


# -- npz of encoded images -----------------------------------------------------------------------


def _open(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [k for k in KEYS if k not in file]
            if missing:
                raise ValueError(f"lacks {', '.join(missing)}; it needs {', '.join(KEYS)}")
            return {k: file[k] for k in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, TypeError) as error:
        raise ValueError(f"{path}: not an npz of encoded images ({error})") from None


def _npz(path: Path, name: str) -> Images:
    found = _open(path)
    data, offset, label = found["jpeg"], found["offset"], found["label"]
    classes, entries = [str(c) for c in found["classes"]], found.get("name")
    if len(label) == 0 or len(offset) != len(label) + 1:
        raise ValueError(f"{path}: {len(label)} labels and {len(offset)} offsets; expected n and n + 1")
    if offset[0] != 0 or offset[-1] != len(data) or bool((np.diff(offset) < 0).any()):
        raise ValueError(f"{path}: offsets do not rise from 0 to the {len(data)} bytes of `jpeg`")
    outside = np.flatnonzero((label < 0) | (label >= len(classes)))
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"{path}: entry {i} has label {label[i]}, outside 0..{len(classes) - 1} ({len(outside)} such entries)"
        )
    empty = sorted(set(range(len(classes))) - set(label.tolist()))
    if empty:
        raise ValueError(f"{path}: no image of class {classes[empty[0]]!r}; remove it from `classes`")
    raw, kept, skipped = data.tobytes(), [], []
    pixels: list[Tensor] = []
    for i in tqdm(range(len(label)), desc=f"decoding {path.name}", disable=None, leave=False):
        entry = f"{path}[{i}]" + (f" ({entries[i]})" if entries is not None else "")
        try:
            image = read_image(raw[int(offset[i]) : int(offset[i + 1])], entry)
        except ValueError as error:
            skipped.append(entry)
            logger.warning("skipped: %s", error)
            check_skipped(skipped, len(label))
            continue
        if pixels and image.size != (pixels[0].shape[2], pixels[0].shape[1]):
            raise ValueError(
                f"{entry}: {image.width}x{image.height} px, but the first is "
                f"{pixels[0].shape[2]}x{pixels[0].shape[1]}; use an image folder for mixed sizes"
            )
        pixels.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous())
        kept.append(i)
    names = tuple(str(entries[i]) if entries is not None else str(i) for i in kept)
    labels = torch.from_numpy(label[kept].astype(np.int64))
    return Images(name, tuple(classes), labels, torch.stack(pixels), names, tuple(skipped))


def check_skipped(skipped: Sequence[str], total: int) -> None:
    """More than 1 % of broken images (but at least two) is not bad luck any more."""
    if len(skipped) > max(1, total // 100):
        raise ValueError(
            f"{len(skipped)} broken images of {total}, which is too many to go on: "
            f"{', '.join(skipped[:3])}{', ...' if len(skipped) > 3 else ''}; repair the data"
        )


# -- digits ------------------------------------------------------------------------------------


def _digits(split: str) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('the digits come with scikit-learn; run: pip install "secvit[demo]"') from None
    found = load_digits()
    grey = torch.from_numpy(found.images).float()[:, None] * (255 / 16)
    # 4x larger, so that a network with strides 4 to 32 has something to look at
    large = torch.nn.functional.interpolate(grey, scale_factor=4.0, mode="bilinear")
    pixels = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(found.target.astype(np.int64))
    names = tuple(f"digit_{i:04d}" for i in range(len(labels)))
    whole = Images("digits", tuple("0123456789"), labels, pixels, names)
    return _held_out(whole, "val" if split == "test" else split)


def _held_out(images: Images, split: str) -> Images:
    """Split a whole set: the 15 % of each class with the lowest hash of the name are "val"."""
    if split not in ("train", "val"):
        raise ValueError(f"{images.name}: has no split {split!r}; its held-out part is called val")
    root = Path(images.names[0]).parents[1] if images.pixels is None else None
    chosen = []
    for label in range(len(images.classes)):
        members = (images.labels == label).nonzero().flatten().tolist()
        by_hash = sorted(
            members,
            key=lambda i: hashlib.sha1(
                (Path(images.names[i]).relative_to(root).as_posix() if root else images.names[i]).encode()
            ).digest(),
        )
        count = min(len(members) - 1, max(1, round(HELD_OUT * len(members))))
        chosen += by_hash[:count] if split == "val" else by_hash[count:]
    chosen.sort()
    logger.info(
        "%s: no splits given; %s is a fixed stratified part of %d of %d images",
        *(images.name, split, len(chosen), len(images)),
    )
    return Images(
        split,
        images.classes,
        images.labels[chosen],
        None if images.pixels is None else images.pixels[chosen],
        tuple(images.names[i] for i in chosen),
        images.skipped,
    )
