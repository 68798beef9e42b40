"""Where the pictures and masks of a data set lie: the known layouts.  docs/segmentation.md shows a tree of each.

Names of folders count in any case, and the words for splits are those of all tasks.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from secvit.fields import Faults, read_text
from secvit.images.files import LeftOut, image_files, is_image, is_stray, kind_of
from secvit.segmentation.classes import Named, ade20k, check_same, cityscapes, from_csv, read_names, voc, voc_colours
from secvit.segmentation.masks import LOSSY, MASKS, Colours
from secvit.splits import SPLITS, check_like, held_out, is_joint, joint_is_train, split_of

logger = logging.getLogger(__name__)

# where pictures and masks of a split lie
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
ROBOFLOW, CSV = "_mask", "_classes.csv"  # x.jpg has x_mask.png beside it
CITYSCAPES = (("leftimg8bit/{}", "gtfine/{}", "_gtFine"), ("leftimg8bit/{}", "gtcoarse/{}", "_gtCoarse"))
LISTS = 1 << 28  # bytes that a list of names may have
LOOKED_FOR = (
    *(" + ".join(layout) for layout in (*LAYOUTS, *UNDIVIDED)),
    "JPEGImages + SegmentationClass (CVAT, VOC)",
    "{}/NAME.jpg + {}/NAME_mask.png (Roboflow)",
    "leftImg8bit/{} + gtFine/{} (Cityscapes)",
)


@dataclass(frozen=True)
class Place:
    """Where a split lies.

    ends: what names of pictures and of masks end with, before the ending, and which no name of the pair has.
    lists: files with the names that belong to it; all of them without.  partial: pictures may lack a mask.
    columns: a list has further words behind a name.
    """

    images: Path
    masks: Path
    ends: tuple[str, str] = ("", "")
    lists: tuple[Path, ...] = ()
    partial: bool = False
    columns: bool = False


@dataclass(frozen=True)
class Pairs:
    """Pictures and masks of a split, in order, and what was left out."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    left_out: LeftOut


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
        """The pictures of a split and their masks; a ValueError for one without the other, or two of one name."""
        if split not in self.splits:
            there = ", ".join(self.splits)
            tried = ", ".join(LOOKED_FOR).replace("{}", split)
            has = f"there is {there}" if there else f"looked for folders {tried}{_deeper(self.root)}"
            raise ValueError(f"{self.root}: no {split} split; {has} (docs/segmentation.md)")
        place = next(iter(self.places.values())) if self.undivided else self.places[split]
        pictures, masks, left_out = _files(place)
        order = sorted(pictures)
        if self.undivided:
            val = set(held_out(order).tolist())
            order = [name for i, name in enumerate(order) if (i in val) == (split == "val")]
            if not order:
                raise ValueError(f"{place.images}: one picture cannot be divided into train and val; add more")
        # beside masks that are known by their endings, such sets have other files
        left_out.harmless |= {r for r in left_out.reasons if place.ends[1] or r.startswith("not listed")}
        return Pairs(tuple(pictures[name] for name in order), tuple(masks[name] for name in order), left_out)


def splits(root: str | Path) -> tuple[str, ...]:
    """The splits that `load` can give."""
    return find_layout(Path(root)).splits


