"""npz files of encoded images."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.case import Case
from tests.fuzz.labelled import Labelled, check, classes, make_image
from tests.fuzz.mutate import damaged, replaced


def make(rng: random.Random, folder: Path) -> Case:
    names, count = classes(rng), rng.randint(6, 9)
    encoded = [make_image(i) for i in range(count)]
    labels = [i % len(names) for i in range(count)]
    arrays: dict[str, Any] = {
        "jpeg": np.frombuffer(b"".join(encoded), np.uint8),
        "offset": np.cumsum([0, *map(len, encoded)]),
        "label": np.array(labels),
        "name": np.array([f"{i:03d}.png" for i in range(count)]),
        "classes": np.array(names),
    }
    known: dict[str, str] | None = {f"{i:03d}.png": names[label] for i, label in enumerate(labels)}
    path, meant = folder / "data.npz", "harmless"
    kind = rng.choice(["form", "form", "wrong", "wrong", "wrong", "odd", "header", "bytes", "bytes", "files"])
    change, pack = kind, np.savez_compressed if rng.random() < 0.3 else np.savez
    if kind == "form":
        change = rng.choice(["as it is", "int8 labels", "uint64 offsets", "more arrays", "big-endian", "a link"])
        if change == "int8 labels":
            arrays["label"] = arrays["label"].astype(np.int8)
        elif change == "uint64 offsets":
            arrays["offset"] = arrays["offset"].astype(np.uint64)
        elif change == "more arrays":
            arrays["note"] = np.arange(3)
        elif change == "big-endian":
            arrays["label"] = arrays["label"].astype(">i8")
    elif kind == "wrong":
        meant = "wrong"
        change, key, value = rng.choice([
            ("label too large", "label", [*labels[:-1], len(names)]), ("label below 0", "label", [*labels[:-1], -1]),
            ("label NaN", "label", [*labels[:-1], np.nan]), ("label 0.5", "label", [*labels[:-1], 0.5]),
            ("labels as names", "label", ["x"] * count), ("labels of two dimensions", "label", [labels]),
            ("a label less", "label", labels[:-1]), ("offsets fall", "offset", arrays["offset"][::-1].copy()),
            ("offsets too large", "offset", arrays["offset"] * 2), ("an offset less", "offset", arrays["offset"][:-1]),
            ("offsets NaN", "offset", arrays["offset"] * np.nan), ("pickled classes", "classes", np.array(names, object)),
            ("a class twice", "classes", [*names[:-1], names[0]]), ("an unused class", "classes", [*names, "unused"]),
            ("complex labels", "label", arrays["label"] * 1j), ("classes of two dimensions", "classes", [names]),
            ("jpeg as int64", "jpeg", arrays["jpeg"].astype(np.int64)), ("a name less", "name", arrays["name"][:-1]),
            ("no images", "jpeg", np.zeros(0, np.uint8)), ("a name twice", "name", ["000.png"] * count),
            ("labels are one number", "label", 0), ("dates as labels", "label", np.zeros(count, "datetime64[D]")),
            ("a record as label", "label", np.zeros(count, [("a", int)])),
        ])  # fmt: skip
        arrays[key] = np.asarray(value)
        if rng.random() < 0.15:
            gone = rng.choice(["jpeg", "offset", "label", "classes"])
            del arrays[gone]
            change = f"no {gone}"
    elif kind == "odd":
        key, meant, known = rng.choice(list(arrays)), "either", None
        kind_of = rng.choice(["S8", "U3", "f4", "i1", "u1", "?", "c8", "m8[s]"])
        change = f"{key} as {kind_of}"
        try:
            arrays[key] = arrays[key].astype(kind_of)
        except (ValueError, TypeError):
            arrays[key] = np.zeros(count, kind_of)
    pack(path, **arrays)
    if kind == "header":
        change, meant = rng.choice(["a giant shape", "a giant 1-byte shape", "no header", "Fortran order"]), "wrong"
        key = rng.choice(["jpeg", "offset", "label", "classes"])
        shape, kind_of = rng.choice([(10**12,), (2**62,), (2**31, 2**31)]), "<i8"
        if change == "a giant 1-byte shape":
            kind_of = "|u1"
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": kind_of, "fortran_order": False, "shape": shape})
        members[f"{key}.npy"] = header.getvalue() + bytes(99) if change.startswith("a giant") else bytes(50)
        if change == "Fortran order":
            meant, known, members = "either", None, {**members, f"{key}.npy": b"\x93NUMPY\x01\x00\x76\x00" + b"{" * 118}
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    elif kind == "bytes":
        change, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
        meant, known = "either", None
    elif kind == "files":
        change, meant = f"in its place: {replaced(rng, path)}", "wrong"
    elif change == "a link":
        path.rename(folder / "behind")
        path.symlink_to("behind")
    return Case(change, meant, (str(path),), Labelled(str(path), known))


def run(case: Case) -> str:
    return check(case.data)
