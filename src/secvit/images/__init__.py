"""Images that every application trains on: files read safely, labelled sources, fixed splits."""

from secvit.images.check import check_examples, check_overlap, describe, load_checked
from secvit.images.labelled import Images, check_skipped
from secvit.images.read import EXTENSIONS, open_image, read_image, to_rgb, upright_size
from secvit.images.sources import load_split, register_layout, splits
from secvit.images.view import Transform, View, middle, seeded, skipped_in

__all__ = [
    "EXTENSIONS",
    "Images",
    "Transform",
    "View",
    "check_examples",
    "check_overlap",
    "check_skipped",
    "describe",
    "load_checked",
    "load_split",
    "middle",
    "open_image",
    "read_image",
    "register_layout",
    "seeded",
    "skipped_in",
    "splits",
    "to_rgb",
    "upright_size",
]
