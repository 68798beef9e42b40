"""Image folders: DIR/CLASS/*.jpg."""

from __future__ import annotations

from pathlib import Path

import torch

from secvit.images.labelled import Images
from secvit.images.read import EXTENSIONS


def read_folder(path: Path, name: str) -> Images:
    """The images below a folder of class folders."""
    classes = folder_classes(path)
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
    return Images(name, classes, torch.tensor(labels), None, tuple(names), root=str(path))


def folder_classes(path: Path) -> tuple[str, ...]:
    """The names of the class folders in order."""
    classes = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"{path}: {len(classes)} class folders; expected at least two, each with its images")
    return tuple(classes)