def find_layout(root: Path) -> Layout:
    """The layout of a folder, without places where it is none that is known; a ValueError if it has two."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; check the path")
    found = [layout for find in (_by_kind, _voc, _roboflow, _cityscapes) if (layout := find(root))]
    if not found:
        return Layout(root, {}, partial(read_names, root))
    if len(found) > 1:
        names = " and ".join(_shown(root, next(iter(layout.places.values()))) for layout in found)
        raise ValueError(f"{root}: two sets in one folder, {names}; give each its own folder, or keep one")
    _check_halves(root, found[0].places)
    return found[0]


# -- layouts -------------------------------------------------------------------------------------


def _by_kind(root: Path) -> Layout | None:
    """Folders of pictures and folders of masks."""
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
    found: dict[str, Path] = {}
    for file in files:
        split = split_of(file.stem) or ("both" if is_joint(file.stem) else None)
        if split in found:
            what = "train and val" if split == "both" else split
            raise ValueError(f"{found[split]} and {file.name} both list {what}; join them, or keep one")
        if split:
            found[split] = file
    joint = found.pop("both", None)
    if joint and joint_is_train(joint.name, found, folder):
        found["train"] = joint
    check_like({file.name: file.stem for file in files}, found, folder)
    return found


def _shown(root: Path, place: Place) -> str:
    """ "images/train + masks/train"."""
    return " + ".join(dict.fromkeys(str(folder.relative_to(root)) for folder in (place.images, place.masks)))


def _deeper(root: Path) -> str:
    """Where the data seem to lie, if that is a folder inside; "" if it is not."""
    for inside in _folders(root):
        if any(find(inside) for find in (_by_kind, _voc, _roboflow, _cityscapes)):
            return f"; {inside} has them: give it as the data"
    return ""


def _check_halves(root: Path, places: Mapping[str, Place]) -> None:
    """What is called like a split and is none, because its masks, pictures or what it links to are not there.

    A ValueError where another split, or a part of train, would stand in for it; a warning for a test without masks.
    """
    if "train" not in places or any(place.lists for place in places.values()):
        return
    patterns = [pair for pair in (*LAYOUTS, *((images, masks) for images, masks, _ in CITYSCAPES), ("{}", "{}"))]
    for split in ("val", "test"):
        for images, masks in patterns if split not in places else ():
            half = [*_matching(root, images, split, links=True), *_matching(root, masks, split, links=True)]
            if half and (split == "val" or any(not path.is_dir() for path in half)):
                raise ValueError(
                    f"{half[0]}: called like a {split} split, but it has no pictures with masks that can be read; add "
                    "them, or remove it"
                )
            if half:
                logger.warning("%s: no masks of test, so it is not used", half[0])
                break
    train = places["train"].images
    beside = train.parent.parent if train.name.casefold() == "images" else train.parent
    check_like({path.name: path.name for path in _folders(beside)}, places, beside)


def _place(root: Path, layouts: Sequence[tuple[str, str]], split: str) -> Place | None:
    """The folders of a split's pictures and masks by the first layout that has both.

    A ValueError if another folder has masks of the same pictures: which of them are meant is not known.
    """
    found = [both for layout in layouts if (both := _both(root, layout, split))]
    if not found:
        return None
    first, *others = found
    for images, masks in others:
        theirs = _names_of_masks(masks) & _names(images, image_files(images))
        if images == first[0] and _names_of_masks(first[1]) & theirs:
            names = " and ".join(str(folder.relative_to(root)) for folder in (first[1], masks))
            raise ValueError(f"{root}: two folders of masks of {images.relative_to(root)}: {names}; keep one")
        if images != first[0] and theirs:
            names = f"{_shown(root, Place(*first))} and {_shown(root, Place(images, masks))}"
            raise ValueError(
                f"{root}: two folders of {split or 'pictures'} with masks: {names}; keep one, or join them"
            )
    return Place(*first)


def _names(folder: Path, files: Sequence[Path]) -> set[str]:
    return {path.relative_to(folder).with_suffix("").as_posix() for path in files}


def _names_of_masks(folder: Path) -> set[str]:
    return _names(folder, [path for path in image_files(folder) if _is_mask(path.name, "")])


def _both(root: Path, layout: tuple[str, str], split: str = "") -> tuple[Path, Path] | None:
    """The two folders that patterns like "images/{}" mean; a ValueError if one of them is there twice."""
    images, masks = (_matching(root, pattern, split) for pattern in layout)
    if not images or not masks:
        return None
    for found, pattern in ((images, layout[0]), (masks, layout[1])):
        if len(found) > 1:
            names = ", ".join(str(folder.relative_to(root)) for folder in found)
            raise ValueError(f"{root}: {len(found)} folders for {split or pattern}: {names}; keep one, or join them")
    return images[0], masks[0]


def _matching(root: Path, pattern: str, split: str, links: bool = False) -> list[Path]:
    """The folders that a pattern means; with `links`, also links to nothing."""
    found = [root]
    for part in pattern.split("/"):
        above = [folder for folder in found if folder.is_dir()]
        found = [folder for one in above for folder in _folders(one, links) if _means(folder.name, part, split)]
    return found


def _parts(place: Place) -> tuple[str, ...]:
    return tuple(part.casefold() for folder in (place.images, place.masks) for part in folder.parts[-2:])


def _means(name: str, part: str, split: str) -> bool:
    """Whether a folder's name is a part of a pattern: "Train_label" is "{}_label" of train."""
    name = name.casefold()
    before, mark, after = part.partition("{}")
    if not mark:
        return name == part
    return name.endswith(after) and split_of(name[len(before) : len(name) - len(after)]) == split


