"""COCO JSON: loaded, every sample made as training will see it, and scored with perfect detections."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as rle
from PIL import Image

from secvit.detection.data import load
from secvit.detection.evaluate import average_precision
from secvit.detection.view import TrainView
from tests.fuzz.case import Case
from tests.fuzz.mutate import ODD, changed, damaged, meant_number, no_json, replaced, written

SIDE = 32
Content = dict[str, Any]
SHAPES: tuple[Any, ...] = (
    {"size": [SIDE, SIDE], "counts": "x"}, {"size": [SIDE, SIDE], "counts": "PPPPPPPPPPPPP0"}, [[0] * 6], [[1e9] * 8],
    {"size": [SIDE, SIDE], "counts": [10**30]}, {"size": "a", "counts": []}, {"counts": "é"}, [[1, 1, 31, 1, 31, 31] * 50],
    [1, 1, 9, 1, 9, 9], [[1, 2], [3, 4], [5, 6]], [1, 1, 0, 0], [1, 1, -3, 4], [0, 0, 1e-9, 5], [31.999999, 1, 1, 1],
    [[float("nan")] * 6], {"size": [SIDE, SIDE], "counts": [-5, 1029]}, [5, 5, float("inf"), 5],
)  # fmt: skip


class Objects(NamedTuple):
    """What a folder must give: its split, the content of the JSON as it is meant, the images' folder."""

    root: Path
    split: str
    content: Any
    drop: bool
    masks: bool


def base(rng: random.Random) -> Content:
    """Four images, three of them with rectangles of two classes, as polygons and run lengths."""
    first = rng.choice([0, 1, 10])
    images = [{"id": first + i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(4)]
    annotations = []
    for k in range(6):
        x, y, w, h = (rng.randint(*limits) for limits in ((0, 12), (0, 12), (3, 18), (3, 18)))
        shape: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if k % 3 == 0:
            pixels = np.zeros((SIDE, SIDE), np.uint8)
            pixels[y : y + h, x : x + w] = 1
            flat = pixels.T.ravel()
            ends = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff([0, *ends.tolist(), flat.size]).tolist()
            shape = {"size": [SIDE, SIDE], "counts": counts if flat[0] == 0 else [0, *counts]}
        annotations.append(
            {"id": 1 + k, "image_id": images[k % 3]["id"], "category_id": (3, 7)[k % 2], "bbox": [x, y, w, h],
             "area": w * h, "iscrowd": 0, "segmentation": shape}
        )  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}],
    }


# -- changes that are known to be harmless, or wrong -------------------------------------------


def _number(content: Content, name: str, new: Callable[[int], Any]) -> None:
    """Give the entries of a list other ids, and those that refer to them too."""
    ids = {one["id"]: new(i) for i, one in enumerate(content[name])}
    for one in content[name]:
        one["id"] = ids[one["id"]]
    reference = {"images": "image_id", "categories": "category_id"}.get(name)
    for one in content["annotations"] if reference else ():
        one[reference] = ids[one[reference]]


def harmless(rng: random.Random, content: Content) -> str:
    changes: dict[str, Callable[[], Any]] = {
        "as it is": lambda: None,
        "annotation ids from 0": lambda: _number(content, "annotations", lambda i: i),
        "annotation ids with gaps": lambda: _number(content, "annotations", lambda i: 10**12 - 7 * i),
        "image ids with gaps": lambda: _number(content, "images", lambda i: 10**9 + 13 * (3 - i)),
        "category ids from 0": lambda: _number(content, "categories", lambda i: i),
        "no areas": lambda: [one.pop("area") for one in content["annotations"]],
        "no iscrowd": lambda: [one.pop("iscrowd") for one in content["annotations"]],
        "shuffled annotations": lambda: rng.shuffle(content["annotations"]),
        "shuffled images": lambda: rng.shuffle(content["images"]),
        "more fields": lambda: content.update(info={"year": 2020}, licenses=[{"id": 1}], type="instances"),
        "fields of others": lambda: [one.update(attributes={"occluded": False}) for one in content["annotations"]],
        "boxes as floats": lambda: [one.update(bbox=[float(x) for x in one["bbox"]]) for one in content["annotations"]],
        "a crowd": lambda: content["annotations"][0].update(iscrowd=1),
    }
    change = rng.choice(list(changes))
    changes[change]()
    return change


