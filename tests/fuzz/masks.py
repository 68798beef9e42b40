"""Folders of images and masks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from secvit.segmentation.data import load
from tests.fuzz.case import Case
from tests.fuzz.mutate import damaged, replaced

NAMES = ("sky", "Straße", "a tree")
LAYOUTS = ("{0}|{0}_label", "images/{0}|masks/{0}", "{0}/images|{0}/masks", "img_dir/{0}|ann_dir/{0}")


class Masked(NamedTuple):
    """What a folder must give.  masks: classes of each image's pixels by stem, None where that is not known."""

    root: str
    split: str
    masks: dict[str, np.ndarray] | None
    classes: tuple[str, ...] | None = NAMES


def tree(rng: random.Random, root: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, tuple[Path, Path]]]:
    """Images and masks of two splits: the masks by split and stem, and the files by stem."""
    layout, truth, files = rng.choice(LAYOUTS), {}, {}
    for split in ("train", "val"):
        truth[split] = {}
        folders = [root / part for part in layout.format(split).split("|")]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(3):
            height, width, stem = rng.randint(4, 9), rng.randint(4, 9), f"{split[0]}{i}"
            mask = np.array([[rng.choice([0, 1, 2]) for _ in range(width)] for _ in range(height)], np.uint8)
            mask[0, :4] = 0, 1, 2, 255
            files[stem] = folders[0] / f"{stem}{rng.choice(['.png', '.jpg'])}", folders[1] / f"{stem}.png"
            Image.new("RGB", (width, height), (i, 99, 7)).save(files[stem][0])
            stored = Image.fromarray(mask)
            if rng.random() < 0.3:
                stored.putpalette(bytes(range(256)) * 3)
            stored.save(files[stem][1])
            truth[split][stem] = mask
    return truth, files


def make(rng: random.Random, folder: Path) -> Case:
    root = folder / "data"
    truth, files = tree(rng, root)
    (root / "classes.json").write_text(json.dumps({"classes": NAMES}))
    split = rng.choice(["train", "val"])
    stem = rng.choice(list(truth[split]))
    picture, path = files[stem]
    mask, meant, names = truth[split][stem], "wrong", (str(path), str(picture))
    known: dict[str, np.ndarray] | None = truth[split]
    kind = rng.choice(["form", "form", "pixels", "pixels", "bytes", "bytes", "files", "names"])
    change = kind
    if kind == "form":
        meant = "harmless"
        change = rng.choice(["as it is", "a hidden file", "Apple doubles", "a linked mask", "16 bits", "TIFF mask",
                             "turned image", "text beside"])  # fmt: skip
        if change == "a hidden file":
            (path.parent / ".DS_Store").write_bytes(b"Bud1")
            (path.parent / ".x.png").write_bytes(b"x")
        elif change == "Apple doubles":
            for one in (path, picture):
                one.with_name(f"._{one.name}").write_bytes(b"\0\5\x16\7")
        elif change == "text beside":
            (picture.parent / "notes.txt").write_text("x")
        elif change == "a linked mask":
            path.rename(folder / "behind.png")
            path.symlink_to(folder / "behind.png")
        elif change == "16 bits":
            Image.fromarray(mask.astype(np.uint16)).save(path)
        elif change == "TIFF mask":
            path.unlink()
            Image.fromarray(mask).save(path.with_suffix(".tif"))
        elif change == "turned image":
            exif = Image.Exif()
            exif[274] = 6
            stored = Image.new("RGB", mask.shape, (1, 2, 3))  # width is the upright height
            stored.save(picture, exif=exif)
    elif kind == "pixels":
        change = rng.choice(["another size", "a value that is no class", "colours", "a value above 255", "turned by a tag",
                             "floats", "two images of a name", "alpha"])  # fmt: skip
        if change == "another size":
            Image.fromarray(mask[:, :-1]).save(path)
        elif change == "a value that is no class":
            mask[1, 1] = rng.choice([3, 77, 254])
            Image.fromarray(mask).save(path)
        elif change in ("colours", "alpha"):
            Image.fromarray(mask).convert("RGB" if change == "colours" else "RGBA").save(path)
        elif change == "a value above 255":
            Image.fromarray(mask.astype(np.uint16) + rng.choice([256, 65_280])).save(path)
        elif change == "floats":
            path.unlink()
            path = path.with_suffix(".tif")
            Image.fromarray(mask.astype(np.float32) + 0.5).save(path)
            names = (str(path),)
        elif change == "turned by a tag" and mask.shape[0] != mask.shape[1]:
            exif = Image.Exif()
            exif[274] = 6
            Image.fromarray(mask).save(path, exif=exif)
            meant = "either"
        elif change == "two images of a name":
            Image.new("RGB", mask.shape[::-1]).save(picture.with_suffix(".bmp"))
            names = (stem,)
        else:
            change, meant = "as it is", "harmless"
    elif kind == "bytes":
        target = rng.choice([path, picture])
        change, data = damaged(rng, target.read_bytes())
        target.write_bytes(data)
        change, meant, known = f"{'mask' if target == path else 'image'}: {change}", "either", None
    elif kind == "files":
        target = rng.choice([path, picture])
        change = f"{'mask' if target == path else 'image'}: {replaced(rng, target)}"
        names = (str(path), str(picture), stem)
    elif kind == "names":
        change, meant = rng.choice(["Train", "validation", "upper-case endings"]), "harmless"
        if change == "upper-case endings":
            path.rename(path.with_suffix(".PNG"))
        else:  # other words for both splits
            words = (
                {"train": "Train", "val": "Val"} if change == "Train" else {"train": "training", "val": "validation"}
            )
            for old in sorted(root.rglob("*"), reverse=True):
                for word, new in words.items():
                    if old.is_dir() and (old.name == word or old.name == f"{word}_label"):
                        old.rename(old.with_name(old.name.replace(word, new)))
    return Case(change, meant, names if meant == "wrong" else (*names, str(root)), Masked(str(root), split, known))


def run(case: Case) -> str:
    known: Masked = case.data
    found = load(known.root, known.split)
    if known.classes is not None and tuple(found.classes) != known.classes:
        return f"classes {tuple(found.classes)}, not {known.classes}"
    if known.masks is not None and len(found) != len(known.masks):
        return f"{len(found)} masks, not {len(known.masks)}"
    for i, name in enumerate(found.images.names):
        mask = found.mask(i)
        if mask.size == 0 or not ((mask < len(found.classes)) | (mask == 255)).all():
            return f"{name}: values {np.unique(mask)[:9]} of {len(found.classes)} classes"
        if known.masks is not None and not np.array_equal(mask, known.masks[Path(name).stem]):
            return f"{name}: other classes than the mask says"
    return ""