def _folders(above: Path, links: bool = False) -> list[Path]:
    kinds = ("folder", "broken links") if links else ("folder",)
    try:
        entries = [entry for entry in os.scandir(above) if not is_stray(entry.name)]
        return sorted(Path(entry.path) for entry in entries if kind_of(entry) in kinds)
    except OSError as error:
        raise ValueError(f"{above}: cannot be read ({error.strerror}); check its permissions") from None


def _voc(root: Path) -> Layout | None:
    """JPEGImages, SegmentationClass and lists in ImageSets/Segmentation: PASCAL VOC, and what CVAT writes like it.

    labelme's masks lie in SegmentationClassPNG, beside arrays in SegmentationClass.
    """
    some = [both for layout in VOC if (both := _both(root, layout))]
    both = next((one for one in some if _names_of_masks(one[1])), some[0] if some else None)
    if not both:
        return None
    files = [file for folder in _matching(root, VOC_LISTS, "") for file in sorted(folder.glob("*.txt"))]
    files = [file for file in files if not is_stray(file.name)]
    lists = _by_split(files[0].parent, files) if files else {}
    by_split: dict[str, tuple[Path, ...]] = {split: (file,) for split, file in lists.items()} or {"": tuple(files)}
    places = {split: Place(*both, lists=lists, partial=True) for split, lists in by_split.items()}
    return Layout(root, places, lambda: read_names(root) or voc(root), voc_colours())


def _roboflow(root: Path) -> Layout | None:
    """train/x.jpg with train/x_mask.png and train/_classes.csv."""
    folders = {split: both[0] for split in SPLITS if (both := _both(root, ("{}", "{}"), split))} or {"": root}
    places = {
        split: Place(folder, folder, ("", ROBOFLOW))
        for split, folder in folders.items()
        if any(_is_mask(name, ROBOFLOW) for name in os.listdir(folder))
    }
    if not places:
        return None

    def named() -> Named | None:
        folders = [root, *(place.images for place in places.values())]
        files = [folder / CSV for folder in folders if (folder / CSV).is_file()]
        said = {file: from_csv(file) for file in files}
        for file, one in said.items():
            if (one.names, one.values) != (said[files[0]].names, said[files[0]].values):
                raise ValueError(f"{file}: other classes than {files[0]}; export all splits together")
        own, exported = read_names(root), said[files[0]] if files else None
        if own and exported:
            check_same(own, exported)
        return own or exported

    return Layout(root, places, named)


def _cityscapes(root: Path) -> Layout | None:
    """leftImg8bit/train/CITY/x_leftImg8bit.png and gtFine/train/CITY/x_gtFine_labelTrainIds.png or _labelIds.png."""
    for images, masks, kind in CITYSCAPES:
        folders = {split: both for split in SPLITS if (both := _both(root, (images, masks), split))}
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


# -- files ---------------------------------------------------------------------------------------


def _files(place: Place) -> tuple[dict[str, Path], dict[str, Path], LeftOut]:
    """Pictures and masks by name: the path in their folder without what the two differ in."""
    left_out = LeftOut()
    files = image_files(place.images, left_out)
    beside = files if place.masks == place.images else image_files(place.masks, left_out)
    ours, masks = place.ends
    others = [path for path in beside if not _is_mask(path.name, masks)]
    pictures = [path for path in files if path.stem.endswith(ours)]
    if beside is files:
        pictures = [path for path in pictures if not _is_mask(path.name, masks)]
    else:
        left_out.add(f"not ending in {ours}", len(files) - len(pictures))
        left_out.add(f"not ending in {masks}" if masks else "of a lossy format among the masks", len(others))
    drawn = [path for path in beside if _is_mask(path.name, masks)]
    found = _by_name(place.images, pictures, ours), _by_name(place.masks, drawn, masks)
    if end := _common_end(*found) if not masks else "":
        logger.info("%s: the names of masks end in %s, those of pictures do not", place.masks, end)
        found = found[0], {name.removesuffix(end): path for name, path in found[1].items()}
    if (place.images / CSV).is_file():
        left_out.reasons -= Counter(["of another ending (.csv)"])  # it is read elsewhere
    if not found[0]:
        raise ValueError(f"{place.images}: no pictures; expected files ending in .jpg, .png ...")
    if place.lists:
        found = _listed(place, *found, left_out)
    if place.partial:
        left_out.add("without a mask", len(found[0].keys() - found[1].keys()))
        found = {name: path for name, path in found[0].items() if name in found[1]}, found[1]
        if not found[0]:
            raise ValueError(f"{place.masks}: no mask has the name of a picture in {place.images}")
    _check_lonely(place, *found, [] if beside is files else others)
    return *found, left_out