def wrong(rng: random.Random, content: Content) -> tuple[str, tuple[str, ...]]:
    """What was made wrong, and what an error must name of it."""
    at = rng.randrange(len(content["annotations"]))
    one, image = content["annotations"][at], rng.choice(content["images"][:3])
    polygon = rng.choice([a for a in content["annotations"] if isinstance(a["segmentation"], list)])
    runs = rng.choice([a for a in content["annotations"] if isinstance(a["segmentation"], dict)])
    odd = rng.choice([float("nan"), float("inf"), -float("inf"), 10**400, "x", None, [], True])
    place = rng.randrange(4)

    def put(entry: Content, name: str, value: Any) -> tuple[str, ...]:
        entry[name] = value
        kind = "annotation" if "bbox" in entry else "image"
        return f"{kind} {entry['id']!r}", f"{kind} {entry['id']}", f"{kind}s[{at}]", f"entry {at}"

    def twice(name: str) -> tuple[str, ...]:
        content[name][1]["id"] = content[name][0]["id"]
        return (str(content[name][0]["id"]),)

    corners = [*one["bbox"][:place], odd, *one["bbox"][place + 1 :]]
    points = list(polygon["segmentation"][0])
    points[rng.randrange(len(points))] = rng.choice([float("nan"), float("inf"), "x", None, 10**400, 1e300])
    counts = runs["segmentation"]["counts"]
    return rng.choice([
        lambda: ("a box with something else", put(one, "bbox", corners)),
        lambda: ("a box of three numbers", put(one, "bbox", one["bbox"][:3])),
        lambda: ("a box outside", put(one, "bbox", [SIDE + 5, 1, 4, 4])),
        lambda: ("no box", put(one, "bbox", rng.choice([None, "x", {}, 5]))),
        lambda: ("a polygon with something else", put(polygon, "segmentation", [points])),
        lambda: ("a polygon of two points", put(polygon, "segmentation", [[1, 1, 9, 9]])),
        lambda: ("a polygon of five numbers", put(polygon, "segmentation", [[1, 1, 9, 1, 9]])),
        lambda: ("a polygon outside", put(polygon, "segmentation", [[1, 1, 99, 1, 99, 9, 1, 9]])),
        lambda: ("run lengths too short", put(runs, "segmentation", {"size": [SIDE, SIDE], "counts": counts[:-1]})),
        lambda: ("run lengths too long", put(runs, "segmentation", {"size": [SIDE, SIDE], "counts": [*counts, 5]})),
        lambda: ("run lengths below 0", put(runs, "segmentation", {"size": [SIDE, SIDE], "counts": [-1, *counts]})),
        lambda: ("run lengths of another size", put(runs, "segmentation", {"size": [SIDE, 9], "counts": counts})),
        lambda: ("unknown category", put(one, "category_id", rng.choice([99, None, "x", [], {}, float("nan")]))),
        lambda: ("unknown image", put(one, "image_id", rng.choice([99, None, "x", [], {}, float("nan")]))),
        lambda: ("another size", put(image, "width", rng.choice([SIDE + 1, 0, -5, "x", [], 10**400, float("nan")]))),
        lambda: ("no such image", put(image, "file_name", rng.choice(["9.png", "", "../train", "/dev/zero", "\0"]))),
        lambda: ("a file name that is none", put(image, "file_name", rng.choice([[], {}, ["0.png"], True]))),
        lambda: ("two images of an id", twice("images")),
        lambda: ("two categories of an id", twice("categories")),
        lambda: ("an image without id", _without(image, "id")),
    ])()  # fmt: skip


def _without(entry: Content, name: str) -> tuple[str, ...]:
    del entry[name]
    return ("image",)


def make(rng: random.Random, folder: Path) -> Case:
    split = rng.choice(["train", "train", "val"])
    content = base(rng)
    file, pictures = folder / "annotations" / f"instances_{split}.json", folder / split
    file.parent.mkdir()
    pictures.mkdir()
    for i in range(4):
        Image.new("RGB", (SIDE, SIDE), (40 * i, 9, 99)).save(pictures / f"{i}.png")
    meant, entries, names = "either", (), (str(file),)
    kind, drop = rng.random(), False
    known: Any = content
    if kind < 0.2:
        change, meant = harmless(rng, content), "harmless"
    elif kind < 0.45:
        (change, entries), meant = wrong(rng, content), "wrong"
    elif kind < 0.85:
        change, known = changed(rng, content, (*ODD, *SHAPES))
        for _ in range(rng.choice([0, 0, 1, 2])):
            _, known = changed(rng, known, (*ODD, *SHAPES))
        drop = rng.random() < 0.4
    else:
        change = ""
    form, data = written(rng, known)
    if not change:
        if kind < 0.9:
            change, data = no_json(rng, data)
            meant = "wrong"
        elif kind < 0.95:
            change, data = damaged(rng, data)
        known = None
    file.write_bytes(data)
    if not change:
        picture = pictures / f"{rng.randrange(3)}.png"
        names = (str(file), str(picture), str(pictures))
        what = rng.choice(["file", "image", "damaged image"])
        if what == "damaged image":
            change, data = damaged(rng, picture.read_bytes())
            picture.write_bytes(data)
            change = f"image: {change}"
        else:
            change, meant = f"{what}: {replaced(rng, file if what == 'file' else picture)}", "wrong"
            names = (str(file), str(picture), str(folder))
    elif form != "as it is" and meant == "harmless":
        change = f"{change}, {form}"
    masks = rng.random() < 0.8
    if not masks and change.startswith(("a polygon", "run lengths")):
        meant = "either"  # what is not asked for is not read
    return Case(change, meant, names, Objects(folder, split, copy.deepcopy(known), drop, masks), entries)


