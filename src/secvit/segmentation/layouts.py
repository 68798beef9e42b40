"""Where the images and masks of a data set lie: the known layouts.  docs/segmentation.md shows a tree of each.

Names of folders count in any case, and the words for splits are those of all tasks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from secvit.images.files import image_files, is_stray
from secvit.segmentation.folders import both_folders, folders_in, matching_folders
from secvit.segmentation.masks import Colours
from secvit.segmentation.names import Named, check_same, from_csv, read_names
from secvit.segmentation.pairs import CSV, Pairs, Place, find_pairs, is_mask, names_in, names_of_masks
from secvit.segmentation.standard_classes import ade20k, cityscapes, voc, voc_colours
from secvit.splits import SPLITS, check_like, held_out, is_joint, joint_is_train, split_of

logger = logging.getLogger(__name__)
# where images and masks of a split lie
LAYOUTS = (
    ("images/{}", "annotations/{}"),
    ("images/{}", "masks/{}"),
    ("images/{}", "labels/{}"),
    ("img_dir/{}", "ann_dir/{}"),
    ("{}", "{}_label"),
    ("{}", "{}annot"),
    ("{}", "{}_labels"),
    ("{}", "{}_masks"),
    ("{}/images", "{}/masks"),
)
PETS = ("images", "annotations/trimaps")
UNDIVIDED = (PETS, ("images", "masks"), ("images", "annotations"), ("images", "labels"))
ADE20K = ("images", "training", "annotations", "training")
VOC, VOC_LISTS = (("jpegimages", "segmentationclass"), ("jpegimages", "segmentationclasspng")), "imagesets/segmentation"
ROBOFLOW = "_mask"  # x.jpg has x_mask.png beside it
CITYSCAPES = (("leftimg8bit/{}", "gtfine/{}", "_gtFine"), ("leftimg8bit/{}", "gtcoarse/{}", "_gtCoarse"))
LOOKED_FOR = (
    *(" + ".join(layout) for layout in (*LAYOUTS, *UNDIVIDED)),
    "JPEGImages + SegmentationClass (CVAT, VOC)",
    "{}/NAME.jpg + {}/NAME_mask.png (Roboflow)",
    "leftImg8bit/{} + gtFine/{} (Cityscapes)",
)


@dataclass(frozen=True)
class Layout:
    """Places by split, "" for a set that is not divided; what it says of its classes; what colours in masks mean.

    ade20k: its folders are ADE20K's, where 0 is no class.
    """

    root: Path
    places: dict[str, Place]
    named: Callable[[], Named | None]
    colours: Colours | None = None
    ade20k: bool = False

    @property
    def undivided(self) -> bool:
        """Whether a part is held out: there are no splits, or train alone."""
        return self.places.keys() in ({""}, {"train"})

    @property
    def splits(self) -> tuple[str, ...]:
        if self.undivided:
            return SPLITS[:2]
        return tuple(split for split in SPLITS if split in self.places)

    def pairs(self, split: str) -> Pairs:
        """The images of a split and their masks; a ValueError for one without the other, or two of one name."""
        if split not in self.splits:
            there = ", ".join(self.splits)
            tried = ", ".join(LOOKED_FOR).replace("{}", split)
            has = f"there is {there}" if there else f"looked for folders {tried}{_deeper(self.root)}"
            raise ValueError(f"{self.root}: no {split} split; {has} (docs/segmentation.md)")
        place = next(iter(self.places.values())) if self.undivided else self.places[split]
        images, masks, left_out = find_pairs(place)
        order = sorted(images)
        if self.undivided:
            val = set(held_out(order).tolist())
            order = [name for i, name in enumerate(order) if (i in val) == (split == "val")]
            if not order:
                raise ValueError(f"{place.images}: one image cannot be divided into train and val; add more")
        # beside masks that are known by their endings, such sets have other files
        left_out.harmless |= {r for r in left_out.reasons if place.ends[1] or r.startswith("not listed")}
        return Pairs(tuple(images[name] for name in order), tuple(masks[name] for name in order), left_out)


def splits(root: str | Path) -> tuple[str, ...]:
    """The splits that `load` can give."""
    return find_layout(Path(root)).splits


def find_layout(root: Path) -> Layout:
    """The layout of a folder, without places where it is none that is known; a ValueError if it has two."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; check the path")
    layouts = [layout for find in (_by_kind, _voc, _roboflow, _cityscapes) if (layout := find(root))]
    if not layouts:
        return Layout(root, {}, partial(read_names, root))
    if len(layouts) > 1:
        names = " and ".join(_shown(root, next(iter(layout.places.values()))) for layout in layouts)
        raise ValueError(f"{root}: two sets in one folder, {names}; give each its own folder, or keep one")
    _check_halves(root, layouts[0].places)
    return layouts[0]