def _common_end(pictures: Collection[str], masks: Collection[str]) -> str:
    """What all names of masks have behind the names of pictures, like "_mask"; "" if that is nothing or not sure."""
    if not pictures or not masks or any(name in masks for name in pictures):
        return ""
    order, ends = sorted(masks), set[str]()
    for name in sorted(pictures):
        start = end = bisect_left(order, name)
        while end < len(order) and order[end].startswith(name):
            end += 1
        if end > start:  # of the first picture that has some
            ends = {mask.removeprefix(name) for mask in order[start:end]}
            break
    sure = [one for one in ends if not one[0].isalnum() and all(mask.endswith(one) for mask in masks)]
    own = [one for one in sure if sum(name + one in masks for name in pictures) > len(masks) / 2]
    return own[0] if len(own) == 1 else ""


def _is_mask(name: str, end: str) -> bool:
    stem, ending = os.path.splitext(name)
    return ending.lower() in MASKS and stem.endswith(end) and not is_stray(name)


def _by_name(folder: Path, files: Sequence[Path], end: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    faults = Faults(f"{folder}: files of one name, which is that of one picture and its mask")
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(end)
        if name in found:
            faults.add(f"{found[name].relative_to(folder)} and {path.relative_to(folder)}")
        found[name] = path
    faults.check("Keep one of each, or rename one with its mask")
    return found


def _listed(
    place: Place, pictures: dict[str, Path], masks: dict[str, Path], left_out: LeftOut
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Those that stand in the split's lists, a name a line."""
    wanted: dict[str, None] = {}
    for file in place.lists:
        faults = Faults(file)
        for number, line in enumerate(read_text(file, LISTS).splitlines(), 1):
            name = line.strip().strip('"').replace("\\", "/")
            name = name.partition(" ")[0] if place.columns else name
            name = os.path.splitext(name)[0] if name not in pictures and is_image(name) else name
            if name and name not in pictures:
                faults.add(f"line {number}: {name[:80]!r} has no picture in {place.images}")
            elif name:
                wanted[name] = None
        faults.check("Add the pictures, or take the names out")
    if not wanted:
        raise ValueError(f"{place.lists[0]}: lists no picture; write the name of one a line")
    left_out.add(
        f"not listed in {', '.join(file.name for file in place.lists)}",
        len(pictures.keys() - wanted.keys()) + len(masks.keys() - wanted.keys()),
    )
    return (
        {name: path for name, path in pictures.items() if name in wanted},
        {name: path for name, path in masks.items() if name in wanted},
    )


def _check_lonely(place: Place, pictures: dict[str, Path], masks: dict[str, Path], others: Sequence[Path]) -> None:
    for kind, lonely, folder in (
        ("pictures without a mask", pictures.keys() - masks.keys(), place.masks),
        ("masks without a picture", masks.keys() - pictures.keys(), place.images),
    ):
        if lonely:
            shown = ", ".join(sorted(lonely)[:3])
            formats = {_format(p) for p in others if _is_lossy(p) and _names(place.masks, [p]) & lonely}
            why = ""
            if folder is place.masks and formats:
                of = " and ".join(sorted(formats))
                why = f"; there are {of} files of these names, which change the values of pixels: export masks as PNG"
            raise ValueError(
                f"{len(lonely)} {kind} of that name in {folder}: {shown}{', ...' * (len(lonely) > 3)}{why}"
            )


def _is_lossy(path: Path) -> bool:
    return path.suffix.lower() in LOSSY


def _format(path: Path) -> str:
    """What people call the lossy format of a file."""
    ending = path.suffix.lower()
    if ending.startswith((".jp2", ".j2", ".jpc", ".jpf", ".jpx")):
        return "JPEG 2000"
    return {".webp": "WebP", ".avif": "AVIF", ".avifs": "AVIF"}.get(ending, "JPG")