# -- what is true of what was accepted ---------------------------------------------------------


def run(case: Case) -> str:
    known: Objects = case.data
    coco = load(known.root, known.split, known.masks, known.drop)
    targets, results, thin = [], [], False
    for i in range(len(coco.images)):
        entry, target = coco.images[i], coco.target(i, known.masks)
        boxes, labels = target["boxes"].numpy(), target["labels"].numpy()
        if not np.isfinite(boxes).all() or not ((boxes >= 0) & (boxes <= SIDE)).all():
            return f"boxes {boxes[:3].tolist()} in {SIDE}x{SIDE} px"
        if not ((labels >= 0) & (labels < len(coco.classes))).all():
            return f"labels {labels} of {len(coco.classes)} classes"
        targets.append((Path(str(entry["file_name"])).name, boxes, [coco.classes[label] for label in labels]))
        own = [one for one in coco.objects[entry["id"]] if not one.get("iscrowd")]
        masks = target["masks"].numpy() if "masks" in target else [None] * len(own)
        for one, mask in zip(own, masks, strict=True):
            found = {
                "image_id": entry["id"],
                "category_id": one["category_id"],
                "bbox": list(one["bbox"]),
                "score": 0.9,
            }
            thin |= not (found["bbox"][2] > 0 and found["bbox"][3] > 0) or (mask is not None and not mask.any())
            shape = {} if mask is None else {"segmentation": rle.encode(np.asfortranarray(mask))}
            results.append({**found, **shape})
    if not all(isinstance(name, str) for name in coco.classes):
        return f"class names {coco.classes}"
    if fault := _learned(coco, known) if known.split == "train" else "":
        return fault
    if results and not thin:
        for kind in ("box", "mask") if all("segmentation" in one for one in results) else ("box",):
            if (score := average_precision(coco, results, kind)["AP"]) < 0.999:
                return f"perfect detections: {kind} AP {score:.3f}"
    return _as_meant(known, targets) if known.content is not None else ""


def _learned(coco: Any, known: Objects) -> str:
    view = TrainView(coco, known.masks)
    for key in range(len(view)):
        image, target = view.pair(key)
        boxes = target["boxes"]
        if image.shape[1:] != (SIDE, SIDE):
            return f"an image of {tuple(image.shape)}"
        if not len(boxes) or not (boxes[:, 2:] > boxes[:, :2]).all():
            return f"boxes to learn {boxes.tolist()[:3]}"
        if "masks" in target and not target["masks"].flatten(1).any(1).all():
            return "empty masks to learn"
    return ""


def _as_meant(known: Objects, targets: list[tuple[str, np.ndarray, list[str]]]) -> str:
    """Whether each entry that can only be meant in one way became that object, and nothing else was made up."""
    content = known.content
    names = {_key(one.get("id")): one.get("name") for one in _dicts(content, "categories")}
    files = {_key(one.get("id")): one.get("file_name") for one in _dicts(content, "images")}
    for name, found in (("categories", names), ("images", files)):
        if len(found) < len(_dicts(content, name)):
            return f"two {name} of one id are accepted"
    there = {name: list(zip(boxes.tolist(), labels)) for name, boxes, labels in targets}
    count = 0
    for one in _dicts(content, "annotations"):
        file, label, box = (
            files.get(_key(one.get("image_id"))),
            names.get(_key(one.get("category_id"))),
            one.get("bbox"),
        )
        count += 1
        crowd = meant_number(one.get("iscrowd", 0))
        numbers = [meant_number(x) for x in box] if isinstance(box, list) else []
        if (
            not (isinstance(file, str) and isinstance(label, str) and file in there)
            or crowd != 0
            or len(numbers) != 4
            or None in numbers
        ):
            continue
        x, y, w, h = numbers  # type: ignore[misc]
        if not (x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= SIDE and y + h <= SIDE):
            continue
        corners = [x, y, x + w, y + h]
        if (known.masks and not _drawn(one.get("segmentation"))) or known.drop:
            continue  # may have been left out
        if not any(name == label and np.allclose(found, corners, atol=1e-3) for found, name in there[file]):
            return f"an object {label!r} {corners} of {file} is left out or changed"
    made = sum(map(len, there.values()))
    return f"{made} objects of {count} annotations" if made > count else ""


def _dicts(content: Any, name: str) -> list[Content]:
    found = content.get(name) if isinstance(content, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _key(value: Any) -> Any:
    """What an id is compared by: 7, 7.0 and "7" are the same."""
    found = meant_number(value)
    return repr(value) if found is None or math.isnan(found) else found


def _drawn(shape: Any) -> bool:
    """Whether a mask is as `base` makes them."""
    if isinstance(shape, dict):
        counts = shape.get("counts")
        plain = isinstance(counts, list) and all(type(x) is int and x >= 0 for x in counts)
        return shape.get("size") == [SIDE, SIDE] and plain and sum(counts) == SIDE * SIDE and len(counts) > 1
    return isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], list) and len(shape[0]) == 8