# -- layouts -------------------------------------------------------------------------------------


def _by_kind(root: Path) -> Layout | None:
    """Folders of images and folders of masks."""
    places = {split: place for split in SPLITS if (place := _place(root, LAYOUTS, split))}
    if not places and (place := _place(root, UNDIVIDED, "")):
        places = _pets(place) or {"": place}
    if not places:
        return None
    ade = "train" in places and _parts(places["train"]) == ADE20K
    return Layout(root, places, partial(_ade20k_names if ade else read_names, root), ade20k=ade)


def _pets(place: Place) -> dict[str, Place]:
    """The splits of Oxford-IIIT Pet, by annotations/trainval.txt and test.txt; {} without them."""
    if place.masks.name.casefold() != "trimaps":
        return {}
    files = _by_split(place.masks.parent, sorted(place.masks.parent.glob("*.txt")))
    return {split: replace(place, lists=(file,), columns=True) for split, file in files.items()}


def _by_split(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The list of each split, by the words of all tasks; a ValueError for two of one."""
    lists: dict[str, Path] = {}
    for file in files:
        split = split_of(file.stem) or ("both" if is_joint(file.stem) else None)
        if split in lists:
            what = "train and val" if split == "both" else split
            raise ValueError(f"{lists[split]} and {file.name} both list {what}; join them, or keep one")
        if split:
            lists[split] = file
    joint = lists.pop("both", None)
    if joint and joint_is_train(joint.name, lists, folder):
        lists["train"] = joint
    check_like({file.name: file.stem for file in files}, lists, folder)
    return lists


def _voc(root: Path) -> Layout | None:
    """JPEGImages, SegmentationClass and lists in ImageSets/Segmentation: PASCAL VOC, and what CVAT writes like it.

    labelme's masks lie in SegmentationClassPNG, beside arrays in SegmentationClass.
    """
    some = [both for layout in VOC if (both := both_folders(root, layout))]
    both = next((one for one in some if names_of_masks(one[1])), some[0] if some else None)
    if not both:
        return None
    files = [file for folder in matching_folders(root, VOC_LISTS, "") for file in sorted(folder.glob("*.txt"))]
    files = [file for file in files if not is_stray(file.name)]
    lists = _by_split(files[0].parent, files) if files else {}
    by_split: dict[str, tuple[Path, ...]] = {split: (file,) for split, file in lists.items()} or {"": tuple(files)}
    places = {split: Place(*both, lists=lists, partial=True) for split, lists in by_split.items()}
    return Layout(root, places, lambda: read_names(root) or voc(root), voc_colours())


def _roboflow(root: Path) -> Layout | None:
    """train/x.jpg with train/x_mask.png and train/_classes.csv."""
    folders = {split: both[0] for split in SPLITS if (both := both_folders(root, ("{}", "{}"), split))} or {"": root}
    places = {
        split: Place(folder, folder, ("", ROBOFLOW))
        for split, folder in folders.items()
        if any(is_mask(name, ROBOFLOW) for name in os.listdir(folder))
    }
    if not places:
        return None

    def named() -> Named | None:
        folders = [root, *(place.images for place in places.values())]
        files = [folder / CSV for folder in folders if (folder / CSV).is_file()]
        tables = {file: from_csv(file) for file in files}
        for file, one in tables.items():
            if (one.names, one.values) != (tables[files[0]].names, tables[files[0]].values):
                raise ValueError(f"{file}: other classes than {files[0]}; export all splits together")
        own, exported = read_names(root), tables[files[0]] if files else None
        if own and exported:
            check_same(own, exported)
        return own or exported

    return Layout(root, places, named)


def _cityscapes(root: Path) -> Layout | None:
    """leftImg8bit/train/CITY/x_leftImg8bit.png and gtFine/train/CITY/x_gtFine_labelTrainIds.png or _labelIds.png."""
    for images, masks, kind in CITYSCAPES:
        folders = {split: both for split in SPLITS if (both := both_folders(root, (images, masks), split))}
        if not folders:
            continue
        first = folders.get("train") or next(iter(folders.values()))
        ends = [kind + ids for ids in ("_labelTrainIds", "_labelIds")]
        train_ids = any(path.stem.endswith(ends[0]) for path in image_files(first[1]))
        end = ends[0] if train_ids else ends[1]
        places = {split: Place(*both, ends=("_leftImg8bit", end)) for split, both in folders.items()}
        return Layout(root, places, partial(_cityscapes_names, root, train_ids))
    return None


def _ade20k_names(root: Path) -> Named:
    return read_names(root) or ade20k(root)


def _cityscapes_names(root: Path, train_ids: bool) -> Named:
    return read_names(root) or cityscapes(root, train_ids)


def _parts(place: Place) -> tuple[str, ...]:
    return tuple(part.casefold() for folder in (place.images, place.masks) for part in folder.parts[-2:])


def _place(root: Path, layouts: Sequence[tuple[str, str]], split: str) -> Place | None:
    """The folders of a split's images and masks by the first layout that has both.

    A ValueError if another folder has masks of the same images: which of them are meant is not known.
    """
    pairs = [both for layout in layouts if (both := both_folders(root, layout, split))]
    if not pairs:
        return None
    first, *others = pairs
    for images, masks in others:
        theirs = names_of_masks(masks) & names_in(images, image_files(images))
        if images == first[0] and names_of_masks(first[1]) & theirs:
            names = " and ".join(str(folder.relative_to(root)) for folder in (first[1], masks))
            raise ValueError(f"{root}: two folders of masks of {images.relative_to(root)}: {names}; keep one")
        if images != first[0] and theirs:
            names = f"{_shown(root, Place(*first))} and {_shown(root, Place(images, masks))}"
            raise ValueError(f"{root}: two folders of {split or 'images'} with masks: {names}; keep one, or join them")
    return Place(*first)


# -- what is wrong with a folder -----------------------------------------------------------------


def _shown(root: Path, place: Place) -> str:
    """ "images/train + masks/train"."""
    return " + ".join(dict.fromkeys(str(folder.relative_to(root)) for folder in (place.images, place.masks)))


def _deeper(root: Path) -> str:
    """Where the data seem to lie, if that is a folder inside; "" if it is not."""
    for inside in folders_in(root):
        if any(find(inside) for find in (_by_kind, _voc, _roboflow, _cityscapes)):
            return f"; {inside} has them: give it as the data"
    return ""


def _check_halves(root: Path, places: Mapping[str, Place]) -> None:
    """What is called like a split and is none, because its masks, images or what it links to are not there.

    A ValueError where another split, or a part of train, would stand in for it; a warning for a test without masks.
    """
    if "train" not in places or any(place.lists for place in places.values()):
        return
    patterns = [pair for pair in (*LAYOUTS, *((images, masks) for images, masks, _ in CITYSCAPES), ("{}", "{}"))]
    for split in ("val", "test"):
        for images, masks in patterns if split not in places else ():
            half = [
                *matching_folders(root, images, split, links=True),
                *matching_folders(root, masks, split, links=True),
            ]
            if half and (split == "val" or any(not path.is_dir() for path in half)):
                raise ValueError(
                    f"{half[0]}: called like a {split} split, but it has no images with masks that can be read; add "
                    "them, or remove it"
                )
            if half:
                logger.warning("%s: no masks of test, so it is not used", half[0])
                break
    train = places["train"].images
    beside = train.parent.parent if train.name.casefold() == "images" else train.parent
    check_like({path.name: path.name for path in folders_in(beside)}, places, beside)
