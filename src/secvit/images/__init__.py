"""Images that every application trains on: files read safely, labelled sources, fixed splits."""

from secvit.images.check import check_examples, check_overlap, check_splits, describe
from secvit.images.labelled import Images, check_skipped
from secvit.images.read import EXTENSIONS, read_image
from secvit.images.sources import load_split, splits
from secvit.images.view import View, centre_crop, seeded

__all__ = [
    "EXTENSIONS",
    "Images",
    "View",
    "centre_crop",
    "check_examples",
    "check_overlap",
    "check_skipped",
    "check_splits",
    "describe",
    "load_split",
    "read_image",
    "seeded",
    "splits",
]
