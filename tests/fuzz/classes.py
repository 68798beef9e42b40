"""Lists of class names: classes.txt and classes.json beside masks, classes.txt and _info.json beside shards."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np

from tests.fuzz import labelled, masks, shards
from tests.fuzz.case import Case
from tests.fuzz.mutate import ODD, changed, damaged, no_json, replaced, written

NAMES = list(masks.NAMES)


def make(rng: random.Random, folder: Path) -> Case:
    of_masks, as_text = rng.random() < 0.6, rng.random() < 0.4
    root = folder / "data"
    file = root / (
        "classes.txt" if as_text else "classes.json" if of_masks else rng.choice(["_info.json", "info.json"])
    )
    truth: dict[str, np.ndarray] = {}
    if of_masks:
        truth = masks.tree(rng, root)[0]["train"]
    else:
        root.mkdir()
        with shards.tarfile.open(root / "train-000.tar", "w") as tar:
            for i in range(6):
                shards._add(tar, f"{i:03d}.png", labelled.make_image(i))
                shards._add(tar, f"{i:03d}.cls", str(i % 3).encode())
    kind = rng.choice(["form", "form", "value", "value", "value", "structure", "broken", "bytes", "files"])
    change, meant, known = kind, "harmless", True
    content = {"classes": list(NAMES), **({"ignore_index": 255} if of_masks and rng.random() < 0.5 else {})}
    names = content["classes"]
    if kind == "value":
        meant = "wrong"
        change = rng.choice(["a name twice", "an empty list", "a name of another type", "one name for all"])
        if change == "an empty list" and not of_masks:
            meant = "either"  # the labels are the classes then
        if change == "a name twice":
            names[1] = names[0]
        elif change == "an empty list":
            names.clear()
        elif change == "one name for all":
            del names[1:]
        elif not as_text:
            names[rng.randrange(3)] = rng.choice([None, True, [], {}, ["a"], 1.5, float("nan"), ""])
        else:
            change, meant = "as it is", "harmless"
    if as_text:
        form = (
            rng.choice(["as it is", "BOM", "CRLF", "no end", "empty lines", "spaces"]) if kind == "form" else "as it is"
        )
        end = "\r\n" if form == "CRLF" else "\n"
        text = end.join(names) + ("" if form == "no end" else end) + ("\n\n" if form == "empty lines" else "")
        data = text.replace("sky", " sky ").encode("utf-8-sig" if form == "BOM" else "utf-8") if form == "spaces" else (
            text.encode("utf-8-sig" if form == "BOM" else "utf-8"))  # fmt: skip
        change = form if kind == "form" else change
        if kind in ("structure", "broken"):
            change, meant, known, data = rng.choice([
                ("UTF-16", "wrong", True, data.decode().encode("utf-16")), ("latin-1", "wrong", True, "Straße\n".encode("latin-1") * 3),
                ("zeros", "either", False, bytes(90)), ("empty", "either", False, b""),
                ("a long line", "either", False, b"x" * 10**6), ("a control sign", "either", False, data + b"\x1b[2J\n"),
            ])  # fmt: skip
    else:
        if kind == "structure":
            what, other = changed(rng, copy.deepcopy(content), (*ODD, {"classes": "abc"}, "abc"))
            form, data = written(rng, other)
            change, meant, known = what, "either", False
            found = other.get("classes") if isinstance(other, dict) else None
            if of_masks and isinstance(found, (str, dict, int)) and not isinstance(found, dict):
                meant = "wrong"
        else:
            form, data = written(rng, content)
            change = form if kind == "form" else change
            if kind == "broken":
                change, data = no_json(rng, data)
                meant = "wrong"
    if kind == "bytes":
        change, data = damaged(rng, data)
        meant, known = "either", False
    file.write_bytes(data)
    if kind == "files":
        change, meant, known = replaced(rng, file), "either", False
    known = known and meant == "harmless"
    where = f"{'masks' if of_masks else 'shards'}, {file.name}"
    case: object
    if of_masks:
        case = masks.Masked(str(root), "train", truth if known else None, masks.NAMES if known else None)
    else:
        labels = {f"{i:03d}.png": NAMES[i % 3] for i in range(6)} if known else None
        case = labelled.Labelled(f"wds/{root}", labels)
    return Case(f"{where}: {change}", meant, (str(root),), case)


def run(case: Case) -> str:
    if isinstance(case.data, masks.Masked):
        return masks.run(case)
    return labelled.check(case.data, NAMES if case.data.labels else None)
